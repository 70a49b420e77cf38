"""Bad configurations and bad data: each gives one clear line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass import cli

Change = Callable[[dict[str, Any]], Any]
Damage = Callable[[pd.DataFrame], pd.DataFrame]


def good_rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(600, 3)), columns=["a", "b", "c"])
    rows["ts"] = pd.date_range("2026-01-01", periods=600, freq="h")
    rows["key"] = [f"k{i}" for i in range(600)]
    rows["fraud"] = (rows["a"] + rng.normal(size=600) > 2).astype(int)
    return rows


def good_config(folder: Path) -> dict[str, Any]:
    return {
        "name": "bad",
        "data": {"path": str(folder / "rows.parquet"), "target": "fraud", "time": "ts", "id": "key"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
        "search": {"seconds": 1},
    }


def run(
    folder: Path, config: dict[str, Any] | str, capsys: pytest.CaptureFixture[str], command: str = "run"
) -> tuple[int, str]:
    file = folder / "config.yaml"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    arguments = [command, "-c", str(file), "-q"] + (["--out", str(folder / "out")] if command == "run" else [])
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0), capsys.readouterr().err


def _refused(code: int, err: str, says: str, folder: Path) -> None:
    assert code == 2, err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (folder / "out").exists()


def _set(**values: Any) -> Change:
    """Set ``section__key`` to a value."""

    def change(config: dict[str, Any]) -> None:
        for path, value in values.items():
            *sections, key = path.split("__")
            node = config
            for section in sections:
                node = node.setdefault(section, {})
            node[key] = value

    return change


CONFIGURATIONS: dict[str, tuple[Change, str]] = {
    "no name": (lambda c: c.pop("name"), "setting 'name' is missing"),
    "a name with capitals": (_set(name="My Model"), "Set name to 'my-model'"),
    "a name with an underscore": (_set(name="abalone_19"), "Set name to 'abalone-19'"),
    "no target": (lambda c: c["data"].pop("target"), "setting 'data.target' is missing"),
    "an unknown section": (_set(serch={}), "unknown setting 'serch'. Did you mean 'search'?"),
    "an unknown setting": (_set(data__tme="ts"), "unknown setting 'data.tme'. Did you mean 'time'?"),
    "a duration without a unit": (_set(data__label_delay="7"), "is not a duration; write a number and a unit"),
    "a share above 1": (_set(split__test=1.5), "split.test"),
    "text for a number": (_set(search__seconds="soon"), "search.seconds"),
    "not a number": (_set(costs__false_negative=float("nan")), "costs.false_negative"),
    "a negative cost": (_set(costs__false_positive=-1), "costs.false_positive"),
    "a split by a time that is not there": (
        _set(split__kind="time", data__time=None),
        "Set data.time, or split.kind: stratified",
    ),
    "groups without an entity": (_set(split__kind="grouped"), "Set data.entity, or split.kind: stratified"),
    "a loss of amounts without amounts": (_set(costs__amount_share=0.5), "Set data.amount"),
    "two roles for the target": (_set(data__time="fraud"), "has a second role"),
    "a filter that sees the target": (_set(data__filter=[["fraud", "==", 1]]), "may not see the target"),
    "operating points of one name": (_set(threshold__points=[{"name": "x"}, {"name": "x"}]), "different names"),
    "an unknown learner": (
        _set(search__candidates=[{"learner": "xgbost"}]),
        "unknown learner 'xgbost'. Did you mean 'xgboost'?",
    ),
    "an unknown resampler": (
        _set(search__candidates=[{"resample": [{"name": "smoot"}]}]),
        "unknown resampler 'smoot'. Did you mean 'smote'?",
    ),
    "an unknown weighting": (
        _set(search__candidates=[{"weighting": "balance"}]),
        "unknown weighting 'balance'. Did you mean 'balanced'?",
    ),
    "an unknown setting of a resampler": (
        _set(search__extra=[{"resample": [{"name": "smote", "params": {"k": 3}}]}]),
        "'k'",
    ),
    "an unknown objective": (_set(threshold__objective="f3"), "unknown objective 'f3'"),
    "an unknown objective of a point": (
        _set(threshold__points=[{"name": "x", "objective": "mc"}]),
        "Did you mean 'mcc'? Set threshold.points[0].objective",
    ),
    "an objective without its bound": (_set(threshold__objective="recall_at_precision"), "Set threshold.min_precision"),
    "alerts a day without days": (_set(threshold__max_alerts_per_day=5, data__time=None), "Set data.time"),
    "focal loss of a forest": (
        _set(search__candidates=[{"learner": "random_forest", "loss": "focal"}]),
        "Set loss: logistic",
    ),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_bad_configuration_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CONFIGURATIONS[kind]
    good_rows().to_parquet(tmp_path / "rows.parquet")
    config = good_config(tmp_path)
    change(config)
    _refused(*run(tmp_path, config, capsys), says, tmp_path)


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "", "\x00"])
def test_a_configuration_that_is_no_mapping_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(*run(tmp_path, text, capsys), "configuration", tmp_path)


def _with(**columns: Any) -> Damage:
    return lambda rows: rows.assign(**columns)


DATA: dict[str, tuple[Damage, str]] = {
    "a target of one class": (_with(fraud="ok"), "fraud"),
    "a target of three values": (lambda r: r.assign(fraud=r.index % 3), "data.positive"),
    "a target that is not there": (lambda r: r.rename(columns={"fraud": "fraude"}), "Did you mean 'fraude'?"),
    "a target that is missing in places": (
        lambda r: r.assign(fraud=r["fraud"].astype("Int64").mask(r.index < 9)),
        "fraud",
    ),
    "a time that is not there": (lambda r: r.rename(columns={"ts": "time"}), "ts"),
    "a time that cannot be read": (lambda r: r.assign(ts=r["ts"].astype(str).where(r.index > 0, "yesterday")), "ts"),
    "an infinite value": (lambda r: r.assign(b=r["b"].where(r.index > 0, np.inf)), "'b'"),
    "the same id twice": (lambda r: r.assign(key=r["key"].where(r.index > 0, "k1")), "key"),
    "free text": (
        lambda r: r.assign(note=[f"the customer number {i} wrote a letter about {i * 7} things" for i in r.index]),
        "note",
    ),
    "a second time column": (lambda r: r.assign(seen=r["ts"]), "seen"),
    "no row": (lambda r: r.iloc[:0], "row"),
    "no feature": (lambda r: r[["ts", "key", "fraud"]], "feature"),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_data_are_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, says = DATA[kind]
    damage(good_rows()).to_parquet(tmp_path / "rows.parquet")
    _refused(*run(tmp_path, good_config(tmp_path), capsys), says, tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("absent.parquet", "absent.parquet"),
        ("nothing/*.csv", "nothing"),
        ("demo:flihts", "Did you mean 'flights'?"),
        ("ftp://host/rows.parquet", "ftp"),
        ("sqlite:///absent.db", "data.query"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(
    path: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = good_config(tmp_path)
    config["data"]["path"] = path
    _refused(*run(tmp_path, config, capsys), says, tmp_path)


@pytest.mark.parametrize("content", [b"PAR1 but not really", b"\x89PNG\r\n", b""])
def test_a_file_that_is_something_else_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    _refused(*run(tmp_path, good_config(tmp_path), capsys), "rows.parquet", tmp_path)


def test_the_rows_and_the_configuration_are_good_when_nothing_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good_rows().to_parquet(tmp_path / "rows.parquet")
    code, err = run(tmp_path, good_config(tmp_path), capsys, "diagnose")
    assert (code, err) == (0, "")
