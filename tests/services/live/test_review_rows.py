"""Rows to look at: what the command chooses and records, and what a person's labels of them are worth."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from rareclass.adapters.store import Store
from rareclass.cli import app
from rareclass.config import Config, parse
from rareclass.errors import ConfigError, DataError, InputError
from rareclass.services.live import labels as labelling
from rareclass.services.live import monitor_app, review

NOW = datetime(2026, 3, 20, 15, tzinfo=UTC)
DAY = datetime(2026, 3, 19)
N = 600


def configured(url: str, **more: Any) -> Config:
    return parse({"name": "fraud", "data": {"path": "x", "target": "y"}, "store": {"url": url}, **more})


def predictions(day: datetime, n: int = N, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(-rng.normal(-4, 2, n)))
    when = [day + timedelta(seconds=120 * at) for at in range(n)]
    frame = pd.DataFrame({"request_id": [f"{day:%d}-{at}" for at in range(n)], "ts": when, "score": score})
    return frame.assign(model="fraud", version="1", threshold=0.5, decision=(score >= 0.5).astype(int))


@pytest.fixture
def config(sqlite_url: str) -> Config:
    with Store(sqlite_url) as store:
        store.migrate()
        for back in range(3):
            store.add_predictions(predictions(DAY - timedelta(days=back), seed=back))
        store.add_predictions(predictions(DAY + timedelta(days=1), 60, seed=9))  # a day that is not over
        store.add_predictions(predictions(DAY, 1).assign(request_id="probe", score=0.999, propensity=0.0))
    return configured(sqlite_url)


def keys(drawn: review.ReviewDraw) -> set[str]:
    return set(drawn.open_rows["request_id"])


def test_the_newest_day_that_is_over_is_chosen_from_and_the_same_rows_each_time(config: Config) -> None:
    drawn = review.draw(config, NOW)
    assert (drawn.start, drawn.end, drawn.rows) == (DAY, DAY + timedelta(days=1), N)
    assert set(drawn.chosen) <= {"top", "uncertain", "control"}
    assert drawn.chosen["top"] == 9
    assert 15 <= drawn.new == len(drawn.open_rows) <= 45
    assert "probe" not in keys(drawn)
    again = review.draw(config, NOW + timedelta(hours=1))
    assert again.new == 0
    pd.testing.assert_frame_equal(again.open_rows, drawn.open_rows)
    with Store(config.store.url) as store:
        [line] = store.entries("fraud", "review")
    assert line.payload["chosen"] == drawn.new


def test_a_larger_budget_adds_rows_and_raises_probabilities(config: Config) -> None:
    small, large = review.draw(config, NOW, budget=20), review.draw(config, NOW, budget=80)
    assert keys(small) < keys(large)
    before, after = (each.open_rows.set_index("request_id")["probability"] for each in (small, large))
    assert (after[before.index] >= before).all()
    assert review.draw(config, NOW, budget=20).new == 0  # nothing is taken back
    with Store(config.store.url) as store:
        assert len(store.entries("fraud", "review")) == 2


def test_a_labelled_row_is_shown_no_more_and_its_label_changes_no_choice(config: Config) -> None:
    with Store(config.store.url) as store:
        names = predictions(DAY)["request_id"]
        truth = pd.DataFrame({"request_id": names, "label": 0, "observed_at": NOW, "received_at": NOW})
        drawn = review.draw(config, NOW, store=store)
        store.add_labels(truth[names.isin(drawn.open_rows["request_id"][:5])], model="fraud")
        after = review.draw(config, NOW, store=store)
        assert len(after.open_rows) == len(drawn.open_rows) - 5
        assert sum(after.chosen.values()) == drawn.new
        assert review.waiting(config, store, NOW)["open"] == len(after.open_rows)


def test_a_window_that_is_not_over_and_one_without_rows_are_refused(config: Config) -> None:
    with pytest.raises(InputError, match=r"lasts until 2026-03-21 00:00"):
        review.draw(config, NOW, at=NOW)
    with pytest.raises(DataError, match="no prediction"):
        review.draw(config, NOW, at=datetime(2026, 1, 1))
    assert review.draw(config, NOW, at=datetime(2026, 3, 18, 7)).start == datetime(2026, 3, 18)


def test_shares_of_more_than_the_budget_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than the whole budget"):
        configured("sqlite:///x.db", review={"top": 0.9, "control": 0.2})


def test_the_list_shows_the_newest_window_first(config: Config) -> None:
    with Store(config.store.url) as store:
        for at in (NOW - timedelta(days=2), None):
            review.draw(config, NOW, at=at, store=store)
        listed = review.waiting(config, store, NOW)
    days = [row["ts"][:10] for row in listed["rows"]]
    assert days == sorted(days, reverse=True)
    assert set(days) == {"2026-03-19", "2026-03-18"}
    first = listed["rows"][0]
    assert (first["label"], first["reason"], first["probability"]) == (None, "top", 1.0)


def test_a_plan_needs_fewer_rows_for_wider_intervals(config: Config) -> None:
    planned = review.plan(config, NOW, width=0.35)
    assert planned.rows == 3 * N
    widths = list(planned.widths.values())
    assert widths[0] > widths[-1]
    assert planned.needed is not None
    assert min(planned.widths) <= planned.needed <= max(planned.widths)
    assert review._needed({10: 0.4, 40: 0.2, 160: 0.1}, 0.2) == 40
    assert review._needed({10: 0.4, 40: 0.2}, 0.1) is None
    assert review._needed({10: 0.4, 40: 0.1}, 0.2) == 20
    assert review._needed({10: 0.4}, 0.5) == 10


def asked(door: Any, method: str, token: str) -> tuple[int, Any]:
    """Status and body of one request to /review."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", token.encode())]
    scope = {"type": "http", "method": method, "path": "/review", "headers": headers, "query_string": b""}
    asyncio.run(door(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body) if body.startswith(b"{") else None


def test_the_door_shows_the_list_to_who_has_the_token_and_chooses_nothing(config: Config) -> None:
    with Store(config.store.url) as store:
        watch = monitor_app.Watch(config, lambda: NOW)
        door = monitor_app.build(config, watch, store, env={"RARECLASS_MONITOR_TOKEN": "page"})
        assert asked(door, "GET", "")[0] == 401
        assert asked(door, "GET", "Bearer page") == (200, {"model": "fraud", "open": 0, "rows": []})
        drawn = review.draw(config, NOW, store=store)
        _, listed = asked(door, "GET", "Bearer page")
        assert listed["open"] == len(drawn.open_rows)
        assert {row["request_id"] for row in listed["rows"]} == keys(drawn)
        assert asked(door, "POST", "Bearer page")[0] == 405


@pytest.fixture
def file(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: fraud\ndata: {{path: x, target: y}}\nstore: {{url: '{config.store.url}'}}\n")
    return path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, " ".join((done.output + str(done.exception or "")).split())


def test_the_file_is_filled_in_and_imported_and_its_probabilities_are_not_read(
    config: Config, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    at = ["--at", "2026-03-19"]
    code, said = run("review", "-c", file, "--budget", 40, *at, out)
    assert code == 0, said
    assert f"of {N} predictions from 2026-03-19 00:00" in said
    rows = pd.read_csv(out)
    assert rows["label"].isna().all()
    rows.assign(label=(rows["score"] > 0.5).astype(int), probability=0.9).to_csv(out, index=False)
    report = labelling.import_labels(config, out, NOW)
    assert report.inserted == len(rows)
    with Store(config.store.url) as store:
        kept = store.reviews("fraud", DAY, DAY + timedelta(days=1))
    assert kept["label"].notna().all()
    assert (kept["probability"] != 0.9).all()
    code, said = run("review", "-c", file, *at, out)
    assert code != 0
    assert "would be lost" in said
    code, said = run("review", "-c", file, *at, tmp_path / "rows.xlsx")
    assert "neither CSV nor Parquet" in said


def test_a_parquet_file_may_be_filled_in_by_half(config: Config, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    code, said = run("review", "-c", file, "--at", "2026-03-19", out)
    assert code == 0, said
    rows = pd.read_parquet(out)
    rows.loc[rows.index[:4], "label"] = 1
    rows.to_parquet(out)
    assert labelling.import_labels(config, out, NOW).inserted == 4


def test_options_that_do_not_go_together_are_refused(file: Path) -> None:
    for options, words in (
        (["--width", 0.2], "Add --plan"),
        (["--plan", "--at", "2026-03-19"], "chooses nothing"),
    ):
        code, said = run("review", "-c", file, *options)
        assert code != 0
        assert words in said
