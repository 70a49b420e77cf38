"""The benchmarks quality and budget: what is kept is not made again, and claims follow the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import budget, quality  # noqa: E402


def small_set(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(target=(x[:, 0] + rng.normal(size=600) > 2).astype(int))
    folder.mkdir()
    frame.to_parquet(folder / "data.parquet", index=False)
    (folder / "meta.json").write_text(json.dumps({"target": "target", "time_column": None, "id_columns": []}))
    return folder


def test_scores_that_were_kept_are_not_made_again(tmp_path: Path) -> None:
    source = quality.sources([small_set(tmp_path / "tiny")], tmp_path)[0]
    calls = []

    def constant(config, ingested, dev, seconds, seed):
        calls.append(seconds)
        return np.linspace(0.1, 0.9, len(ingested.test))

    using = {quality.OURS: constant, quality.DEFAULT: quality.default_xgboost}
    keep = tmp_path / "keep"
    keep.mkdir()
    split, more = next(quality.splits(source, 1))
    first = quality.measure(source, split, more, 5, using, keep)
    again = quality.measure(source, split, more, 5, using, keep)
    assert calls == [5]
    assert again == first
    assert quality.measure(source, split, more, 6, using, keep)[0].ap == first[0].ap
    assert calls == [5, 6], "another budget is another measurement"


def result(source: str, method: str, ap: float, **more: float) -> quality.Result:
    known = {"brier": 0.01, "ratio": 1.0, "seconds": 50.0, "positives": 100} | more
    return quality.Result(source, "random 0", method, ap, **known)


def test_claims_follow_from_the_results() -> None:
    sets = ("one", "two", "three")
    good = [result(each, quality.OURS, 0.55, ratio=1.05) for each in sets]
    good += [result(each, quality.DEFAULT, 0.5, brier=0.02) for each in sets]
    good += [result(each, "AutoGluon", 0.52, brier=0.015) for each in sets]
    assert all(claim["met"] for claim in quality.claims_of(good))
    close = [result(each.source, each.method, 0.54 if each.method == "AutoGluon" else each.ap) for each in good]
    missed = [claim["claim"] for claim in quality.claims_of(close) if not claim["met"]]
    assert len(missed) == 1
    assert "AutoGluon" in missed[0]
    far = [result(each.source, each.method, each.ap, brier=each.brier, ratio=1.2) for each in good]
    assert sum(not claim["met"] for claim in quality.claims_of(far)) == 2


def test_a_run_beyond_its_budget_is_said() -> None:
    found = {10.0: [result("one", quality.OURS, 0.5, seconds=12.0), result("one", "AutoGluon", 0.4)]}
    claims = budget.claims_of(found)
    assert [claim["met"] for claim in claims] == [True, False]
