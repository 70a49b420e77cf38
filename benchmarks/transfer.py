"""What a neighbour's labels are worth where few rows of the target are labelled: average precision on its other rows.

    python -m benchmarks transfer [--seeds N] [--rows N] [--only WORD] [DIR ...]

DIR : folders of sets as `quality` takes them, of which those in TRANSFERS are used; without any, the flights that a
package ships, by airport. Half of the target (at random, stratified) is the test; of the other half, k rows of the rare
class and at most ``--rows`` others are labelled, and at most ten times as many rows of the neighbour. What is taken is
chosen by the product's own rule on held-out rows of the target. The rule was chosen on the transfers marked so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks._common import THREADS, Claim, announce, claim, table
from benchmarks.scarce import known_and_test

if TYPE_CHECKING:
    from rareclass.core.dataset import Rows
    from rareclass.core.transfer import Lender

POSITIVES = (10, 30)
GAIN, LOSS = 0.10, -0.02
"""Over the target's rows alone at 10 positives, on average; against the better of the two, at worst"""
SHORT = ["--seeds", "1", "--rows", "1200"]
FULL = ["--seeds", "3", "--rows", "2000"]


@dataclass(frozen=True)
class Case:
    """A neighbour and a target cut from one set. cut : table -> rows of the neighbour, rows of the target, columns that
    say which is which and are no features
    """

    name: str
    folder: str
    cut: Callable[[pd.DataFrame], tuple[Any, Any, list[str]]]
    chosen_on: bool = False


def _by(column: str, source: str, target: str) -> Callable[[pd.DataFrame], tuple[Any, Any, list[str]]]:
    def cut(frame: pd.DataFrame) -> tuple[Any, Any, list[str]]:
        said = frame[column].astype(str)
        return said == source, said == target, [column]

    return cut


def _north(first: bool) -> Callable[[pd.DataFrame], tuple[Any, Any, list[str]]]:
    def cut(frame: pd.DataFrame) -> tuple[Any, Any, list[str]]:
        north = frame["lat"] > frame["lat"].median()
        return (north, ~north, []) if first else (~north, north, [])

    return cut


def _earlier(frame: pd.DataFrame) -> tuple[Any, Any, list[str]]:
    early = frame["date"].rank(method="first") <= 0.7 * len(frame)
    return early, ~early, []


CASES = (
    Case("bank, cellular to telephone", "bank_marketing", _by("contact", "cellular", "telephone")),
    Case("thyroid, women to men", "thyroid_sick", _by("sex", "F", "M")),
    Case("thyroid, other to SVI", "thyroid_sick", _by("referral_source", "other", "SVI")),
    Case("machines, L to M", "ai4i2020", _by("Type", "L", "M")),
    Case("machines, L to H", "ai4i2020", _by("Type", "L", "H")),
    Case("flights EWR to LGA", "flights_cancelled", _by("origin", "EWR", "LGA")),
    Case("flights LGA to JFK", "flights_cancelled", _by("origin", "LGA", "JFK"), chosen_on=True),
    Case("flights JFK to LGA", "flights_cancelled", _by("origin", "JFK", "LGA"), chosen_on=True),
    Case("flights EWR to JFK", "flights_cancelled", _by("origin", "EWR", "JFK"), chosen_on=True),
    Case("fires north to south", "korea_firms_cellday_010", _north(True), chosen_on=True),
    Case("fires south to north", "korea_firms_cellday_010", _north(False), chosen_on=True),
    Case("bank, earlier to later", "bank_marketing", _earlier, chosen_on=True),
    Case("bank, cellular to unknown", "bank_marketing", _by("contact", "cellular", "unknown"), chosen_on=True),
)
"""What can be cut from the sets; the rule that decides was chosen on those that are marked."""


def frame_of(case: Case, folders: list[Path]) -> pd.DataFrame | None:
    """The whole set of a case, with its truth in ``target``; None where it is not at hand."""
    for folder in folders:
        for path in (folder / case.folder / "data.parquet", folder / "data.parquet"):
            if path.is_file() and path.parent.name == case.folder:
                return pd.read_parquet(path)
    if folders or case.folder != "flights_cancelled":
        return None
    import rareclass

    return rareclass.load_demo("flights").rename(columns={"cancelled": "target"})


def rows_of(case: Case, frame: pd.DataFrame, work: Path) -> tuple[Rows, Rows]:
    """Rows of the neighbour and of the target, read as a run reads them."""
    from rareclass.adapters import tables
    from rareclass.config import parse
    from rareclass.core.dataset import concatenate

    source, target, apart = case.cut(frame)
    times = [name for name in frame if pd.api.types.is_datetime64_any_dtype(frame[name].dtype)]
    plain = frame.drop(columns=[*apart, *times])
    plain[source].to_parquet(work / "source.parquet", index=False)
    plain[target].to_parquet(work / "target.parquet", index=False)
    config = parse(
        {
            "name": "transfer",
            "data": {"path": str(work / "target.parquet"), "target": "target"},
            "split": {"kind": "stratified"},
            "transfer": {"path": str(work / "source.parquet"), "rows": 200_000},
        }
    )
    found = tables.ingest(config)
    return tables.lent_rows(config, found.schema).rows, concatenate([found.train, found.validation, found.test])


def measured(source: Rows, target: Rows, most: int, k: int, seed: int) -> dict[str, float]:
    """Average precision on the target's other rows: every way by itself, and the choice; empty with too few rows."""
    from rareclass.config import parse
    from rareclass.core import planning, selection, splitting, training, transfer
    from rareclass.core.candidates import Candidate
    from rareclass.core.hashing import content_groups
    from rareclass.core.ranking import average_precision

    rng = np.random.default_rng([seed, k])
    parts = known_and_test(target, rng, k, most, most_test=20_000)
    if parts is None:
        return {}
    known, test = parts
    lent = source.take(np.sort(rng.permutation(len(source))[: 10 * most]))
    lent = transfer.without_twins(lent, [known, test])
    lender: Lender = transfer.of_rows("neighbour", lent, known, None, seed=seed, threads=THREADS)
    own = [Candidate("xgboost", "xgboost"), Candidate("scarce", "scarce")]
    folds = splitting.stratified_folds(known.y, content_groups(known.x), folds=5, seed=seed)
    effort = training.Effort(THREADS)
    trained = [
        training.train_candidate(each, known, folds, seed=seed, effort=effort)
        for each in (*own, *planning.with_neighbour(lender))
    ]
    settings: dict[str, Any] = {"name": "transfer", "data": {"path": "memory", "target": "y"}}
    config = parse({**settings, "search": {"ensemble": "none"}})

    def judged(weights: dict[str, float]) -> float:
        fitted = training.refit(trained, weights, known, seed=seed, threads=THREADS, once=True)
        return average_precision(test.y, fitted.score(test.x))

    found = {one.candidate.name: judged({one.candidate.name: 1.0}) for one in trained}
    own_only = selection.select(trained[:2], known, config=config, seed=seed)
    chosen = selection.select(trained, known, config=config, seed=seed)
    return {**found, "target only": found[own_only.winner], "chosen": found[chosen.winner]}


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print average precision by transfer, and the claims on those that the rule was not chosen on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the target's other class that are labelled")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    results: list[tuple[Case, int, dict[str, float]]] = []
    for case in CASES:
        frame = frame_of(case, options.folders) if options.only in case.name else None
        if frame is None:
            continue
        with tempfile.TemporaryDirectory() as work:
            source, target = rows_of(case, frame, Path(work))
        for k in POSITIVES:
            runs = [measured(source, target, options.rows, k, seed) for seed in range(options.seeds)]
            if runs := [each for each in runs if each]:
                means = {name: float(np.mean([each[name] for each in runs])) for name in runs[0]}
                results.append((case, k, means))
                print(case.name, k, {name: round(value, 3) for name, value in means.items()}, flush=True)
    names = list(results[0][2]) if results else []
    rows = [
        [case.name + (" *" if case.chosen_on else ""), k, *(f"{means[name]:.3f}" for name in names)]
        for case, k, means in results
    ]
    table(["transfer (* the rule was chosen on it)", "positives", *names], rows)
    claims = []
    for k in POSITIVES:
        fresh = [means for case, number, means in results if number == k and not case.chosen_on]
        if not fresh:
            continue
        gains = [each["chosen"] - each["target only"] for each in fresh]
        worst = min(each["chosen"] - max(each["target only"], each["neighbour-source"]) for each in fresh)
        said = f"of {len(fresh)} transfers that the rule was not chosen on, at {k} positives of the target"
        gain = f"mean AP gained over the target's rows alone, {said}"
        goal = GAIN if k == POSITIVES[0] else 0.0
        claims.append(claim("transfer", gain, ours=float(np.mean(gains)), peer=None, goal=goal, rule="at least"))
        loss = f"worst AP against the better of the target's rows and the neighbour's alone, {said}"
        claims.append(claim("transfer", loss, ours=float(worst), peer=None, goal=LOSS, rule="at least"))
    return announce(claims)
