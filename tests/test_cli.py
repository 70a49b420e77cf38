"""The command line: help, one-line errors, exit codes, and the commands that need no training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import typer

import small_model
from rareclass import cli
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.services import promotion

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COMMANDS = tuple(sorted(typer.main.get_command(cli.app).commands))
HEAVY = (
    "numpy",
    "pandas",
    "sklearn",
    "scipy",
    "xgboost",
    "mlflow",
    "evidently",
    "kfp",
    "sqlalchemy",
    "pydantic",
    "plotly",
    "starlette",
    "uvicorn",
    "grpc",
    "imblearn",
    "optuna",
)


def call(*arguments: str) -> int:
    """Run a command in this process, as the executable does."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and two registered versions, the first of them champion."""
    folder = tmp_path_factory.mktemp("home")
    config = small_model.config(folder)
    for slope in (1.0, 2.0):
        run = Tracker(config.tracking.uri, "small").start("run")
        promotion.register(config, small_model.model(slope), run.id, now=NOW)
    promotion.promote(config, 1, now=NOW, actor="tester", reason="first")
    (folder / "c.json").write_text(config.model_dump_json())
    small_model.frame(50).drop(columns="label").to_parquet(folder / "rows.parquet")
    return folder


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = f"""
import sys
from rareclass import cli
code = cli._run(["--help"], False)
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert "HEAVY [] 0" in done.stdout, done.stdout[-300:]
    assert all(re.search(rf"^\W*{command}\b", done.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "labels import"])
def test_every_command_and_every_option_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command.split(), "--help") == 0
    assert f"rareclass {command}" in capsys.readouterr().out
    node = typer.main.get_command(cli.app)
    for part in command.split():
        node = node.commands[part]
    assert node.help
    assert [each.name for each in node.params if not getattr(each, "help", None)] == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert call("--version") == 0
    assert capsys.readouterr().out == f"rareclass {version('rareclass')}\n"


def test_the_schema_is_json_that_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    undescribed = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, setting in section.get("properties", {}).items()
        if not setting.get("description") and "$ref" not in setting
    ]
    assert undescribed == []


def test_a_default_of_the_schema_is_written_as_the_parser_reads_it() -> None:
    from rareclass import config

    schema = config.schema()
    assert schema["$defs"]["MonitorSettings"]["properties"]["window"]["default"] == "1w"
    for name, section in config.Config.model_fields.items():
        for key, stated in schema["$defs"].get(type(section.default).__name__, {}).get("properties", {}).items():
            if "default" in stated and name not in ("name", "data"):
                assert getattr(type(section.default)(**{key: stated["default"]}), key) == getattr(section.default, key)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rn"], "unknown command 'rn'. Did you mean 'run'?"),
        (["run", "--confg", "x", "--out", "y"], "No such option: --confg. Did you mean '--config'?"),
        (["run", "--out", "y"], "Missing option '-c' / '--config'"),
        (["run", "-c", "absent.yaml", "--out", "y"], "configuration 'absent.yaml' is not a file"),
        (
            ["run", "-c", "{home}/c.json", "--out", "y", "--set", "search.second=3"],
            "unknown setting 'search.second'. Did you mean 'seconds'?",
        ),
        (["run", "-c", "{home}/c.json", "--out", "y", "--set", "nonsense"], "not of the form a.b=v"),
        (["run", "-c", "{home}/c.json", "--out", "y", "--runner", "kpf"], "unknown runner 'kpf'. Did you mean 'kfp'?"),
        (["promote", "-c", "{home}/c.json", "three"], "Invalid value for 'VERSION'"),
        (["promote", "-c", "{home}/c.json", "7"], "has no version 7"),
        (["promote", "-c", "{home}/c.json", "1"], "champion already"),
        (["promote", "-c", "{home}/c.json", "2", "--mode", "shado"], "Did you mean 'shadow'"),
        (["rollback", "-c", "{home}/c.json"], "no previous version"),
        (["score", "{home}/rows.parquet", "{home}/out.parquet"], "no model was named"),
        (["score", "{home}/rows.parquet", "{home}/rows.parquet", "-c", "{home}/c.json"], "is the input"),
        (["score", "{home}/rows.parquet", "{home}/out.parquet", "--model", "/nowhere"], "'/nowhere' does not exist"),
        (
            ["score", "{home}/rows.parquet", "{home}/out.parquet", "--model", "/nowhere", "--log"],
            "--log scores with the configuration's champion",
        ),
        (["score", "{home}/absent.parquet", "{home}/out.parquet", "-c", "{home}/c.json"], "absent.parquet"),
        (["compare", "one"], "Name 2 to 10"),
        (["diagnose"], "Pass DATA --target COLUMN, or -c CONFIG"),
        (["forget", "-c", "{home}/c.json"], "either --request-id ID or --entity ID"),
        (["labels", "import", "-c", "{home}/c.json", "{home}/absent.csv"], "absent.csv"),
        (["export", "-c", "{home}/c.json", "{home}/splits", "--format", "xlsx"], "unknown format 'xlsx'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    home: Path,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*(each.format(home=home) for each in arguments)) == 2
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in printed.err
    assert [line for line in printed.err.strip().splitlines() if line.startswith("error")] == [last]


def test_a_fault_is_one_line_exit_code_1_and_a_traceback_only_with_debug(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("rareclass.config.schema", broken)
    assert call("schema") == 1
    printed = capsys.readouterr().err
    assert printed == "error: unexpected ZeroDivisionError: first second. Run it again with --debug for the traceback\n"
    assert call("schema", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_one_word_and_130(tmp_path: Path) -> None:
    code = """
import signal, rareclass.config
from rareclass import cli
rareclass.config.schema = lambda: signal.raise_signal(signal.SIGINT)  # in this thread, so that none outruns it
cli.main(["schema"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (128 + signal.SIGINT, "interrupted")


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m rareclass.cli schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        executable="/bin/bash",
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_promote_rollback_and_history_tell_what_happened(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_model.config(tmp_path, tracking={"uri": f"sqlite:///{home}/mlflow.db"}, name="told")
    for slope in (1.0, 2.0):
        run = Tracker(config.tracking.uri, "small").start("run")
        promotion.register(config, small_model.model(slope), run.id, now=NOW)
    file = tmp_path / "c.json"
    file.write_text(config.model_dump_json())
    assert call("promote", "-c", str(file), "1", "--reason", "first", "--actor", "alice") == 0
    assert call("promote", "-c", str(file), "--mode", "immediate") == 0
    assert call("rollback", "-c", str(file), "--reason", "worse") == 0
    assert (
        capsys.readouterr().out
        == "version 1 is champion\nversion 2 is champion, was version 1\nversion 1 is champion, was version 2\n"
    )
    assert call("history", "-c", str(file)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"promote +1 +champion +alice \(said by .*first", shown)
    assert re.search(r"rollback +1 +champion +\w+ +worse", shown)
    assert shown.endswith("now: champion is version 1\n")
    assert call("history", "-c", str(file), "--kind", "rollback", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["payload"]["before"]["champion"] == "2"


def test_an_empty_ledger_says_so(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.json").write_text(small_model.config(tmp_path).model_dump_json())
    assert call("history", "-c", str(tmp_path / "c.json")) == 0
    assert capsys.readouterr().out == "the ledger is empty\n"


def test_score_writes_the_rows_with_score_and_decision(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    assert call("score", "-q", str(home / "rows.parquet"), str(out), "-c", str(home / "c.json"), "--reasons", "1") == 0
    rows, scored = pd.read_parquet(home / "rows.parquet"), pd.read_parquet(out)
    assert list(scored.columns) == ["channel", "amount", "score", "decision", "reasons"]
    assert scored["score"].tolist() == pytest.approx(small_model.model().score(rows).tolist())
    assert scored["decision"].tolist() == (scored["score"] >= 0.5).astype(int).tolist()
    assert re.match(r"50 rows, \d+ flagged at 0.5 \(default\), mean score 0\.\d+", capsys.readouterr().out)


def test_batch_scores_are_logged_once(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_model.config(home, store={"url": f"sqlite:///{home}/store.db"})
    rows = small_model.frame(50).assign(id=[f"r{i}" for i in range(50)])
    rows.to_parquet(tmp_path / "rows.parquet")
    arguments = [
        "score",
        "-q",
        str(tmp_path / "rows.parquet"),
        str(tmp_path / "out.csv"),
        "-c",
        str(home / "c.json"),
        "--log",
        "--id",
        "id",
    ]
    assert call(*arguments) == 0
    assert "50 new in the prediction log of version 1" in capsys.readouterr().out
    assert call(*arguments) == 0
    assert " 0 new in the prediction log" in capsys.readouterr().out
    with Store(config.store.url) as store:
        kept = store.window("small", "2020-01-01", "2100-01-01", features=True).set_index("request_id")
    assert kept.loc["r3", "score"] == pytest.approx(small_model.model().score(rows)[3])
    assert json.loads(kept.loc["r3", "features"])["channel"] == rows["channel"][3]
    pd.DataFrame({"request_id": ["r3"], "label": [1]}).to_csv(tmp_path / "labels.csv", index=False)
    assert call("labels", "import", "-c", str(home / "c.json"), str(tmp_path / "labels.csv")) == 0
    assert capsys.readouterr().out.startswith("1 new, 0 corrected, 0 unchanged")
    assert call("forget", "-c", str(home / "c.json"), "--request-id", "r3") == 0
    assert re.match(r"[1-9]\d* stored rows erased", capsys.readouterr().out)


SUMMARY = {
    "model": "small",
    "version": "3",
    "role": "champion",
    "status": "champion",
    "selected": "forest",
    "selected_by": "AP",
    "forced": False,
    "regime": "scarce",
    "rows": {"train": 1000, "test": 500},
    "positives": {"train": 20, "test": 10},
    "prevalence": {"train": 0.02, "test": 0.02, "all": 0.02},
    "metrics": {
        "ap": 0.4,
        "ap_low": 0.3,
        "ap_high": 0.5,
        "roc_auc": 0.9,
        "threshold": 0.1234,
        "recall": 0.7,
        "precision": 0.5,
        "f1": 0.58,
        "f2": None,
        "cost": 80.0,
    },
    "should_resample": {"sentence": "Should I resample? No: a gain of 2% or more is ruled out."},
    "gate": {"verdict": "approve", "reasons": ["AP 20 times [the] prevalence"]},
    "champion_metrics": {"ap": 0.35, "ap_low": 0.25, "ap_high": 0.45},
    "candidates": [
        {
            "name": "xgboost",
            "ap": 0.3,
            "ap_low": 0.2,
            "ap_high": 0.4,
            "fit_seconds": 1.0,
            "difference": {"value": 0, "low": 0, "high": 0},
            "significant": False,
        },
        {
            "name": "forest",
            "ap": 0.4,
            "ap_low": 0.3,
            "ap_high": 0.5,
            "fit_seconds": None,
            "difference": {"value": 0.1, "low": 0.05, "high": 0.15},
            "significant": True,
            "reason": "err unlike.",
        },
    ],
}
DETAILS = {
    "evaluation": {
        "untuned": {"missed_but_tuned_finds": {"value": 4.0}},
        "money": {
            "currency": "EUR",
            "note": "",
            "cost": {"value": 80.0},
            "saving_vs_nothing": {"value": 1320.0},
            "saving_vs_everything": {"value": 5115.0},
        },
        "thinned": {"recall": {"value": 0.5}, "precision": {"value": 0.9}, "f2": {"value": 0.55}},
    },
    "config": {"evaluate": {"test_ratio": 5.0}},
    "points": {
        "default": {"feasible": True, "message": "fine"},
        "desk": {"feasible": False, "message": "no threshold reaches it"},
    },
}


def test_the_summary_says_what_won_whether_that_is_significant_and_what_it_saves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rareclass import _terminal

    _terminal.summary(SUMMARY, DETAILS)
    shown = capsys.readouterr().out
    for part in (
        "small  approve: version 3, champion",
        "forest: +0.100 [+0.050, +0.150] AP against candidate 0, significantly better. err unlike.",
        "0.400 [0.300, 0.500], 20.0 times the prevalence",
        "0.5 would miss 4 of the positives that this threshold finds",
        "80.00 EUR on the test rows; saves 1,320.00 against doing nothing, 5,115.00 against flagging everything",
        "resample?   No: a gain of 2% or more is ruled out.",
        "gate        AP 20 times [the] prevalence",
        "AP 0.350 [0.250, 0.450] on the same rows",
        "+0.100 [+0.050, +0.150] *",
        "infeasible  desk: no threshold reaches it",
        "at 1:5      recall 0.500, precision 0.900, F2 0.550: the test thinned",
    ):
        assert part in shown
    _terminal.summary(
        {**SUMMARY, "version": None, "role": None, "gate": {"verdict": "reject", "reasons": []}, "selected": "xgboost"}
    )
    shown = capsys.readouterr().out
    assert "reject: not registered" in shown
    assert "xgboost, candidate 0: no other is significantly better" in shown


def test_diagnose_needs_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = small_model.frame(400).assign(ts=pd.date_range("2026-01-01", periods=400, freq="12h"), secret=1)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    arguments = ["diagnose", str(tmp_path / "rows.csv"), "--target", "label", "--time", "ts", "--drop", "secret"]
    assert call(*arguments) == 0
    printed = capsys.readouterr()
    assert f"{rows['label'].sum()} of 400 rows are of the rare class" in printed.out
    assert "would be tried:\n  0. xgboost" in printed.out
    assert "prevalence by period, 2025-12-29 to " in printed.out
    assert "ingest" in printed.err
    assert call(*arguments, "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["diagnosis"]["positives"] == rows["label"].sum()
    assert found["plan"][0]["learner"] == "xgboost"


def test_export_writes_the_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model.frame(400).to_parquet(tmp_path / "rows.parquet")
    config = small_model.config(tmp_path, data={"path": str(tmp_path / "rows.parquet"), "target": "label"})
    (tmp_path / "c.json").write_text(config.model_dump_json())
    assert call("export", "-q", "-c", str(tmp_path / "c.json"), str(tmp_path / "splits"), "--format", "csv") == 0
    written = [pd.read_csv(tmp_path / "splits" / f"{name}.csv") for name in ("train", "validation", "test")]
    assert sum(map(len, written)) == 400
    assert capsys.readouterr().out.count(".csv") == 3


@pytest.mark.parametrize(("asked", "mode"), [(None, 0o600), ("027", 0o640), ("nonsense", 0o600)])
def test_what_a_command_writes_is_its_owners_alone_unless_the_environment_says_otherwise(
    asked: str | None, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is not None:
        monkeypatch.setenv("RARECLASS_UMASK", asked)
    before = os.umask(0o022)
    try:
        with pytest.raises(SystemExit):
            cli.main(["init", str(_table(tmp_path)), "--target", "label", "--out", str(tmp_path / "made.yaml")])
        assert os.umask(0o022) == 0o022, "the caller keeps his own"
    finally:
        os.umask(before)
    assert (tmp_path / "made.yaml").stat().st_mode & 0o777 == mode


def _table(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("a,label\n" + "\n".join(f"{at % 7},{int(at % 9 == 0)}" for at in range(200)))
    return path
