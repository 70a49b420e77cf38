"""What a value means is decided once, in training: scoring, the log, labels, the store and the monitor read the same.

Each ugly table is told twice: as somebody writes it to CSV, and as typed columns in Parquet. Whichever comes, in
whatever company of other rows, everything after training has to be equal.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.adapters.registry import Registry
from rareclass.adapters.store import Store
from rareclass.config import Config, dump, parse
from rareclass.core.model import RareModel
from rareclass.services.live import labels, repair
from rareclass.services.live.monitor import Monitor
from rareclass.services.live.verdict import triage
from rareclass.services.serving import score as scoring
from rareclass.services.training import run

N = 900
NOW = datetime(2024, 3, 1, tzinfo=UTC)


@dataclass
class Ugly:
    """One table. columns : the typed ones · written : how a column looks in CSV · csv : further options of the file"""

    columns: Callable[[np.random.Generator, np.ndarray], dict[str, Any]]
    data: dict[str, Any]
    target: Callable[[np.ndarray], Any] = lambda rare: rare.astype(int)
    written: dict[str, Callable[[Any], str]] = field(default_factory=dict)
    csv: dict[str, Any] = field(default_factory=dict)
    index: str | None = None


def comma(value: Any) -> str:
    return "" if pd.isna(value) else f" {value:.3f} ".replace(".", ",")


TABLES = {
    "semicolons, decimal commas, latin-1, days first, ja and nein": Ugly(
        lambda rng, a: {"Größe": a.round(3), "Straße": rng.choice(["Öl", "Gas", "NA"], N)},
        {"decimal": ",", "encoding": "latin-1", "positive": "ja", "time_format": "day-first"},
        target=lambda rare: np.where(rare, "ja", "nein"),
        written={"Größe": comma, "when": lambda t: f"{t:%d.%m.%Y %H:%M}", "y": lambda text: f"{text} "},
        csv={"sep": ";", "encoding": "latin-1"},
    ),
    "YAML's true for Y, booleans in capitals, ids with zeros": Ugly(
        lambda rng, a: {"a": a, "seen": a > 0.3, "zip": [f"0{int(v)}" for v in rng.integers(100, 140, N)]},
        {"positive": True},
        target=lambda rare: np.where(rare, "Yes", "No"),
        written={"seen": lambda value: "TRUE" if value else "FALSE"},
    ),
    "codes that look like numbers, and a target of floats": Ugly(
        lambda rng, a: {"a": a, "code": np.where(a > 0.5, "1e5", rng.choice(["1E5", "007", "7", "10"], N))},
        {"positive": 1.0, "categorical": ["code"]},
        target=lambda rare: rare.astype(float),
    ),
    "tabs, epochs in milliseconds, ids beyond 2^53, classes 1 and 2": Ugly(
        lambda rng, a: {"a": a, "kind": rng.choice(["x", "", "y"], N), "key": 9_007_199_254_740_993 + np.arange(N)},
        {"positive": 2},
        target=lambda rare: np.where(rare, 2, 1),
        written={"when": lambda t: str(int(t.timestamp() * 1000))},
        csv={"sep": "\t"},
    ),
    "nullable and decimal columns under an index of times": Ugly(
        lambda rng, a: {
            "a": [decimal.Decimal(f"{value:.2f}") for value in a],
            "count": pd.array(rng.integers(0, 9, N), dtype="Int64"),
            "place": pd.Categorical(rng.choice(["p1", "p2"], N)),
        },
        {},
        target=lambda rare: rare,
        index="when",
    ),
    "values that mean missing, and NA that is a country": Ugly(
        lambda rng, a: {
            "a": np.where(rng.random(N) < 0.2, -999, a),
            "country": np.where(a > 0.6, "NA", rng.choice(["DE", "FR"], N)),
        },
        {"missing_values": [-999]},
    ),
    "zones, blanks, dots and our own words as names": Ugly(
        lambda rng, a: {"label": a, "a.b c": rng.choice(["u", "v"], N), "score": rng.normal(size=N)},
        {"positive": "fraud"},
        target=lambda rare: np.where(rare, "fraud", "ok"),
        written={
            "when": lambda t: f"{t + timedelta(hours=2):%Y-%m-%dT%H:%M:%S}+02:00",
            "a.b c": lambda text: f" {text}",
        },
    ),
}


def made(table: Ugly) -> pd.DataFrame:
    """Typed rows of 75 days; the later third is what is scored."""
    rng = np.random.default_rng(11)
    a = rng.normal(size=N)
    rare = rng.random(N) < 1 / (1 + np.exp(2.6 - 1.8 * a))
    columns = table.columns(rng, a)
    frame = pd.DataFrame({**columns, "y": table.target(rare)})
    frame["when"] = pd.Timestamp("2023-12-15") + pd.to_timedelta(np.arange(N) * 2, unit="h")
    if "key" not in frame:
        frame["key"] = [f"00{at}" for at in range(N)]
    frame["rare"] = rare
    return frame


def write(table: Ugly, frame: pd.DataFrame, path: Path) -> str:
    frame = frame.drop(columns="rare", errors="ignore")
    if path.suffix == ".parquet":
        (frame.set_index(table.index) if table.index else frame).to_parquet(path, index=table.index is not None)
    else:
        plain = {
            name: [table.written[name](v) for v in frame[name]] if name in table.written else frame[name]
            for name in frame
        }
        pd.DataFrame(plain).to_csv(path, index=False, **table.csv)
    return str(path)


def logged(config: Config, source: str, output: Path) -> tuple[pd.DataFrame, Config]:
    """Score and log into a store of its own."""
    config = parse({**dump(config), "store": {"url": f"sqlite:///{output}.db"}})
    scoring.score_and_log(config, source, str(output), now=NOW)
    with Store(config.store.url) as store:
        rows = store.window(config.name, datetime(2023, 1, 1, tzinfo=UTC), NOW, features=True)
    return rows.sort_values("request_id").reset_index(drop=True), config


TYPED_FIRST = [name for name, table in TABLES.items() if table.index or "missing_values" in table.data]


@pytest.mark.parametrize(
    ("name", "first"), [*((name, "csv") for name in TABLES), *((name, "parquet") for name in TYPED_FIRST)]
)
def test_an_ugly_table_means_the_same_from_training_to_the_store(name: str, first: str, tmp_path: Path) -> None:
    table = TABLES[name]
    frame = made(table)
    history, later = frame.iloc[:600], frame.iloc[600:]
    config = parse(
        {
            "name": "ugly",
            "data": {
                "path": write(table, history, tmp_path / f"history.{first}"),
                "target": "y",
                "time": "when",
                "id": "key",
                **table.data,
            },
            "search": {"trials": 1, "tune": False, "ensemble": "none", "candidates": [{"params": {"rounds": 15}}]},
            "evaluate": {"bootstraps": 50},
            "gate": {"mode": "disabled"},
            "monitor": {"bootstraps": 50, "min_rows": 50},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "store": {"url": f"sqlite:///{tmp_path}/store.db"},
        }
    )
    run.run(config, tmp_path / "out")
    registry = Registry(config.tracking.uri)
    version = registry.at("ugly", "champion")
    assert version is not None
    model: RareModel = registry.load(version)
    expected = model.score(later)
    assert len(np.unique(expected)) > 5

    sources = {end: write(table, later, tmp_path / f"later.{end}") for end in ("csv", "parquet")}
    seen = []
    for end, source in sources.items():
        for to in ("csv", "parquet"):
            rows, store = logged(config, source, tmp_path / f"{end}.out.{to}")
            seen.append(rows)
            np.testing.assert_allclose(
                rows.set_index("request_id").loc[[str(k) for k in later["key"]], "score"], expected
            )
            assert sorted(rows["ts"]) == sorted(later["when"])
    for rows in seen[1:]:
        pd.testing.assert_frame_equal(rows[["request_id", "ts", "score"]], seen[0][["request_id", "ts", "score"]])
        assert [json.loads(text) for text in rows["features"]] == [json.loads(text) for text in seen[0]["features"]]

    alone = write(table, later.iloc[[7]], tmp_path / "alone.csv")  # the meaning of a row depends on no other row
    scoring.score(
        f"models:/ugly/{version.version}", alone, str(tmp_path / "alone.out.parquet"), tracking_uri=config.tracking.uri
    )
    column = "rareclass_score" if "score" in model.schema.names else "score"
    assert pd.read_parquet(tmp_path / "alone.out.parquet")[column].tolist() == pytest.approx([expected[7]])

    for source in (*sources.values(), str(tmp_path / "csv.out.csv")):
        report = labels.import_labels(store, source, NOW)
        assert report.inserted + report.unchanged == len(later)
        assert not report.corrected
    with Store(store.store.url) as opened:
        truth = opened.window("ugly", datetime(2023, 1, 1, tzinfo=UTC), NOW, features=True, labels_until=NOW)
    found = truth.set_index("request_id")["label"].loc[[str(k) for k in later["key"]]]
    assert found.tolist() == later["rare"].astype(float).tolist()

    again = repair.rows_of(
        store, model, truth.set_index("request_id").loc[[str(k) for k in later["key"]]].reset_index()
    )
    np.testing.assert_array_equal(again.x, model.matrix(later))
    with Monitor(store) as monitor:
        snapshot = monitor.evaluate(NOW)
    assert snapshot.schema_errors == ()
    assert snapshot.drift is None or snapshot.drift.broken == {}
    assert triage(store, NOW, snapshot=snapshot).verdict != "page"
