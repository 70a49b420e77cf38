"""Scores of a version under Spark: `mlflow.pyfunc.spark_udf` in local mode against `rareclass score` on the same rows.

Left out where there is no pyspark (`pip install pyspark`) or no Java. The seconds are those of one call each; what
counts is that no score differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._common import THREADS, Claim, announce, claim, process, rareclass, table

SHORT = ["--rows", "20000"]
_SPARK = """
import sys, time
import mlflow
from pyspark.sql import SparkSession
path, out, uri, tracking, threads = sys.argv[1:]
mlflow.set_tracking_uri(tracking)
spark = SparkSession.builder.master(f"local[{threads}]").config("spark.ui.enabled", "false").getOrCreate()
rows = spark.read.parquet(path)
columns = [name for name in rows.columns if name not in ("fraud", "id")]
start = time.perf_counter()
score = mlflow.pyfunc.spark_udf(spark, uri, result_type="score double, decision long", env_manager="local")
scored = rows.withColumn("answer", score(*columns)).select("id", "answer.score", "answer.decision")
scored.write.parquet(out)
print(time.perf_counter() - start)
spark.stop()
"""


def generate(path: Path, rows: int) -> None:
    """Write rows with numbers, a category, missing values and an id; 1 in 50 of the rare class."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({f"f{at}": rng.standard_normal(rows) for at in range(8)})
    frame["shop"] = rng.choice(["books", "cars", "food"], rows)
    frame.loc[rng.random(rows) < 0.1, "f3"] = np.nan
    frame.loc[rng.random(rows) < 0.1, "shop"] = None
    odds = 1.5 * frame["f0"] + frame["f1"] * (frame["shop"] == "cars") - 5
    frame["fraud"] = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    frame["id"] = np.arange(rows)
    frame.to_parquet(path, index=False)


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claim; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        print("spark: left out, because pyspark (pip install pyspark) or Java is not installed")
        return []
    with tempfile.TemporaryDirectory(prefix="rareclass-bench-") as temporary:
        work = Path(temporary)
        path, tracking = work / "rows.parquet", f"sqlite:///{work}/mlflow.db"
        generate(path, options.rows)
        raw = {
            "name": "spark",
            "data": {"path": str(path), "target": "fraud", "id": "id"},
            "search": {"seconds": 20, "only": {"learner": "xgboost"}},
            "gate": {"mode": "dry_run"},
            "promotion": {"mode": "immediate"},
            "tracking": {"uri": tracking},
            "store": {"url": f"sqlite:///{work}/store.db"},
        }
        (work / "config.json").write_text(json.dumps(raw))
        rareclass("run", "-c", work / "config.json", "--out", work / "out", "--quiet", cwd=work)
        model, scored = "models:/spark@champion", work / "ours.parquet"
        ours = rareclass("score", "--tracking-uri", tracking, "--model", model, path, scored, cwd=work)
        command = [sys.executable, "-c", _SPARK, path, work / "theirs", model, tracking, str(THREADS)]
        output = process(command, work, PYSPARK_PYTHON=sys.executable).output
        mine = pd.read_parquet(scored).sort_values("id")
        theirs = pd.read_parquet(work / "theirs").sort_values("id")
        apart = float(np.abs(mine["score"].to_numpy() - theirs["score"].to_numpy()).max())
        same = bool((mine["decision"].to_numpy() == theirs["decision"].to_numpy()).all())
    table(
        ["scored by", "rows", "s", "largest difference"],
        [
            ["rareclass score", f"{len(mine):,}", f"{ours.seconds:.1f}", "-"],
            ["spark_udf, local mode", f"{len(theirs):,}", f"{float(output.split()[-1]):.1f}", f"{apart:.1e}"],
        ],
    )
    text = (
        f"largest difference of a score under Spark from that of rareclass score, {options.rows:,} rows; same decisions"
    )
    return announce(
        [claim("spark", text, ours=apart, peer=None, goal=0.0, rule="at most", holds=same and len(mine) == len(theirs))]
    )


if __name__ == "__main__":
    main()
