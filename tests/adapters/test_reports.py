"""Both reports in a real browser: nothing sticks out on a phone or a desktop, in light or dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import missing
from rareclass.adapters import reports
from rareclass.adapters.reports.detection import transfer_sentence
from rareclass.adapters.reports.page import amount, estimate, precise
from rareclass.config import parse
from rareclass.services.training import run

WIDTHS = (390, 1280)
UNDER = {"name": "under", "resample": [{"name": "random_under", "ratio": 3}]}
UNDER_AND_SMOTE = {"name": "both", "resample": [{"name": "random_under", "ratio": 3}, {"name": "smote", "ratio": 2}]}
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 19)"}
PROBE = """<script>addEventListener('load', () => setTimeout(() => {
  const root = document.documentElement, edge = root.clientWidth
  const folded = document.querySelectorAll('details:not([open])').length, first = root.scrollHeight
  for (const one of document.querySelectorAll('details')) one.open = true
  setTimeout(() =>
  parent.postMessage({
    name: location.hash.slice(1), inner: innerWidth, scroll: root.scrollWidth, paper: getComputedStyle(document.body).backgroundColor,
    charts: [...document.querySelectorAll('.main-svg')].map(e => e.getBoundingClientRect().right - edge),
    text: document.body.innerText.length, folded: folded, first: first, whole: root.scrollHeight,
  }, '*'), 1000)
}, 1500))</script>"""  # noqa: E501


def browser() -> str:
    """A Chromium on this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("chromium")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything about a small real run that has slices, an impossible point, a thinned test, time and windows."""
    folder = tmp_path_factory.mktemp("reports")
    rng = np.random.default_rng(0)
    a, kind = rng.normal(size=2000), rng.choice(["a category with a long name", "y"], size=2000)
    odds = -4 + 1.8 * a + (kind == "y")
    frame = pd.DataFrame({"a": a, "kind": kind, "target": (rng.random(2000) < 1 / (1 + np.exp(-odds))).astype(int)})
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(2000), unit="h")
    frame.to_parquet(folder / "rows.parquet")
    config = parse(
        {
            "name": "test",
            "data": {"path": str(folder / "rows.parquet"), "target": "target", "time": "when"},
            "split": {"prequential": 2},
            "search": {"trials": 3, "tune": False, "ensemble": "none", "candidates": [UNDER, UNDER_AND_SMOTE]},
            "evaluate": {"bootstraps": 50, "test_ratio": 5, "slices": ["kind"]},
            "threshold": {
                "points": [{"name": "dream", "objective": "f1", "min_recall": 0.999, "min_precision": 0.999}]
            },
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
        }
    )
    run.run(config, folder / "out")
    found: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def replayed() -> dict[str, Any]:
    """What replay.json holds, with a missing number, a refusal and reasons as long as live ones are."""
    periods = [
        {
            "start": f"2013-07-{day:02}T00:00:00",
            "end": f"2013-07-{day + 7:02}T00:00:00",
            "rows": 6192,
            "labelled": 6100,
            "positives": 174,
            "version": "1",
            "ap": None if day == 8 else 0.107,
            "ap_low": None if day == 8 else 0.02,
            "ap_high": None if day == 8 else 0.2,
            "ap_estimated": 0.29,
            "prevalence": 0.028,
            "precision": 0.1,
            "recall": 0.54,
            "cost": 478200.0,
            "drifted_features": ["temp"],
            "regime": "ample",
            "learned_positives": 3100,
        }
        for day in (1, 8, 15)
    ]
    reason = "; ".join(f"column 'a_long_name_{n}': 53% missing, 0% in the reference" for n in range(8))
    actions = [
        {
            "time": "2013-07-08T00:00:00+00:00",
            "kind": kind,
            "from_version": "1",
            "to_version": None,
            "outcome": outcome,
            "reason": reason,
            "numbers": {},
        }
        for kind, outcome in (("page", "done"), ("retrain", "refused"))
    ]
    return {
        "name": "flights",
        "train_until": "2013-07-01T00:00:00",
        "step": "1w",
        "first": "xgboost",
        "label_delay": "1d",
        "unlabelled": False,
        "periods": periods,
        "alerts": [{"time": "2013-07-08T00:00:00", "name": "RareclassFeatureDrift"}],
        "actions": actions,
        "verdicts": [{"time": "2013-07-08T00:00:00", "verdict": "page", "reasons": [reason], "evidence": {}}],
        "money": {
            "currency": "USD",
            "ours": 8.7e6,
            "never": 8.9e6,
            "weekly": 9.1e6,
            "saved_vs_never": 2e5,
            "saved_vs_weekly": 4e5,
        },
    }


def seen(pages: dict[str, str], folder: Path, scheme: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Lay out every page at every width in one browser; frames are as wide as asked, which windows are not."""
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frames = "".join(
        f"<iframe style='border:0' width={width} height=900 src='{name}.html#{name}'></iframe>"
        for name in pages
        for width in WIDTHS
    )
    (folder / "all.html").write_text(
        "<html style='color-scheme: light dark'><pre id=seen></pre><script>const all = []; "
        "addEventListener('message', e => "
        f"{{ all.push(e.data); document.getElementById('seen').textContent = JSON.stringify(all) "
        f"}})</script>{frames}</html>"
    )
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=20000",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--dump-dom",
        (folder / "all.html").as_uri(),
    ]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return {(each["name"], each["inner"]): each for each in json.loads(html.unescape(found[1]) or "[]")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone_or_a_desktop(
    scheme: str, trained: dict[str, Any], replayed: dict[str, Any], tmp_path: Path
) -> None:
    pages = {"training": reports.training_report(trained), "replay": reports.replay_report(replayed)}
    found = seen(pages, tmp_path, scheme)
    assert set(found) == {(name, width) for name in pages for width in WIDTHS}
    for page, laid_out in found.items():
        assert laid_out["scroll"] <= laid_out["inner"], f"{page} scrolls sideways"
        assert laid_out["charts"], f"{page} drew no chart"
        assert max(laid_out["charts"]) <= 0, f"a chart of {page} is cut off"
        assert laid_out["paper"] == PAPER[scheme]
        assert laid_out["text"] > 500
    for width in WIDTHS:
        short = found["training", width]
        assert short["folded"] >= 8
        assert short["first"] < 0.6 * short["whole"], "what is folded takes more room than what is not"


def test_a_page_that_is_too_wide_is_noticed(replayed: dict[str, Any], tmp_path: Path) -> None:
    wide = reports.replay_report(replayed).replace("<h1>", "<h1 style='width: 2000px'>")
    found = seen({"wide": wide}, tmp_path, "light")
    assert all(each["scroll"] > each["inner"] for each in found.values())
    assert len(found) == len(WIDTHS)


def test_the_reports_load_nothing_from_elsewhere(trained: dict[str, Any], replayed: dict[str, Any]) -> None:
    for text in (reports.training_report(trained), reports.replay_report(replayed)):
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(?!data:)", text)


def test_the_report_says_what_cannot_be_met_and_what_a_thinned_test_flatters(trained: dict[str, Any]) -> None:
    text = html.unescape(reports.training_report(trained))
    assert "no threshold reaches precision >= 0.999" in text
    natural, thinned = (trained["evaluation"][key]["precision"]["value"] for key in ("metrics", "thinned"))
    assert natural < thinned
    assert "thinned, 1:5" in text
    assert f"{thinned:.3f}" in text
    assert "thinned, 1:5" not in reports.training_report(
        {**trained, "evaluation": {**trained["evaluation"], "thinned": {}}}
    )


def test_text_of_the_data_is_not_markup(trained: dict[str, Any]) -> None:
    gate = {**trained["gate"], "reasons": ["<script>alert(1)</script>"]}
    assert "<script>alert(1)" not in reports.training_report({**trained, "gate": gate})


def test_every_number_that_is_computed_has_a_place_in_the_report(trained: dict[str, Any]) -> None:
    text = html.unescape(reports.training_report(trained))
    evaluation, summary = trained["evaluation"], trained["summary"]
    for name in (
        "Brier score",
        "expected calibration error",
        "macro F1",
        "micro F1",
        "G-mean",
        "Prevalence by week",
        "How steady it is",
        "The best rows of each day",
        "What drives the scores",
        "Cost and alerts against the threshold",
    ):
        assert name in text, name
    assert precise(evaluation["metrics"]["brier"]) in text
    assert estimate(evaluation["metrics"]["macro_f1"]) in text
    assert estimate(evaluation["top_k"]["10"]) in text
    for window in summary["prequential"]:
        assert estimate(window["ap"]) in text
    for point in evaluation["points"].values():
        for cell in ("tp", "fp", "fn", "tn"):
            assert amount(point[cell]) in text
    assert trained["points"]["default"]["crossfitted"]
    for point in trained["points"].values():
        for found in point["crossfitted"].values():
            assert estimate(found) in text
    for each in trained["importance"]:
        assert estimate(each["ap_lost"]) in text
    for each in trained["periods"]["periods"]:
        assert precise(each["prevalence"]) in text
    assert summary["should_resample"]["compared"] == 2
    assert summary["should_resample"]["sentence"].removeprefix("Should I resample? ") in text
    assert evaluation["money"]["note"] in text


def test_a_run_without_time_or_importance_has_a_report_without_their_places(trained: dict[str, Any]) -> None:
    evaluation = {**trained["evaluation"], "top_k": {}}
    summary = {**trained["summary"], "prequential": []}
    bare = {**trained, "evaluation": evaluation, "summary": summary, "periods": None, "importance": []}
    text = reports.training_report(bare)
    for name in ("Prevalence by", "How steady it is", "The best rows of each day", "What drives"):
        assert name not in text
    assert "alerts on the test rows" in text


@pytest.mark.parametrize(
    ("lent", "said"),
    [
        (
            {"reason": "used: ahead", "source": "models:/a/1", "missing": ["city"], "note": ""},
            "Used: ahead. The model models:/a/1 lent its scores, read without city, which the target does not have.",
        ),
        (
            {"reason": "dropped: behind", "source": "models:/a/1", "missing": [], "note": "figures may flatter"},
            "Dropped: behind. But figures may flatter. The model models:/a/1 lent its scores.",
        ),
        (
            {"reason": "dropped: no label", "source": "there.parquet", "left_out": "no label"},
            "Dropped: no label. there.parquet was not read.",
        ),
    ],
)
def test_a_report_says_what_lent_its_labels_and_what_was_never_read(lent: dict[str, Any], said: str) -> None:
    assert transfer_sentence(lent) == said


def test_an_interval_without_a_bound_says_so_on_every_page() -> None:
    open_ended = {"value": 2.5, "low": 0.5, "high": None, "positives": 3, "rows": 90}
    assert precise(open_ended) == "2.5 [0.5,\u202fno upper bound]"
    assert estimate(open_ended) == "2.500 [0.500,\u202fno upper bound]"
    assert amount({**open_ended, "value": 2500, "low": 500}) == "2\u202f500 [500,\u202fno upper bound]"
    unjudged = {**open_ended, "low": None}
    assert (precise(unjudged), estimate(unjudged)) == ("2.5", "2.500 (3 positives)")
