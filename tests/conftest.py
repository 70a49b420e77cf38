"""Fixtures that start the real outside systems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from postgres import NotInstalledError, PostgresServer, discard, free_port, new_server

# A busy machine is slow, which is no fault of the code; the same examples each time, so that nothing fails by luck.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

__all__ = ["PostgresServer", "free_port", "missing"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make contract`: hours of combinations instead of minutes."""
    parser.addoption("--every-combination", action="store_true", help="try every combination where a test tries some")


def missing(what: str) -> None:
    """Skip by name on a machine that lacks something; fail where CI runs, because CI allows no skip."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'store.db'}"


def _started() -> PostgresServer:
    try:
        return new_server()
    except NotInstalledError as error:
        missing(str(error))
        raise


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL."""
    server = _started()
    yield server
    discard(server)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of a fresh schema in the session's real PostgreSQL."""
    return postgres_server.new_schema()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test alone, which it may kill."""
    server = _started()
    yield server
    discard(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """A fresh store URL of each dialect in turn."""
    wanted: Callable[[str], str] = request.getfixturevalue
    return wanted("sqlite_url" if request.param == "sqlite" else "postgres_url")
