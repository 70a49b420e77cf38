"""What servers log: plain lines, or JSON that a collector reads line by line."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rareclass import logs
from rareclass.errors import ConfigError

SOURCE = Path(logs.__file__).parent
LOG = logging.getLogger("rareclass.tests")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(logs.FORMAT, "")  # set, so that it is put back however the test changes it
    root, ours = logging.getLogger(), logging.getLogger("rareclass")
    before, level, of_all = list(root.handlers), ours.level, root.level
    yield
    root.handlers[:] = before
    root.setLevel(of_all)
    ours.setLevel(level)


def test_a_line_of_json_says_when_how_bad_who_and_what_and_hides_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    LOG.warning("no answer from %s\nat all", "postgresql://me:secret@db/x", extra={"version": "3"})
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", said.pop("time"))
    assert said == {
        "level": "warning",
        "logger": "rareclass.tests",
        "message": "no answer from postgresql://me:***@db/x\nat all",
        "version": "3",
    }


def test_a_traceback_is_a_field_and_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        raise ValueError("of no use")
    except ValueError:
        LOG.exception("a request failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].splitlines()[-1] == "ValueError: of no use"


def test_what_goes_well_is_on_standard_output_and_text_is_the_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().setLevel(logging.INFO)  # as some libraries leave it behind
    logs.configure("text")
    logs.configure("text")  # a second time changes nothing
    LOG.info("serving fraud")
    LOG.warning("a shadow is late")
    logging.getLogger("somebody.else").info("chatter")
    assert tuple(capsys.readouterr()) == ("serving fraud\n", "a shadow is late\n")


def test_a_child_writes_as_its_parent_was_told_to() -> None:
    logs.configure("json")
    code = (
        "import logging; from rareclass import logs; logs.configure(); "
        "logging.getLogger('rareclass.child').info('here')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(said)["message"] == "here"


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "jsonl")
    with pytest.raises(ConfigError, match="Set it to one of: text, json"):
        logs.configure()


def test_an_error_that_ends_a_server_is_json_too(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rareclass.cli",
        "monitor",
        "-c",
        str(tmp_path / "none.yaml"),
        "--log-format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert json.loads(done.stderr)["level"] == "error"


def test_every_module_has_a_logger_of_its_own_name_and_only_the_command_line_prints() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        name = "rareclass." + file.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
        for made in re.findall(r"^_LOG = logging\.getLogger\((.*)\)", text, re.M):
            assert made == "__name__", name
        if name not in ("rareclass.cli", "rareclass._terminal"):
            assert not re.search(r"(?<![\w.])print\(", text), f"{name} prints; log it, or return it to the command"
