"""What a submit sends to Kubeflow: no passwords, a cache key that follows the content, schedules of six fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from rareclass.adapters import tables
from rareclass.config import Config, parse
from rareclass.errors import ConfigError
from rareclass.services.serving import deploy
from rareclass.services.training import submit


def config(path: str = "demo:flights", **sections: object) -> Config:
    return parse({"name": "m", "data": {"path": path, "target": "y"}, **sections})


def test_what_a_secret_gives_to_the_steps_is_not_in_the_parameters():
    made = config(
        store={"url": "postgresql://me:hush@db/x"},
        cluster={"secrets": [{"name": "s", "env": {"RARECLASS_STORE_URL": "url"}}]},
    )
    job = submit.job(made, key="k")
    assert "hush" not in json.dumps(job.arguments)
    assert job.placement.secrets == {"s": {"RARECLASS_STORE_URL": "url"}}


def test_a_password_that_every_reader_of_the_run_would_see_is_refused():
    with pytest.raises(ConfigError, match=r"store\.url holds a password"):
        submit.job(config(store={"url": "postgresql://me:hush@db/x"}), key="k")


def test_the_parameter_is_a_configuration_again():
    made = config(
        "postgresql://me:hush@db/x",
        cluster={"secrets": [{"name": "s", "env": {"RARECLASS_DATA_PATH": "path"}}]},
    )
    again = parse(json.loads(submit.job(made, key="k").arguments["config"]))
    assert (again.name, again.data.path) == ("m", "from RARECLASS_DATA_PATH")


def test_the_version_of_the_data_follows_its_content_and_live_sql_has_none(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    pd.DataFrame({"y": [0, 1]}).to_parquet(file)
    first = tables.data_version(str(file))
    assert first == tables.data_version(str(file)) is not None
    pd.DataFrame({"y": [0, 1, 1]}).to_parquet(file)
    assert tables.data_version(str(file)) != first
    assert tables.data_version("postgresql://db/x") is None
    assert tables.data_version(str(tmp_path / "absent.parquet")) is None
    assert tables.data_version("demo:flights") is not None


def test_reading_is_cached_only_when_the_version_of_the_data_is_known(tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("a,y\n1,0\n")
    assert submit.job(config(str(file)), key="k").placement.cache
    assert not submit.job(config("sqlite:///x.db"), key="k").placement.cache
    assert not submit.job(config(str(file)), key="k", cache=False).placement.cache
    repair = {"number": 1, "now": "2026-01-01T00:00:00+00:00", "reason": "r"}
    assert not submit.job(config(str(file)), key="k", repair=repair).placement.cache


@pytest.mark.parametrize("cron", ["0 2 * * *", "daily", ""])
def test_a_schedule_without_six_fields_is_refused(cron: str):
    with pytest.raises(ConfigError, match="6, the first are seconds"):
        submit.checked_cron(cron)


def test_golden_rows_become_a_request_that_monitoring_skips():
    import small_model

    model = small_model.model()
    body = deploy.request(model, model.golden)
    assert body["parameters"] == {"missing": True, "propensity": 0.0}
    assert {each["name"]: each["datatype"] for each in body["inputs"]} == {"amount": "FP32", "channel": "BYTES"}
    assert all(each["shape"] == [3] for each in body["inputs"])


def test_the_first_repairs_of_two_ledgers_are_two_runs_and_two_attempts_of_one_are_one() -> None:
    monday, tuesday = datetime(2026, 1, 5, 12, 0, 1, tzinfo=UTC), datetime(2026, 1, 6, 12, 0, 1, tzinfo=UTC)
    assert submit.repair_key("m", 1, monday) == submit.repair_key("m", 1, monday)
    assert len({submit.repair_key("m", *each) for each in ((1, monday), (1, tuesday), (2, monday))}) == 3
