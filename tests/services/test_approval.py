"""promotion.mode: manual. Real ledger, real registry: nobody answers before a person said so."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

import small_model
from rareclass import cli
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, parse
from rareclass.errors import AlreadyDoneError, ConfigError, NeedsApprovalError, NotAllowedError
from rareclass.services import actor, approval, promotion
from rareclass.services.live import governor, repair
from rareclass.services.training import results

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("approval")


@pytest.fixture
def config(root: Path, request: pytest.FixtureRequest) -> Config:
    made = small_model.config(root, promotion={"mode": "manual", "four_eyes": True})
    return parse({**made.model_dump(mode="json"), "name": f"m{abs(hash(request.node.name))}"})


def register(config: Config, *slopes: float, actor: str = "ann") -> list[str]:
    tracker = Tracker(config.tracking.uri, config.name)
    return [
        promotion.register(config, small_model.model(slope), tracker.start("run").id, now=NOW, actor=actor).version
        for slope in slopes
    ]


def test_a_pods_account_is_read_from_its_token_and_a_name_that_was_given_says_by_whom(tmp_path, monkeypatch):
    def token(**claims: object) -> Path:
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        (tmp_path / "token").write_text(f"header.{body}.signature\n")
        return tmp_path / "token"

    account = "system:serviceaccount:shop:flights-turn"
    assert actor.service_account(token(sub=account, iss="x")) == account
    for wrong in (token(sub="alice"), token(sub=3), token(), tmp_path / "absent"):
        assert actor.service_account(wrong) is None
    for broken in ("", "a", "a.b.c", "a.\u00e9.c"):
        (tmp_path / "token").write_text(broken)
        assert actor.service_account(tmp_path / "token") is None
    monkeypatch.setattr(actor, "ACCOUNT_TOKEN", token(sub=account))
    assert actor.me() == actor.named(None) == actor.named(account) == account
    assert actor.named("bob") == f"bob (said by {account})"
    assert actor.name_of(actor.named("bob")) == "bob"
    assert actor.name_of(account) == account


def test_a_first_version_answers_only_after_somebody_else_approved_it(config: Config) -> None:
    register(config, 1)
    assert results.promote(config, "1", now=NOW, actor="ann") is None
    assert promotion.state(config)["champion"] is None
    with pytest.raises(NeedsApprovalError, match="rareclass approve"):
        promotion.promote(config, 1, now=NOW, mode="immediate", actor="ann")
    for herself in ("ann", "ann (said by root)"):
        with pytest.raises(NotAllowedError, match="trained by 'ann'"):
            approval.answer(config, 1, reason="mine", now=NOW, actor=herself)
    assert promotion.state(config)["champion"] is None
    assert "champion" in approval.answer(config, reason="looked at the slices", now=NOW, actor="bob")
    assert promotion.state(config)["champion"] == "1"
    with pytest.raises(AlreadyDoneError, match="approved by bob"):
        approval.answer(config, 1, reason="again", now=NOW, actor="eve", decline=True)
    lines = [(entry.kind, entry.actor) for entry in promotion.history(config)]
    assert lines == [("register", "ann"), ("ask", "ann"), ("approve", "bob"), ("promote", "bob")]


def test_a_later_version_scores_in_the_shadow_while_it_waits_and_a_decline_ends_that(config: Config) -> None:
    register(config, 1, 2, 3)
    results.promote(config, "1", now=NOW, actor="ann")
    approval.answer(config, 1, reason="first", now=NOW, actor="bob")
    assert results.promote(config, "2", now=NOW, actor="ann") == "challenger"
    assert promotion.state(config) == {"champion": "1", "challenger": "2", "previous": None}
    assert approval.status(promotion.history(config)).state == "waiting"
    approval.answer(config, 2, reason="too many alerts", now=NOW, actor="bob", decline=True)
    assert promotion.state(config) == {"champion": "1", "challenger": None, "previous": None}
    assert approval.status(promotion.history(config), 2).state == "declined"
    with pytest.raises(AlreadyDoneError, match="declined"):
        approval.answer(config, 2, reason="after all", now=NOW, actor="bob")
    results.promote(config, "3", now=NOW, actor="ann")
    approval.answer(config, reason="better", now=NOW + timedelta(days=1), actor="bob")
    assert promotion.state(config) == {"champion": "3", "challenger": None, "previous": "1"}
    assert promotion.rollback(config, now=NOW, actor="bob").version == "1"  # was approved once


def test_an_approval_that_was_killed_before_the_version_took_over_can_be_said_again(config: Config) -> None:
    register(config, 1)
    results.promote(config, "1", now=NOW, actor="ann")
    promotion.note(config, "approve:1", "approve", "bob", "good", {"version": "1"}, NOW)
    approval.answer(config, 1, reason="good", now=NOW, actor="bob")
    assert promotion.state(config)["champion"] == "1"


def test_without_a_reason_a_name_or_the_mode_nothing_is_approved(config: Config) -> None:
    register(config, 1)
    results.promote(config, "1", now=NOW, actor="ann")
    with pytest.raises(ConfigError, match="needs a reason"):
        approval.answer(config, 1, reason=" ", now=NOW, actor="bob")
    with pytest.raises(NotAllowedError, match="Pass --actor"):
        approval.answer(config, 1, reason="x", now=NOW, actor="unknown")
    free = config.model_copy(update={"promotion": config.promotion.model_copy(update={"mode": "shadow"})})
    with pytest.raises(ConfigError, match=r"Set promotion\.mode: manual"):
        approval.answer(free, 1, reason="x", now=NOW, actor="bob")


def test_the_commands_tell_a_workflow_by_their_exit_codes(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, [arguments[0], "-c", str(file), *arguments[1:]])
        return result.exit_code, result.output

    assert run("approval")[0] == 0
    register(config, 1, 2, 3)
    results.promote(config, "1", now=NOW, actor="ann")
    code, said = run("approval", "--wait", "0.01")
    assert (code, "waits for approval" in said) == (20, True)
    assert run("approve", "--reason", "fine", "--actor", "bob")[0] == 0
    assert promotion.history(config)[-1].actor == f"bob (said by {actor.me()})"
    assert run("approval", "1")[0] == 0
    results.promote(config, "2", now=NOW, actor="ann")
    assert run("approve", "2", "--decline", "--reason", "no", "--actor", "bob")[0] == 0
    assert run("approval", "2")[0] == 21
    results.promote(config, "3", now=NOW, actor="ann")
    assert promotion.state(config)["challenger"] == "3"
    assert run("retire", "--reason", "not needed")[0] == 0
    assert promotion.state(config)["challenger"] is None
    code, said = run("history", "--verify")
    assert (code, "the chain is whole" in said) == (0, True)
    assert run("history", "--expect", said.split("hash ")[1].split()[0])[0] == 0
    assert run("history", "--expect", "0" * 64)[0] == 1


def test_the_governor_promotes_nothing_that_nobody_approved(config: Config) -> None:
    register(config, 1, 2, 3)
    results.promote(config, "1", now=NOW, actor="ann")
    approval.answer(config, 1, reason="first", now=NOW, actor="bob")
    results.promote(config, "2", now=NOW, actor=governor.ACTOR)
    assert governor._move(config, "promote", "1", "2", NOW, "it leads on live labels", {}) is None
    assert repair._promoted(config, "3", NOW, "recalibrated", {}) == "challenger"
    assert promotion.state(config) == {"champion": "1", "challenger": "3", "previous": None}
    assert repair.judged_later(config).promotion.mode == "manual"
    approval.answer(config, 3, reason="same ranking", now=NOW, actor="bob")
    assert promotion.state(config)["champion"] == "3"
