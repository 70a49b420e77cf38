"""`rareclass run` against a straight script doing the same steps, and the same pipeline under KFP's local runner.

Both fit one XGBoost with the same settings on the same file: on the flights of the demo, and on rows x 30 random
numbers.
Each is a process of its own from the command to its end; the smaller of two turns counts. Peak memory is the largest
resident set of a process, against the table as float32. The straight script is benchmarks/_straight.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import Claim, Finished, announce, claim, process, rareclass, table

GOAL_TIME, GOAL_MEMORY, GOAL_KFP = 1.1, 6.0, 20.0
FEATURES, BOOTSTRAPS = 30, 200
PARAMS: dict[str, Any] = {
    "max_depth": 4, "eta": 0.15, "subsample": 0.8, "colsample_bytree": 0.7, "reg_lambda": 3.0, "min_child_weight": 1.0,
    "base_score": 0.5, "tree_method": "hist", "max_bin": 256,
}  # fmt: skip
SHORT = ["--rows", "200000", "--turns", "1"]
FULL = ["--rows", "1000000", "--turns", "1"]


def flights(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The rows of the demo as a file that both sides read."""
    from rareclass.adapters.tables.demos import DEMOS

    path = folder / "flights.parquet"
    DEMOS["flights"]().to_parquet(path, index=False)
    return path, {"target": "cancelled", "time": "sched_time"}


def numbers(folder: Path, rows: int) -> tuple[Path, dict[str, Any]]:
    """Random numbers with 1 % positives that some of them explain."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    y = (rng.random(rows) < 1 / (1 + np.exp(6.2 - x[:, 0] - x[:, 1] * x[:, 2]))).astype(np.int64)
    path = folder / f"numbers-{rows}.parquet"
    pd.DataFrame(x, columns=[f"f{at}" for at in range(FEATURES)]).assign(y=y).to_parquet(path, index=False)
    return path, {"target": "y", "time": None}


def configuration(path: Path, roles: dict[str, Any], folder: Path, rounds: int, patience: int) -> Path:
    """One candidate, finished whatever it takes; everything else of a run as it is."""
    recipe = {"name": "one", "learner": "xgboost", "params": {**PARAMS, "rounds": rounds, "patience": patience}}
    raw = {
        "name": "bench",
        "data": {"path": str(path), **{key: value for key, value in roles.items() if value}},
        # candidate 0 of the plan is always fitted; replaying a recorded plan of one candidate leaves it out
        "search": {"seconds": 3600, "tune": False, "ensemble": "none", "replay": str(folder / "replay.json")},
        "threshold": {"objective": "f1", "calibration": "isotonic"},
        "evaluate": {"bootstraps": BOOTSTRAPS},
        "compute": {"threads": 2},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
    }
    plan = {"seed": 0, "trials": [{"candidate": recipe}]}
    (folder / "replay.json").write_text(json.dumps(plan))
    (folder / "config.json").write_text(json.dumps(raw))
    return folder / "config.json"


def pair(name: str, path: Path, roles: dict[str, Any], work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run ours and the script on one file, in turns."""
    rows = len(pd.read_parquet(path, columns=[roles["target"]]))
    from rareclass.core.training import seeds_worth

    best: dict[str, Finished] = {}
    summary: dict[str, Any] = {}
    peer: dict[str, float] = {}
    for turn in range(options.turns):
        folder = work / f"{name}-{turn}"
        folder.mkdir()
        config = configuration(path, roles, folder, options.rounds, options.patience)
        mine = rareclass("run", "-c", config, "--out", folder / "out", "--quiet", cwd=folder)
        summary = json.loads((folder / "out" / "summary.json").read_text())
        settings = {
            "path": str(path),
            **roles,
            "params": PARAMS,
            "rounds": options.rounds,
            "patience": options.patience,
            "bootstraps": BOOTSTRAPS,
            "tracking": f"sqlite:///{folder}/straight.db",
            "seeds": seeds_worth("xgboost", rows),
        }
        (folder / "straight.json").write_text(json.dumps(settings))
        theirs = process([sys.executable, Path(__file__).with_name("_straight.py"), folder / "straight.json"], folder)
        peer = json.loads(theirs.output.strip().splitlines()[-1])
        for who, done in (("ours", mine), ("peer", theirs)):
            if who not in best or done.seconds < best[who].seconds:
                best[who] = done
        print(f"{name}: ours {mine.seconds:.1f} s, script {theirs.seconds:.1f} s", file=sys.stderr, flush=True)
    return {"name": name, "rows": rows, **best, "summary": summary, "straight": peer}


def under_kfp(path: Path, roles: dict[str, Any], work: Path, options: argparse.Namespace) -> float:
    """Seconds of the same configuration under KFP's local runner."""
    folder = work / "kfp"
    folder.mkdir()
    config = configuration(path, roles, folder, options.rounds, options.patience)
    return rareclass("run", "-c", config, "--out", folder / "out", "--quiet", "--runner", "kfp", cwd=folder).seconds


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--patience", type=int, default=20)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rareclass-bench-") as temporary:
        work = Path(temporary)
        demo, roles = flights(work)
        found = [pair("demo", demo, roles, work, options)]
        found.append(pair("numbers", *numbers(work, options.rows), work, options))
        kfp = under_kfp(demo, roles, work, options)
    lines, claims = [], []
    for each in found:
        mine, peer = each["ours"], each["peer"]
        width = FEATURES if each["name"] == "numbers" else "demo"
        size = f"{each['rows']:,} x {width}" if each["name"] == "numbers" else f"demo, {each['rows']:,} rows"
        aps = f"{each['summary']['metrics']['ap']:.4f} / {each['straight']['ap']:.4f}"
        lines.append(
            [
                size,
                f"{mine.seconds:.1f}",
                f"{peer.seconds:.1f}",
                f"{mine.seconds / peer.seconds:.2f}",
                f"{mine.peak / 2**20:.0f}",
                f"{peer.peak / 2**20:.0f}",
                aps,
            ]
        )
        text = f"rareclass run on {size}: seconds against a straight script of the same steps"
        claims.append(claim("pipeline", text, ours=mine.seconds, peer=peer.seconds, goal=GOAL_TIME, rule="at most"))
    table(
        [
            "rows",
            "ours s",
            "script s",
            "ratio",
            "our peak MiB",
            "script's peak MiB",
            "AP on its own test rows (ours / script)",
        ],
        lines,
    )
    steps = found[1]["summary"]["seconds"]
    print("seconds by step: " + ", ".join(f"{step} {value:.1f}" for step, value in steps.items()))
    print(f"the demo under --runner kfp: {kfp:.1f} s")
    big = found[1]
    memory = big["rows"] * FEATURES * 4
    text = f"peak memory of rareclass run on {big['rows']:,} x {FEATURES}, as multiple of the float32 table (MiB)"
    claims.append(
        claim("pipeline", text, ours=big["ours"].peak / 2**20, peer=memory / 2**20, goal=GOAL_MEMORY, rule="at most")
    )
    more = kfp - found[0]["ours"].seconds
    text = "seconds that --runner kfp takes more than one process, on the demo"
    claims.append(claim("pipeline", text, ours=more, peer=None, goal=GOAL_KFP, rule="at most"))
    return announce(claims)


if __name__ == "__main__":
    main()
