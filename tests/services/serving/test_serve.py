"""What the server is handed: releases from a real registry, loaded models, injected settings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_model
from rareclass.adapters.registry import Registry
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, dump, parse
from rareclass.core import operating
from rareclass.errors import ConfigError, ModelError
from rareclass.services import promotion
from rareclass.services.serving import serve

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A registry with version 2 as champion, 3 as challenger and 1 as previous."""
    config = small_model.config(tmp_path_factory.mktemp("serve"))
    tracker = Tracker(config.tracking.uri, "small")
    for slope in (1, 2, 3):
        promotion.register(config, small_model.model(slope), tracker.start("run").id, now=NOW)
    for version, mode in ((1, "immediate"), (2, "immediate"), (3, "shadow")):
        promotion.promote(config, version, now=NOW, mode=mode)  # type: ignore[arg-type]
    return config


def test_the_champion_answers_and_challenger_and_previous_follow_in_its_shadow(config: Config) -> None:
    release = serve.Releases(config)()
    assert release.champion.version == "2"
    assert release.champion.hash == Registry(config.tracking.uri).version(config.name, 2).hash
    assert [(each.role, each.version) for each in release.shadows] == [("challenger", "3"), ("previous", "1")]
    assert (release.point, release.champion.cutoffs) == (None, {})
    x = np.array([[1, 0]], dtype=np.float32)
    assert serve.load(config, release.champion).score(x) == small_model.model(2).score(x)


def test_without_shadows_in_the_configuration_there_are_none(config: Config) -> None:
    quiet = parse({**dump(config), "serve": {"shadows": False}})
    assert serve.Releases(quiet)().shadows == ()


def test_tags_of_the_champion_choose_its_operating_point(config: Config) -> None:
    releases = serve.Releases(config)
    Registry(config.tracking.uri).tag(config.name, "2", {operating.POINT_TAG: "strict", operating.TAG: 0.25})
    assert (releases().point, releases().champion.cutoffs) == ("strict", {"": 0.25})
    Registry(config.tracking.uri).tag(config.name, "2", {operating.TAG: "high"})
    with pytest.raises(ModelError, match=operating.TAG):
        releases()


def test_without_a_champion_the_error_says_how_to_get_one(config: Config) -> None:
    with pytest.raises(ModelError, match=r"has no champion.*rareclass run"):
        serve.Releases(parse({**dump(config), "name": "nobody"}))()


def test_one_version_can_be_served_by_its_uri_alone(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model.model(3).save(tmp_path / "m-17")
    release = serve.Releases(config, str(tmp_path / "m-17"))()
    assert (release.champion.version, release.shadows) == ("m-17", ())
    assert serve.load(config, release.champion).score(np.ones((1, 2), np.float32))[0] > 0.8
    monkeypatch.setenv(serve.HASH_PIN, small_model.model(2).save(tmp_path / "another"))
    with pytest.raises(ModelError, match="not the ones that were registered"):
        serve.load(config, serve.Releases(config, str(tmp_path / "m-17"))().champion)


@pytest.mark.parametrize("bad", ["http", "-1", "70000", ""])
def test_what_an_operator_injects_wins_over_the_configuration_unless_it_is_no_port(bad: str) -> None:
    from rareclass.adapters.serving.server import Options, options

    settings: dict[str, Any] = {
        "name": "small",
        "host": "127.0.0.1",
        "http_port": 1,
        "grpc_port": 2,
        "metrics_port": 3,
        "token": None,
    }
    injected = {
        "MLSERVER_HTTP_PORT": "9000",
        "MLSERVER_GRPC_PORT": "9500",
        "MLSERVER_METRICS_PORT": bad,
        "MLSERVER_MODEL_NAME": "node",
        "MLSERVER_METRICS_ENDPOINT": "/prometheus",
        "MLSERVER_HOST": "0.0.0.0",
    }
    found = options(injected, Options(**settings))
    assert (found.http_port, found.grpc_port, found.metrics_port) == (9000, 9500, 3)
    assert (found.name, found.metrics_path, found.host) == ("node", "/prometheus", "0.0.0.0")


def test_a_token_is_read_without_the_newline_of_its_file_and_is_never_only_space() -> None:
    from rareclass.network import token

    assert token({"T": "secret\n"}, "T") == "secret"
    assert token({"T": ""}, "T") is token({}, "T") is None
    with pytest.raises(ConfigError, match="T holds only space"):
        token({"T": " \n"}, "T")


def test_a_served_booster_scores_with_one_thread_and_the_same() -> None:
    import json

    import xgboost as xgb

    from rareclass.core.fitted import Boosted
    from rareclass.core.training import Ensemble, Member

    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    booster = xgb.train({"nthread": 4, "objective": "binary:logistic"}, xgb.DMatrix(x, (x[:, 0] > 0).astype(int)), 3)
    learner = Boosted("xgboost", booster=booster, types=("float", "float"))
    before = learner.score(x)
    serve._one_thread(Ensemble((Member(fitted=learner, negative_sampling_rate=1.0, weight=1.0),)))
    assert json.loads(booster.save_config())["learner"]["generic_param"]["nthread"] == "1"
    assert np.array_equal(learner.score(x), before)


def test_a_version_that_lies_somewhere_is_served_with_its_own_columns_and_logged_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name and columns are those of its training; the store of its training is another place's."""
    trained = small_model.config(
        tmp_path / "there", serve={"http_port": 1}, data={"path": "x", "target": "y", "time": "ts"}
    )
    small_model.model(1, config=dump(trained)).save(tmp_path / "version")
    monkeypatch.setenv("RARECLASS_STORE_URL", "sqlite:///here.db")
    found = serve.settings_of(str(tmp_path / "version"), ["serve.spool=/spool", "name=claims"])
    assert (found.name, found.data.time, found.store.url) == ("claims", "ts", "sqlite:///here.db")
    assert (found.serve.spool, found.serve.http_port) == ("/spool", 8080)
    small_model.model(1).save(tmp_path / "bare")
    with pytest.raises(ModelError, match="Pass -c CONFIG beside --model"):
        serve.settings_of(str(tmp_path / "bare"))
