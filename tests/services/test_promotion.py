"""Promotion, rollback and history, with a real registry and a real ledger."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import small_model
from rareclass.adapters.registry import Registry, load_model
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config
from rareclass.errors import AlreadyDoneError, ConfigError, ModelError
from rareclass.services import promotion as service

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("promote")


@pytest.fixture
def config(folder: Path, request: pytest.FixtureRequest) -> Config:
    """One registry for all tests, another model name and ledger for each."""
    name = f"m{zlib.crc32(request.node.name.encode())}"
    return small_model.config(folder, name=name, store={"url": f"sqlite:///{folder}/{name}.db"})


def _register(config: Config, *slopes: float) -> list[str]:
    tracker = Tracker(config.tracking.uri, "small")
    made = []
    for slope in slopes:
        run = tracker.start("run")
        made.append(
            service.register(config, small_model.model(slope), run.id, now=NOW, evidence={"data_hash": "d"}).version
        )
    return made


def _aliases(config: Config) -> dict[str, str]:
    return {
        alias: each.version for each in Registry(config.tracking.uri).versions(config.name) for alias in each.aliases
    }


def test_the_first_version_becomes_champion_even_in_shadow_mode(config: Config) -> None:
    _register(config, 1)
    move = service.promote(config, now=NOW, mode="shadow")
    assert (move.version, move.role) == ("1", "champion")
    assert _aliases(config) == {"champion": "1"}


def test_an_immediate_promotion_makes_the_old_champion_the_previous_one(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    move = service.promote(config, 2, now=NOW, mode="immediate")
    assert str(move) == "version 2 is champion, was version 1"
    assert _aliases(config) == {"champion": "2", "previous": "1"}


def test_a_challenger_leaves_the_champion_alone_and_takes_over_when_it_has_won(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    service.promote(config, 2, now=NOW, mode="shadow")
    assert _aliases(config) == {"champion": "1", "challenger": "2"}
    move = service.promote(config, now=NOW, mode="immediate", reason="won on 400 positives")
    assert move.version == "2"
    assert _aliases(config) == {"champion": "2", "previous": "1"}


def test_promoting_twice_is_refused(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    with pytest.raises(AlreadyDoneError, match=r"version 1 .* is champion already"):
        service.promote(config, 1, now=NOW)
    with pytest.raises(AlreadyDoneError, match=r"cannot challenge itself"):
        service.promote(config, 1, now=NOW, mode="shadow")
    service.promote(config, 2, now=NOW, mode="shadow")
    with pytest.raises(AlreadyDoneError, match=r"version 2 .* is challenger already"):
        service.promote(config, 2, now=NOW, mode="shadow")
    assert [each.kind for each in service.history(config)] == ["register", "register", "promote", "promote"]


def test_a_rollback_restores_model_threshold_and_calibrator_together(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    service.promote(config, 2, now=NOW)
    move = service.rollback(config, now=NOW, reason="recall fell")
    assert (move.version, move.before["champion"]) == ("1", "2")
    restored = load_model(f"models:/{config.name}@champion", config.tracking.uri)
    assert restored.learner.coefficient[0] == 1
    assert restored.threshold() == 0.5
    assert _aliases(config) == {"champion": "1"}


def test_a_second_rollback_goes_one_further_back_and_never_to_the_bad_one(config: Config) -> None:
    _register(config, 1, 2, 3)
    for version in (1, 2, 3):
        service.promote(config, version, now=NOW)
    service.rollback(config, now=NOW)
    assert _aliases(config) == {"champion": "2", "previous": "1"}
    service.rollback(config, now=NOW)
    assert _aliases(config) == {"champion": "1"}
    with pytest.raises(ModelError, match=r"no previous version"):
        service.rollback(config, now=NOW)


def test_a_rollback_that_is_repeated_does_nothing(config: Config) -> None:
    _register(config, 1, 2, 3)
    for version in (1, 2, 3):
        service.promote(config, version, now=NOW)
    service.rollback(config, now=NOW, expect="3")
    with pytest.raises(AlreadyDoneError, match=r"version 3 .* is no longer champion; version 2 is"):
        service.rollback(config, now=NOW, expect="3")


def test_a_version_that_was_rolled_back_can_be_promoted_again_by_a_person(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    service.promote(config, 2, now=NOW)
    service.rollback(config, now=NOW)
    service.promote(config, 2, now=NOW, reason="the data were wrong, not the model")
    assert _aliases(config) == {"champion": "2", "previous": "1"}


def test_shadows_can_be_retired(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    service.promote(config, 2, now=NOW, mode="shadow")
    service.retire(config, "challenger", now=NOW, reason="lost")
    assert _aliases(config) == {"champion": "1"}
    with pytest.raises(AlreadyDoneError, match=r"has no challenger"):
        service.retire(config, "challenger", now=NOW)


def test_the_ledger_keeps_who_when_why_and_on_which_numbers(config: Config) -> None:
    _register(config, 1)
    service.promote(config, now=NOW + timedelta(hours=1), actor="alice", reason="gate", evidence={"ap": 0.4})
    registered, promoted = service.history(config)
    assert registered.payload["data_hash"] == "d"
    assert len(registered.payload["hash"]) == 64
    assert (promoted.actor, promoted.reason, promoted.at) == ("alice", "gate", NOW + timedelta(hours=1))
    assert promoted.payload["ap"] == 0.4
    assert promoted.payload["aliases"] == {"champion": "1", "challenger": None, "previous": None}
    assert service.history(config, kind="promote") == [promoted]


def test_registering_again_after_a_crash_writes_no_second_line(config: Config) -> None:
    run = Tracker(config.tracking.uri, "small").start("run")
    first = service.register(config, small_model.model(), run.id, now=NOW)
    again = service.register(config, small_model.model(), run.id, now=NOW)
    assert again.version == first.version
    assert len(service.history(config)) == 1


def test_a_process_killed_between_ledger_and_aliases_is_made_good_by_the_next_call(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    code = f"""
import json, os, small_model
from datetime import UTC, datetime
from rareclass.adapters.registry import Registry
from rareclass.config import parse
from rareclass.services import promotion
Registry.point = lambda *_: os.kill(os.getpid(), 9) if wrote else None  # dies when the aliases should follow
append, wrote = promotion._write, []
promotion._write = lambda *a: wrote.append(1) or append(*a)
promotion.promote(parse(json.loads({config.model_dump_json()!r})), 2, now=datetime.now(UTC))
"""
    path = str(Path(small_model.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert _aliases(config) == {"champion": "1"}
    assert service.state(config) == {"champion": "2", "challenger": None, "previous": "1"}
    assert _aliases(config) == {"champion": "2", "previous": "1"}


def test_two_processes_that_promote_at_once_write_one_line(config: Config) -> None:
    _register(config, 1)
    code = f"""
import json, small_model, sys
from datetime import UTC, datetime
from rareclass.config import parse
from rareclass.errors import AlreadyDoneError
from rareclass.services import promotion
config = parse(json.loads({config.model_dump_json()!r}))
promotion._check(promote_registry := __import__("rareclass.adapters.registry", fromlist=["x"]).Registry(config.tracking.uri), config.name, "1")
print("ready", flush=True)
sys.stdin.readline()
try:
    promotion.promote(config, 1, now=datetime.now(UTC)); print("done")
except AlreadyDoneError:
    print("refused")
"""  # noqa: E501
    path = str(Path(small_model.__file__).parent)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(2)
    ]
    assert [each.stdout.readline() for each in both] == ["ready\n"] * 2
    for each in both:
        each.stdin.write("go\n")
        each.stdin.flush()
    assert sorted(each.communicate()[0].strip() for each in both) == ["done", "refused"]
    assert [each.kind for each in service.history(config)] == ["register", "promote"]


def test_a_damaged_version_is_never_promoted(config: Config) -> None:
    _register(config, 1, 2)
    service.promote(config, 1, now=NOW)
    damaged = Registry(config.tracking.uri).version(config.name, 2)
    (Path(damaged.uri) / "data" / "rareclass" / "learner.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=r"does not match its hash"):
        service.promote(config, 2, now=NOW)
    assert _aliases(config) == {"champion": "1"}
    assert len(service.history(config, kind="promote")) == 1


def test_a_version_that_is_not_there_names_those_that_are(config: Config) -> None:
    with pytest.raises(ModelError, match=r"has no version yet. Train one with: rareclass run"):
        service.promote(config, now=NOW)
    _register(config, 1)
    with pytest.raises(ModelError, match=r"has no version 7 .* to one of: 1"):
        service.promote(config, 7, now=NOW)


def test_a_mode_that_is_not_one_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown mode 'shado'. Did you mean 'shadow'"):
        service.checked_mode("shado")


def test_a_model_with_aliases_but_an_empty_ledger_keeps_them(config: Config) -> None:
    """A registry filled by hand, or a ledger that was lost."""
    versions = _register(config, 1, 2)
    Registry(config.tracking.uri).point(config.name, {"champion": versions[0]})
    store = Store(config.store.url)
    assert all(each.kind == "register" for each in store.entries(config.name))
    store.close()
    service.promote(config, 2, now=NOW)
    assert _aliases(config) == {"champion": "2", "previous": "1"}
