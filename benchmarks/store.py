"""Rows per second into the store, and how long a window read takes when many rows are stored; SQLite and PostgreSQL.

The peer is pandas over SQLAlchemy on the same tables: ``DataFrame.to_sql`` (which does not even ask whether a row is
there already) and ``read_sql`` with the same join. Both take turns in one run. PostgreSQL is the machine's own, started
on a free port as in the tests, or RARECLASS_BENCH_POSTGRES.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from rareclass.adapters.store import Store
from rareclass.adapters.store.engines import sqlalchemy_url

BATCH, DAYS, START = 50_000, 30, 1_772_323_200_000_000  # 2026-03-01
WINDOW_SHARE = 0.1  # three of the thirty days
GOAL = 1.0
READ = """SELECT p.request_id, p."row", p.ts, p.version, p.operating_point, p.score, p.decision, p.threshold, p.weight,
    p.propensity, p.entity, l.label, l.observed_at FROM predictions p LEFT JOIN labels l
    ON l.model = p.model AND l.request_id = p.request_id AND l."row" = p."row"
    WHERE p.model = 'm' AND p.ts >= :start AND p.ts < :end ORDER BY p.ts"""


def batch(first: int, rows: int, total: int) -> pd.DataFrame:
    """Rows spread over the days, with ids in no order, as uuids are."""
    index = np.arange(first, first + rows)
    score = np.random.default_rng(first).random(rows)
    ids = [f"{at * 0x9E3779B97F4A7C15 % (1 << 64):032x}" for at in index.tolist()]
    ts = START + index * (DAYS * 86_400_000_000 // total)
    frame = pd.DataFrame({"model": "m", "request_id": ids, "row": 0, "ts": ts, "version": "1"})
    return frame.assign(
        operating_point="default",
        threshold=0.5,
        score=score,
        decision=(score > 0.5).astype(int),
        weight=1.0,
        propensity=1.0,
        entity=None,
        features='{"amount":1.5,"hour":12.0,"country":"x"}',
    )


@contextmanager
def postgres() -> Iterator[str | None]:
    """URL of a PostgreSQL; None where the machine has none."""
    given = os.environ.get("RARECLASS_BENCH_POSTGRES")
    if given:
        yield given
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgres import NotInstalledError, discard, new_server

    try:
        server = new_server()
    except NotInstalledError:
        yield None
        return
    try:
        yield server.url()
    finally:
        discard(server)


def timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure(url: str, total: int, rounds: int) -> dict[str, float]:
    """Fill a store with ``total`` rows and a tenth of that in labels; return the figures of ours and the peer's."""
    engine = sa.create_engine(sqlalchemy_url(url))
    with Store(url) as store:
        store.migrate()
        spent = 0.0
        for first in range(0, total, BATCH):
            rows = batch(first, BATCH, total)
            seconds, stored = timed(lambda rows=rows: store.add_predictions(rows))
            assert stored == BATCH
            spent += seconds
        again, none = timed(lambda: store.add_predictions(rows))
        assert none == 0
        labels = pd.concat([batch(first, BATCH, total)[["request_id"]] for first in range(0, total // 10, BATCH)])
        labels = labels.assign(label=0, observed_at="2026-04-01", received_at="2026-04-01")
        label_seconds, report = timed(lambda: store.add_labels(labels, model="m"))
        assert report.inserted == len(labels)
        end = START + int(WINDOW_SHARE * DAYS * 86_400_000_000)
        to_time = lambda micros: np.datetime64(micros, "us")  # noqa: E731
        ours, theirs, peer_insert = [], [], []
        for turn in range(rounds):
            seconds, window = timed(lambda: store.window("m", to_time(START), to_time(end)))
            ours.append(seconds)
            with engine.connect() as connection:
                seconds, frame = timed(
                    lambda: pd.read_sql(sa.text(READ), connection, params={"start": START, "end": end})
                )
            theirs.append(seconds)
            assert len(frame) == len(window)
            fresh = batch(total + turn * BATCH, BATCH, total).assign(
                ts=rows["ts"]
            )  # in days that have their partitions
            with engine.begin() as connection:
                work = lambda: fresh.to_sql("predictions", connection, if_exists="append", index=False, chunksize=BATCH)  # noqa: B023, E731
                peer_insert.append(BATCH / timed(work)[0])
    engine.dispose()
    return {
        "insert": total / spent,
        "insert_peer": float(np.median(peer_insert)),
        "again": BATCH / again,
        "labels": len(labels) / label_seconds,
        "read": float(np.median(ours)),
        "read_peer": float(np.median(theirs)),
        "window": len(window),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="stored rows; the full benchmark has 1,000,000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        found["SQLite"] = measure(f"sqlite:///{folder}/store.db", options.rows, options.rounds)
        if url is None:
            print("PostgreSQL is not measured: its server is not installed (Debian: apt-get install postgresql)")
        else:
            found["PostgreSQL"] = measure(url, options.rows, options.rounds)
    print(
        f"| {options.rows:,} stored rows | rows/s in (to_sql) | the same rows again/s | labels/s | rows of the window "
        "| window read s (read_sql) |"
    )
    print("|---|---|---|---|---|---|")
    claims = []
    for name, f in found.items():
        read = f"{f['read']:.2f} ({f['read_peer']:.2f})"
        print(
            f"| {name} | {f['insert']:,.0f} ({f['insert_peer']:,.0f}) | {f['again']:,.0f} | {f['labels']:,.0f} | "
            f"{f['window']:,.0f} | {read} |"
        )
        for claim, ours, peer, ratio in (
            (f"{name}: rows/s in", f["insert"], f["insert_peer"], f["insert"] / f["insert_peer"]),
            (
                f"{name}: seconds of a window read of {f['window']:,.0f} rows",
                f["read"],
                f["read_peer"],
                f["read_peer"] / f["read"],
            ),
        ):
            claims.append(
                {
                    "benchmark": "store",
                    "claim": claim,
                    "ours": round(ours, 3),
                    "peer": round(peer, 3),
                    "ratio": round(ratio, 3),
                    "goal": GOAL,
                    "met": ratio >= GOAL,
                }
            )
    for claim in claims:
        print(json.dumps(claim))
    return claims


if __name__ == "__main__":
    main()
