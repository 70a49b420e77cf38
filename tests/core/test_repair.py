"""The cheap repairs: their gain has the interval that the configuration asks for."""

from __future__ import annotations

import ast
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import rareclass
from rareclass.config import CostsSettings, ThresholdSettings
from rareclass.core import repair, unlabelled
from rareclass.core.bootstrap import Bootstrap
from rareclass.core.costs import cost_arrays

SOURCE = Path(rareclass.__file__).parent


@pytest.fixture(scope="module")
def rows() -> repair.MaturedRows:
    rng = np.random.default_rng(0)
    y = (rng.random(4000) < 0.05).astype(np.int64)
    score = 1 / (1 + np.exp(-(rng.normal(np.where(y == 1, 1.0, -1.0)) - 2)))
    time = np.datetime64("2026-01-01", "us") + np.arange(4000) * np.timedelta64(900, "s")
    return repair.MaturedRows(y, score, time, None, cost_arrays(CostsSettings(), float(y.mean()), None))


def widths(rows: repair.MaturedRows, confidence: float) -> list[float]:
    """Width of every interval that a repair or an estimate without labels says at a confidence."""
    fit, judge = rows.take(np.arange(2000)), rows.take(np.arange(2000, 4000))
    bootstrap = Bootstrap(100, confidence, 0)
    settings, before = ThresholdSettings(calibration="platt"), {"default": 0.5}
    moved = repair.rethreshold(
        fit,
        judge,
        newest=datetime(2026, 1, 15),
        before=before,
        settings=settings,
        shifted=False,
        bootstrap=bootstrap,
    )
    again = repair.recalibrate(
        fit, judge, fit.score**2, judge.score**2, before=before, settings=settings, bootstrap=bootstrap
    )
    prevalence = unlabelled.prevalence(judge.score, fit.y, fit.score, bootstrap=bootstrap)
    assert prevalence is not None
    return [found.high - found.low for found in (moved.gain, again.gain, prevalence)]


def test_intervals_of_repairs_and_of_the_prevalence_without_labels_take_the_confidence_that_is_set(rows):
    half, usual = widths(rows, 0.5), widths(rows, 0.95)
    assert all(0 < narrow < 0.6 * wide for narrow, wide in zip(half, usual, strict=True)), (half, usual)


def test_no_interval_of_the_product_has_a_level_of_its_own():
    levels = {0.025, 0.975}
    fixed = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value in levels
    ]
    assert fixed == []
