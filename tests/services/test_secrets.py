"""Passwords of the configuration, looked for in everything that the whole loop writes, prints and sends."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

import live_rows
from postgres import PostgresServer
from rareclass.adapters.registry import Registry
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, dump, parse
from rareclass.core.calibration import Platt
from rareclass.errors import ConfigError
from rareclass.services import promotion
from rareclass.services.admin import backup
from rareclass.services.kubeflow import submit
from rareclass.services.live import governor
from rareclass.services.live.labels import import_labels
from rareclass.services.live.monitor import Monitor

END = (live_rows.START + timedelta(days=63)).replace(tzinfo=UTC)
MARK = "xyzzy"  # part of every password below, and of nothing else
PASSWORDS = {
    "store": f"{MARK}1@{MARK}/{MARK}",
    "history": quote(f"{MARK}2@/", safe=""),
    "labels": f"{MARK}3:/@",
    "env": f"{MARK}4",
}


def with_password(url: str, password: str, user: str = "tester") -> str:
    return url.replace(f"//{user}@", f"//{user}:{password}@")


def history(url: str) -> None:
    """A table of labelled rows in the database."""
    rng = np.random.default_rng(0)
    amount, noise = rng.normal(size=900), rng.normal(size=900)
    label = (rng.random(900) < 1 / (1 + np.exp(2.5 - 2 * amount))).astype(int)
    with Store(url) as store:
        rows = ", ".join(f"({a:.5f}, {n:.5f}, {y})" for a, n, y in zip(amount, noise, label, strict=True))
        with store.transaction(write=True) as connection:
            connection.exec_driver_sql("CREATE TABLE history (amount float8, noise float8, label int)")
            connection.exec_driver_sql(f"INSERT INTO history VALUES {rows}")
            connection.exec_driver_sql("CREATE TABLE truth (request_id text, label int)")


def everything(folder: Path, url: str) -> dict[str, str]:
    """Every file below a folder and every row of every table of the database, as text."""
    found = {str(path): path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()}
    with Store(url) as store:
        tables = store.query("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")["tablename"]
        for table in tables:
            found[table] = store.query(f"SELECT t::text AS line FROM {table} t")["line"].str.cat(sep="\n") or ""
    return found


def planted(folder: Path, url: str, **sections: Any) -> Config:
    plain = url.replace("+psycopg", "")
    return parse(
        {
            "name": "calibration",
            "data": {
                "path": with_password(plain, PASSWORDS["history"]),
                "query": "SELECT * FROM history",
                "target": "label",
                "label_delay": "7d",
            },
            "store": {"url": with_password(url, PASSWORDS["store"])},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "cluster": {"env": {"BUCKET_PASSWORD": PASSWORDS["env"]}},
            "monitor": {"bootstraps": 60},
            "costs": {"false_negative": 8, "false_positive": 1},
            "search": {"candidates": [{"learner": "logistic_regression"}], "trials": 1, "tune": False},
            "evaluate": {"bootstraps": 60},
            "gate": {"mode": "dry_run"},
            **sections,
        }
    )


def test_no_password_is_left_in_anything_that_the_loop_writes_or_says(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_schema()
    history(url)
    work = tmp_path / "work"
    work.mkdir()
    config = planted(work, url)
    file = tmp_path / "config.json"
    said: list[str] = []

    def command(*arguments: str, settings: Config = config) -> str:
        file.write_text(json.dumps(dump(settings)))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("rareclass")), *arguments, "-c", str(file), "--debug"],
            capture_output=True,
            text=True,
            cwd=work,
            check=False,
        )
        file.unlink()
        said.append(done.stdout + done.stderr)
        return said[-1]

    # trained from the database, registered, reported
    out = command("run", "--out", "out", settings=planted(work, url, name="trained"))
    assert "version 1" in out or "registered" in out, out
    trained = Registry(config.tracking.uri).versions("trained")
    assert [each.version for each in trained] == ["1"]
    made_by_it = [path for path in work.rglob("*") if path.name != "__pycache__"]
    assert {"summary.json", "mlflow.db", "model.json"} <= {path.name for path in made_by_it}
    assert [str(path) for path in made_by_it if path.stat().st_mode & 0o077] == []

    # watched, repaired by a recalibration, which carries the configuration
    base = live_rows.model()
    off = live_rows.RareModel(
        base.schema,
        base.learner,
        Platt(slope=1.0, intercept=1.5),
        base.thresholds,
        profile=base.profile,
        meta=base.meta,
    )
    run = Tracker(config.tracking.uri, config.name).start("run")
    promotion.register(config, off, run.id, now=live_rows.START.replace(tzinfo=UTC))
    promotion.promote(config, 1, now=live_rows.START.replace(tzinfo=UTC), mode="immediate")
    frame, x = live_rows.stream("nothing", since=35, per_day=600)
    score = off.score(x)
    with Store(config.store.url) as store:
        store.add_predictions(
            live_rows.stored(frame.assign(score=score, decision=(score >= 0.5).astype(int)), x, config.name)
        )
        store.add_labels(live_rows.labels_of(frame), model=config.name)
    with Monitor(config) as monitor:
        snapshot = monitor.evaluate(END)
        said.append(json.dumps(snapshot.to_json(), default=str) if hasattr(snapshot, "to_json") else str(snapshot))
        verdict = governor.triage(config, END, monitor=monitor)
        assert governor.act(config, verdict, END, monitor=monitor).outcome == "done"
    made = Registry(config.tracking.uri).at(config.name, "champion")
    assert made is not None
    assert made.version == "2"
    kept = json.loads((Path(made.uri) / "data" / "rareclass" / "model.json").read_text())["meta"]["config"]
    assert kept["store"]["url"].endswith("***" + url[url.index("@127") :])
    assert kept["cluster"]["env"] == {"BUCKET_PASSWORD": "***"}

    # labels, backup, the ledger, a cluster's parameters, and what goes wrong
    import_labels(config, f"{with_password(url, PASSWORDS['labels'])}#truth", END)
    backup.backup(config, str(work / "backups"), END)
    said.append(str(promotion.history(config)))
    with pytest.raises(ConfigError, match="holds a password") as refused:
        submit.shown(config)
    said.append(str(refused.value))
    gone = planted(work, url.replace(f":{postgres_server.port}/", ":1/"), name="gone")
    for arguments in (
        ["run", "--out", "gone"],
        ["history"],
        ["labels", "import", "x.csv"],
        ["triage"],
        ["serve"],
        ["monitor"],
    ):
        assert "error: " in command(*arguments, settings=gone)
    wrong = planted(work, url, name="wrong")
    assert "error: " in command(
        "run",
        "--out",
        "w",
        settings=wrong.model_copy(
            update={"data": wrong.data.model_copy(update={"query": "SELECT nothing FROM nowhere"})}
        ),
    )

    found = everything(work, url) | {f"said {at}": text for at, text in enumerate(said)}
    assert len(found) > 30
    assert [name for name, text in found.items() if MARK in text] == []
    assert pd.Series(said).str.contains(r"\*\*\*").any()
