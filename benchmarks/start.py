"""How long until something happens: `rareclass --help`, and `rareclass diagnose` against reading the file with pandas.

Every turn is a process of its own, so imports count on both sides; the median of the turns counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._common import Claim, announce, claim, process, rareclass, table

GOAL_HELP, GOAL_DIAGNOSE = 0.5, 2.0
FEATURES = 30
SHORT = ["--rows", "1000000", "--turns", "3"]
FULL = ["--rows", "1000000", "--turns", "5"]


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(options.rows, FEATURES)).astype(np.float32)
    y = (rng.random(options.rows) < 1 / (1 + np.exp(6 - x[:, 0] - x[:, 1]))).astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="rareclass-bench-") as temporary:
        work = Path(temporary)
        frame = pd.DataFrame(x, columns=[f"f{at}" for at in range(FEATURES)]).assign(y=y)
        frame.to_csv(work / "rows.csv", index=False, float_format="%.6g")
        frame.to_parquet(work / "rows.parquet", index=False)
        del frame, x
        shown = [rareclass("--help", cwd=work).seconds for _ in range(2 * options.turns + 1)][1:]
        bare = [process([sys.executable, "-c", "pass"], work).seconds for _ in range(2 * options.turns)]
        hello, python = statistics.median(shown), statistics.median(bare)
        lines = [["rareclass --help", f"{hello:.2f}", "", f"python -c pass: {python:.2f} s"]]
        claims = [claim("start", "seconds of rareclass --help", ours=hello, peer=None, goal=GOAL_HELP, rule="at most")]
        for kind in ("csv", "parquet"):
            mine, theirs = [], []
            for _ in range(options.turns):
                read = f"import pandas; pandas.read_{kind}('rows.{kind}')"
                theirs.append(process([sys.executable, "-c", read], work).seconds)
                mine.append(rareclass("diagnose", f"rows.{kind}", "--target", "y", cwd=work).seconds)
            ours, peer = statistics.median(mine), statistics.median(theirs)
            lines.append([f"diagnose {kind}", f"{ours:.2f}", f"{peer:.2f}", f"{ours / peer:.2f}x"])
            text = (
                f"seconds of diagnose on {options.rows:,} x {FEATURES} rows of {kind} against reading the file with "
                "pandas"
            )
            claims.append(claim("start", text, ours=ours, peer=peer, goal=GOAL_DIAGNOSE, rule="at most"))
    table(["command", "ours s", "reading s", ""], lines)
    return announce(claims)


if __name__ == "__main__":
    main()
