"""Tokens and sockets: one rule for the model server, the monitor and MLflow's gate."""

from __future__ import annotations

import base64
import re
import socket
from pathlib import Path

import pytest

from rareclass.errors import ConfigError
from rareclass.network import allows, bound, taken

SRC = Path(__file__).parents[1] / "src"


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header", ["Bearer s3cret", "bearer s3cret", b"BEARER s3cret", "Bearer  s3cret ", "Bearer s3cret\n"]
)
def test_a_header_with_the_token_opens_however_its_scheme_is_written(header):
    assert allows(header, "s3cret")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        b"",
        "Bearer",
        "Bearer ",
        "s3cret",
        "Token s3cret",
        "Bearer s3cre",
        "Bearer s3cret s3cret",
        "Bearer \u00e9",
    ],
)
def test_any_other_header_opens_nothing(header):
    assert not allows(header, "s3cret")
    assert not allows(header, "s3cret", password=True)
    assert not allows(header, "")


def test_a_browsers_password_opens_only_where_it_is_asked_for():
    assert not allows(_basic("me", "s3cret"), "s3cret")
    assert allows(_basic("me", "s3cret"), "s3cret", password=True)
    assert not allows(_basic("s3cret", ""), "s3cret", password=True)
    for broken in ("Basic", "Basic %%%", "Basic " + base64.b64encode(b"no colon").decode()):
        assert not allows(broken, "s3cret", password=True)
        assert not allows(broken, "", password=True)


def test_an_address_that_is_taken_is_one_line_that_names_the_settings():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        says = re.escape(f"cannot listen on 127.0.0.1:{port}: address already in use. Set a.port to a free port")
        with pytest.raises(ConfigError, match=says):
            bound("127.0.0.1", port, port_setting="a.port", host_setting="a.host")
    assert "another process listens there" in str(taken("h", 1, None, port_setting="p", host_setting="h"))


def test_nobody_else_compares_tokens_or_binds_sockets():
    wrong = [
        str(file.relative_to(SRC))
        for file in SRC.rglob("*.py")
        if file.name != "network.py"
        and re.search(r"compare_digest|socket\.socket\([^)]|\.bind\(\(", file.read_text("utf-8"))
    ]
    assert wrong == []
