"""The benchmarks' command, and claims that can fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import _common  # noqa: E402


@pytest.mark.parametrize("name", command.names())
def test_every_benchmark_can_be_asked_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused_with_the_nearest_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "treshold"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'threshold'?" in done.stderr


def test_a_claim_is_met_at_its_goal_and_not_beyond() -> None:
    assert _common.claim("b", "c", ours=1, peer=50, goal=50, rule="faster")["met"]
    assert not _common.claim("b", "c", ours=1, peer=49.9, goal=50, rule="faster")["met"]
    assert not _common.claim("b", "c", ours=1, peer=60, goal=50, rule="faster", holds=False)["met"]
    assert _common.claim("b", "c", ours=1.1, peer=1, goal=1.1, rule="at most")["met"]
    assert not _common.claim("b", "c", ours=1.2, peer=1, goal=1.1, rule="at most")["met"]
    assert not _common.claim("b", "c", ours=1, peer=None, goal=0, rule="at most")["met"]


def test_what_was_printed_and_claimed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_common, "RESULTS", tmp_path)

    def main(arguments: list[str]) -> list[_common.Claim]:
        _common.table(["a"], [[arguments[0]]])
        return _common.announce([_common.claim("b", "c", ours=1, peer=2, goal=2, rule="faster")])

    claims = _common.record("b", main, ["x"], full=True)
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["claims"], found["full"], found["text"]) == (claims, True, "| a |\n|---|\n| x |")
    assert len(found["load"]) == 2
