"""More rows than memory: `rareclass run` below `compute.memory` on generated Parquet, and `rareclass score` of all of
it.

Rows x 30 numbers, 1 in 1,000 of the rare class, which nine in ten of what can be learned puts into the tails of
columns. Peers: pyarrow merely reading the same file with the same threads, the bare predict of the same booster over
the same file, and, where the table fits (`--whole`), the same run on all rows. Peak memory is the largest resident set
of the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks._common import THREADS, Claim, Finished, announce, claim, process, rareclass, table

SHORT = ["--rows", "300000", "--memory", "520MiB", "--no-whole"]
FULL = ["--rows", "5000000", "--memory", "1GiB"]
FEATURES, BLOCK = 30, 250_000
GOAL_MEMORY, GOAL_PASSES, GOAL_AP, GOAL_SCORE = 1.25, 4.0, 0.005, 1.5
_SCAN = """
import sys, time, pyarrow as pa, pyarrow.dataset as ds
pa.set_cpu_count(int(sys.argv[2]))
start = time.perf_counter()
for batch in ds.dataset(sys.argv[1]).scanner(batch_size=65536).to_batches():
    pass
print(time.perf_counter() - start)
"""
_PREDICT = """
import sys, numpy as np, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq, xgboost as xgb
from pathlib import Path
path, out, model, threads, columns = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5].split(",")
pa.set_cpu_count(threads)
boosters = [xgb.Booster(model_file=str(each)) for each in sorted(Path(model).rglob("*.ubj"))]
for booster in boosters:
    booster.set_param({"nthread": threads})
writer = None
for batch in ds.dataset(path).scanner(batch_size=65536).to_batches():
    if not batch.num_rows:
        continue
    x = np.column_stack([batch.column(name).to_numpy() for name in columns])
    score = np.mean([booster.inplace_predict(x) for booster in boosters], axis=0)
    made = pa.Table.from_batches([batch.append_column("score", pa.array(score))])
    writer = writer or pq.ParquetWriter(out, made.schema)
    writer.write_table(made)
writer.close()
"""


def generate(path: Path, rows: int) -> None:
    """Write the rows, a block at a time, as pyarrow writes Parquet by itself."""
    names = [f"f{at}" for at in range(FEATURES)]
    schema = pa.schema([*((name, pa.float32()) for name in names), ("fraud", pa.int8()), ("id", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for number, start in enumerate(range(0, rows, BLOCK)):
            count = min(BLOCK, rows - start)
            rng = np.random.default_rng([7, number])
            x = rng.standard_normal((count, FEATURES), dtype=np.float32)
            tails = (x[:, :9] > 1.9).sum(axis=1) + 0.5 * x[:, 9]
            fraud = rng.random(count) < 1 / (1 + np.exp(9.05 - 2.2 * tails))
            columns = [*x.T, fraud.astype(np.int8), np.arange(start, start + count)]
            writer.write_batch(
                pa.record_batch([pa.array(each) for each in columns], schema=schema), row_group_size=BLOCK
            )


def configuration(path: Path, folder: Path, memory: str) -> Path:
    """One XGBoost with the settings of its size; everything else of a run as it is."""
    folder.mkdir()
    raw = {
        "name": "scale",
        "data": {"path": str(path), "target": "fraud", "id": "id"},
        "search": {"seconds": 3600, "only": {"learner": "xgboost"}},
        "evaluate": {"bootstraps": 200},
        "gate": {"mode": "dry_run"},
        "compute": {"memory": memory, "threads": THREADS},
        "promotion": {"mode": "immediate"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return folder / "config.json"


def trained(path: Path, folder: Path, memory: str) -> tuple[Finished, dict[str, Any]]:
    """Run the configuration; return the process and its summary."""
    done = rareclass("run", "-c", configuration(path, folder, memory), "--out", folder / "out", "--quiet", cwd=folder)
    return done, json.loads((folder / "out" / "summary.json").read_text())


def read_seconds(path: Path, folder: Path) -> float:
    """Seconds in which pyarrow alone reads the file, in a process of its own."""
    return float(process([sys.executable, "-c", _SCAN, path, str(THREADS)], folder).output.split()[-1])


def say(text: str) -> None:
    """Tell how far it is, beside the results."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory", default="768MiB", help="compute.memory of the streamed run")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=None, help="also fit all rows")
    parser.add_argument("--folder", default=None, help="where the files are made, for a while")
    options = parser.parse_args(arguments)
    from rareclass.config import parse_size

    bound = int(str(parse_size(options.memory)))
    whole = options.rows <= 5_000_000 if options.whole is None else options.whole
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(prefix="rareclass-bench-", dir=options.folder) as temporary:
        work = Path(temporary)
        path = work / "rows.parquet"
        generate(path, options.rows)
        scan = min(read_seconds(path, work) for _ in range(2))
        say(f"pyarrow reads {options.rows:,} x {FEATURES} in {scan:.1f} s")
        done, summary = trained(path, work / "streamed", options.memory)
        scan = min(scan, read_seconds(path, work))
        seconds, size = summary["seconds"], f"{options.rows:,} x {FEATURES}"
        say(f"run: {done.seconds:.1f} s, {done.peak >> 20} MiB, {summary['drawn']}")
        scored = rareclass("score", "--model", summary["uri"], path, work / "scored.parquet", cwd=work / "streamed")
        rows = ds.dataset(work / "scored.parquet").to_table(columns=["score", "fraud"])
        ratio = pc.mean(rows["score"]).as_py() / pc.mean(rows["fraud"]).as_py()
        del rows
        (work / "scored.parquet").unlink()
        from rareclass.adapters.registry import load_model

        model = load_model(summary["uri"], f"sqlite:///{work}/streamed/mlflow.db")
        (work / "model").mkdir()
        for number, member in enumerate(model.learner.members):
            member.fitted.booster.save_model(work / "model" / f"{number}.ubj")
        command = [
            sys.executable,
            "-c",
            _PREDICT,
            path,
            work / "bare.parquet",
            work / "model",
            THREADS,
            ",".join(model.schema.names),
        ]
        bare = process(command, work).seconds
        (work / "bare.parquet").unlink()
        lines = [
            [
                "streamed",
                options.memory,
                f"{done.seconds:.0f}",
                f"{seconds['ingest']:.1f}",
                f"{done.peak / 2**20:.0f}",
                (
                    f"{summary['metrics']['ap']:.4f} [{summary['metrics']['ap_low']:.4f}, "
                    f"{summary['metrics']['ap_high']:.4f}]"
                ),
                f"{summary['rows']['refit']:,}",
            ],
        ]
        if whole:
            other, full = trained(path, work / "whole", "64GiB")
            lines.append(
                [
                    "all rows",
                    "-",
                    f"{other.seconds:.0f}",
                    f"{full['seconds']['ingest']:.1f}",
                    f"{other.peak / 2**20:.0f}",
                    f"{full['metrics']['ap']:.4f} [{full['metrics']['ap_low']:.4f}, {full['metrics']['ap_high']:.4f}]",
                    f"{full['rows']['refit']:,}",
                ]
            )
            ours, theirs = summary["metrics"]["ap"], full["metrics"]["ap"]  # the same test rows: the split is the same
            claims.append(
                claim(
                    "scale",
                    f"average precision lost on the same test rows by sampling, {size} at {options.memory}",
                    ours=theirs - ours,
                    peer=None,
                    goal=GOAL_AP,
                    rule="at most",
                )
            )
    table(["run", "compute.memory", "s", "two passes s", "peak MiB", "AP of the test rows", "rows fitted"], lines)
    print(f"seconds by step: {', '.join(f'{step} {value:.1f}' for step, value in seconds.items())}")
    print(f"drawn: {json.dumps(summary['drawn'])}; mean score / prevalence over all rows {ratio:.3f}")
    claims += [
        claim(
            "scale",
            f"peak memory of rareclass run on {size}, as multiple of compute.memory (MiB)",
            ours=done.peak / 2**20,
            peer=bound / 2**20,
            goal=GOAL_MEMORY,
            rule="at most",
        ),
        claim(
            "scale",
            f"seconds of the two passes before training on {size}, against pyarrow reading the file once",
            ours=seconds["ingest"],
            peer=scan,
            goal=GOAL_PASSES,
            rule="at most",
        ),
        claim(
            "scale",
            f"mean score / prevalence after sampling, {size}: at most",
            ours=ratio,
            peer=None,
            goal=1.1,
            rule="at most",
        ),
        claim(
            "scale",
            f"mean score / prevalence after sampling, {size}: at least",
            ours=ratio,
            peer=None,
            goal=0.9,
            rule="at least",
        ),
        claim(
            "scale",
            f"seconds of rareclass score on {size}, against the bare predict",
            ours=scored.seconds,
            peer=bare,
            goal=GOAL_SCORE,
            rule="at most",
        ),
    ]
    return announce(claims)


if __name__ == "__main__":
    main()
