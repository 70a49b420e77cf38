"""Settings from the environment, and what is never shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rareclass.config import Config, dump, environment_names, parse, public, with_environment, with_overrides
from rareclass.errors import ConfigError
from rareclass.services.kubeflow.submit import shown


def test_the_environment_overrides_the_places_that_may_hold_passwords() -> None:
    raw = {"name": "a", "data": {"path": "x.csv", "target": "y"}, "store": {"url": "sqlite:///a.db"}}
    found = parse(with_environment(raw, {"RARECLASS_STORE_URL": "postgresql+psycopg://me:secret@db/x", "OTHER": "1"}))
    assert found.store.url == "postgresql+psycopg://me:secret@db/x"
    assert found.data.path == "x.csv"


def test_passwords_are_masked_in_what_is_logged() -> None:
    config = parse(
        {
            "name": "a",
            "data": {"path": "postgresql://u:p%40ss@h/db", "target": "y"},
            "store": {"url": "postgresql+psycopg://me:secret@db/x"},
        }
    )
    shown = public(config)
    assert shown["store"]["url"] == "postgresql+psycopg://me:***@db/x"
    assert shown["data"]["path"] == "postgresql://u:***@h/db"


RAW = {"name": "a", "data": {"path": "x.csv", "target": "y"}}


def _read(environment: dict[str, str], overrides: tuple[str, ...] = (), **sections: object) -> Config:
    raw = json.loads(json.dumps(RAW | sections))
    return parse(with_overrides(with_environment(raw, environment), overrides))


def test_every_setting_has_a_name_in_the_environment_and_means_there_what_set_means() -> None:
    defaults = dump(_read({}))
    for variable, setting in environment_names().items():
        value: Any = defaults
        for part in setting.split("."):
            value = value[part]
        text = "null" if value is None else json.dumps(value)
        assert _read({variable: text}) == _read({}, (f"{setting}={text}",)), variable


def test_the_environment_is_stronger_than_the_file_and_weaker_than_set() -> None:
    variable = {"RARECLASS_SEARCH__SECONDS": "30"}
    assert _read(variable, search={"seconds": 10}).search.seconds == 30
    assert _read(variable, ("search.seconds=20",), search={"seconds": 10}).search.seconds == 20
    assert _read({"RARECLASS_SEARCH__SECONDS": ""}, search={"seconds": 10}).search.seconds == 10


def test_lists_nested_settings_and_the_name_come_from_the_environment() -> None:
    config = _read(
        {"RARECLASS_DATA__DROP": "[id, note]", "RARECLASS_DATA__CHECKS__LEAK_AP": "0.9", "RARECLASS_NAME": "fraud"}
    )
    assert (config.data.drop, config.data.checks.leak_ap, config.name) == (("id", "note"), 0.9, "fraud")


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("RARECLASS_SEARCH__SECOND", "Did you mean 'RARECLASS_SEARCH__SECONDS'?"),
        ("RARECLASS_SERCH__SECONDS", "Did you mean 'RARECLASS_SEARCH__SECONDS'?"),
        (
            "RARECLASS_CLUSTER__ENV__HTTP_PROXY",
            "cluster.env is one setting. Set RARECLASS_CLUSTER__ENV to all of it, as YAML",
        ),
    ],
)
def test_a_name_that_no_setting_has_is_refused(variable: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _read({variable: "1"})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_that_are_not_ours_are_left_alone() -> None:
    assert _read({"RARECLASS_PORT": "tcp://10.0.0.1:80", "RARECLASS_UMASK": "027", "OTHER__NAME": "1"}) == _read({})


def test_two_names_of_one_setting_that_differ_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"RARECLASS_STORE_URL and RARECLASS_STORE__URL say different things of store.url"
    ):
        _read({"RARECLASS_STORE_URL": "sqlite:///a.db", "RARECLASS_STORE__URL": "sqlite:///b.db"})


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("data.time_origin", "2020-01-01", "2020-01-01"),
        ("data.target", "1", "1"),
        ("data.path", "in/2024 #3.csv", "in/2024 #3.csv"),
        ("data.path", "'quoted.csv'", "quoted.csv"),
        ("data.time", "null", None),
    ],
)
def test_a_setting_that_is_text_stays_text_where_yaml_would_see_something_else(
    setting: str, text: str, value: str | None
) -> None:
    section, name = setting.split(".")
    more = ("data.time_unit=hour",) if name == "time_origin" else ()
    assert getattr(getattr(_read({}, (f"{setting}={text}", *more)), section), name) == value


def test_what_a_secret_gives_the_steps_is_not_in_the_parameters_whatever_its_name() -> None:
    secret = {
        "name": "s",
        "env": {"RARECLASS_STORE__URL": "url", "RARECLASS_STORE_WAIT": "wait", "RARECLASS_DATA_PATH": "p"},
    }
    store = {"url": "postgresql+psycopg://me:secret@db/x", "wait": "5m"}
    config = _read(
        {}, data={"path": "postgresql://u:pass@h/db", "target": "y"}, store=store, cluster={"secrets": [secret]}
    )
    raw = json.loads(json.dumps(shown(config)))
    assert raw["data"]["path"] == "from RARECLASS_DATA_PATH"
    assert parse(raw).store == _read({}).store
