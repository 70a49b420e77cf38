"""Settings from the environment, and what is never shown."""

from rareclass.config import parse, public, with_environment


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
