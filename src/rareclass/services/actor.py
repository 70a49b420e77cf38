"""Who acts, for the ledger, and the tokens that say who may."""

from __future__ import annotations

import getpass
from collections.abc import Mapping

from rareclass.errors import ConfigError


def me() -> str:
    """Return the name of this process's user; 'unknown' where its number has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def token(environment: Mapping[str, str], name: str) -> str | None:
    """Return the token in an environment variable, None where there is none.

    A file that a Secret was made from often ends in a newline, which no client sends: space around a token is no part of it.
    Raises ConfigError for one that is nothing but space, which must not open what it was to close.
    """
    given = environment.get(name) or ""
    if given and not given.strip():
        raise ConfigError(f"{name} holds only space. Set it to the token, or unset it")
    return given.strip() or None
