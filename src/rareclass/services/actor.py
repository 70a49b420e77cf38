"""Who acts, for the ledger."""

from __future__ import annotations

import getpass


def me() -> str:
    """Return the name of this process's user; 'unknown' where its number has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
