"""What leaves as text has no password in it."""

from __future__ import annotations

import pytest

from rareclass.adapters.store.engines import sqlalchemy_url
from rareclass.errors import StoreError
from rareclass.masking import has_secret, masked, masked_values, quoted

SECRET = "hunter2"
FORMS = {
    "plain": f"postgresql://user:{SECRET}@host/db",
    "with an @": f"postgresql+psycopg://user:{SECRET}@{SECRET}@host:5432/db",
    "with a slash": f"postgresql://user:{SECRET}/{SECRET}@host/db",
    "with digits first": f"postgresql://user:123/{SECRET}@host/db",
    "with a colon": f"postgresql://user:a:{SECRET}@host/db",
    "with a quote": f"postgresql://user:a'{SECRET}@host/db",
    "percent-encoded": f"postgresql://user:%40{SECRET}@host/db",
    "in the query": f"postgresql://host/db?user=me&password={SECRET}&sslmode=require",
    "another name in the query": f"abfs://box@account.net/rows?sig=1&sas_token={SECRET}",
    "without a user": f"redis://:{SECRET}@host/0",
    "of an object store": f"s3://AKIA:{SECRET}/{SECRET}@bucket/rows.parquet",
    "a token of http": f"https://{SECRET}@mlflow.example/api",
    "a connection string": f"host=db user=me password={SECRET}",
    "a quoted connection string": f"host=db password = 'x {SECRET} y' user=me",
    "cut off": f"postgresql://user:{SECRET}"[:30],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", ["{}", "store '{}' refused: no", 'it is "{}".', "a {}, b http://host:9000/x"])
def test_no_form_of_a_password_is_left_in_a_text(form: str, around: str) -> None:
    said = masked(around.format(FORMS[form]))
    assert SECRET not in said
    assert "***" in said
    assert SECRET not in str(StoreError(around.format(FORMS[form])))
    assert has_secret(FORMS[form])


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////var/lib/me@home/a:b.db",
        "models:/fraud@champion",
        "http://127.0.0.1:9000/v2/models/fraud",
        "postgresql://me@host:5432/db",
        "s3://bucket/day=2024-01-01/rows.parquet",
        "http://host:8080/models/x@3",
        "RARECLASS_STORE_URL",
        "a ratio of 1:5, mail me@example.org",
        "http://[::1]:5000/x",
        "postgresql://host:5432",
        "mlflow-artifacts:/1/2/artifacts",
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert masked(text) == text
    assert not has_secret(text)


def test_settings_that_are_secrets_by_name_are_masked_whole() -> None:
    raw = {"env": {"DB_PASSWORD": SECRET, "token_env": "NAME"}, "list": [f"x://u:{SECRET}@h", 3], "token": None}
    assert masked_values(raw) == {
        "env": {"DB_PASSWORD": "***", "token_env": "NAME"},
        "list": ["x://u:***@h", 3],
        "token": None,
    }


@pytest.mark.parametrize("password", ["plain", "p@ss", "a/b", "a:b", "%40"])
def test_a_password_of_any_letters_reaches_the_database_that_is_named(password: str) -> None:
    found = sqlalchemy_url(f"postgresql://me:{password}@host:5432/db?sslmode=require")
    assert (found.host, found.port, found.database, found.username) == ("host", 5432, "db", "me")
    assert found.password == ("@" if password == "%40" else password)
    assert quoted("sqlite:////a@b:c") == "sqlite:////a@b:c"
