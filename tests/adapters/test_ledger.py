"""The ledger against somebody who owns the database: it refuses changes, and tells of those made all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import small_model
from rareclass.adapters import migrations
from rareclass.adapters.store import Store
from rareclass.config import parse
from rareclass.errors import StoreError
from rareclass.services.admin import backup

T0 = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as opened:
        opened.migrate()
        yield opened


def write(store: Store, *keys: str, model: str = "fraud") -> None:
    for key in keys:
        store.append(model, key, "promote", "ann", "because", {"version": key}, T0)


def forge(store: Store, *statements: str) -> None:
    """What an owner of the database can do."""
    with store.transaction(write=True) as connection:
        if store.postgres:
            connection.exec_driver_sql("DROP TRIGGER ledger_no_change ON ledger")
            connection.exec_driver_sql("GRANT UPDATE, DELETE ON ledger TO CURRENT_USER")
        else:
            connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
            connection.exec_driver_sql("DROP TRIGGER ledger_no_delete")
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE ledger SET actor = 'eve'", "DELETE FROM ledger", "UPDATE ledger SET hash = '' WHERE model = 'fraud'"],
)
def test_the_database_refuses_to_change_or_delete_a_line(store: Store, statement: str) -> None:
    write(store, "a", "b")
    with pytest.raises(StoreError, match=r"append-only|permission denied"), store.transaction(write=True) as connection:
        connection.exec_driver_sql(statement)
    assert [entry.actor for entry in store.entries("fraud")] == ["ann", "ann"]


def test_postgresql_refuses_to_empty_the_ledger(postgres_url: str) -> None:
    with Store(postgres_url) as store:
        store.migrate()
        write(store, "a")
        with pytest.raises(StoreError, match="append-only"), store.transaction(write=True) as connection:
            connection.exec_driver_sql("TRUNCATE ledger")
        assert len(store.entries("fraud")) == 1


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE ledger SET reason = 'nothing' WHERE key = 'b'", "line 2 ('b') is not what was written"),
        ("UPDATE ledger SET at = at + 1 WHERE key = 'c'", "line 3 ('c') is not what was written"),
        ("DELETE FROM ledger WHERE key = 'b'", "line 2 ('c') does not follow"),
        ("DELETE FROM ledger WHERE key = 'a'", "line 1 ('b') does not follow"),
    ],
)
def test_a_line_that_was_changed_or_taken_out_all_the_same_is_found(store: Store, statement: str, says: str) -> None:
    write(store, "a", "b", "c")
    write(store, "a", model="other")
    assert store.verify_ledger("fraud").broken == ()
    forge(store, statement)
    assert any(says in each for each in store.verify_ledger("fraud").broken)
    assert store.verify_ledger("other").broken == ()


def test_lines_cut_off_at_the_end_are_found_by_a_hash_that_was_noted(store: Store) -> None:
    write(store, "a", "b", "c")
    head = store.verify_ledger("fraud").head
    write(store, "d")
    assert store.verify_ledger("fraud", head).broken == ()
    forge(store, "DELETE FROM ledger WHERE key IN ('c', 'd')")
    assert store.verify_ledger("fraud").broken == ()  # nobody can tell
    assert "are gone" in store.verify_ledger("fraud", head).broken[0]


def test_writers_at_once_make_one_chain(url: str) -> None:
    with Store(url) as store:
        store.migrate()

    def work(name: str) -> None:
        with Store(url) as own:
            write(own, *(f"{name}{at}" for at in range(15)))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with Store(url) as store:
        found = store.verify_ledger("fraud")
    assert (found.lines, found.broken) == (60, ())


def test_lines_from_before_the_chain_are_chained_by_the_migration(url: str) -> None:
    with Store(url) as store:
        settings = Config()
        settings.set_main_option("script_location", str(Path(migrations.__file__).parent))
        with store.transaction(write=True) as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, "0001")
            for number, model in enumerate(("fraud", "other", "fraud")):
                line = {"model": model, "key": f"k{number}", "at": number}
                connection.execute(
                    sa.text(
                        "INSERT INTO ledger (model, key, kind, actor, reason, payload, at) VALUES (:model, :key, 'x', "
                        "'ann', '', '{}', :at)"
                    ),
                    line,
                )
        store.migrate()
        write(store, "new")
        assert [entry.key for entry in store.entries("fraud")] == ["k0", "k2", "new"]
        found = store.verify_ledger("fraud")
        assert (found.lines, found.broken) == (3, ())


def test_a_restored_ledger_is_the_same_chain(store: Store, url: str, tmp_path: Path) -> None:

    base = small_model.config(tmp_path).model_dump(mode="json")
    write(store, "a", "b", model="small")
    head = store.verify_ledger("small").head
    backup.backup(parse({**base, "store": {"url": url}}), str(tmp_path / "kept"), T0)
    empty = parse({**base, "store": {"url": f"sqlite:///{tmp_path}/empty.db"}})
    backup.restore(empty, str(tmp_path / "kept"))
    with Store(empty.store.url) as again:
        assert again.verify_ledger("small", head).broken == ()
        assert again.verify_ledger("small").head == head
