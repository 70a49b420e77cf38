"""Who acts, for the ledger: what the system vouches for, and beside it what was only said."""

from __future__ import annotations

import base64
import getpass
import json
from pathlib import Path

ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where the kubelet puts the token of a pod's account."""
_SAID_BY = " (said by "


def me() -> str:
    """Return the account that this process runs as: a pod's ServiceAccount, else the user; 'unknown' where it has no
    name.
    """
    account = service_account(ACCOUNT_TOKEN)
    if account is not None:
        return account
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def named(declared: str | None) -> str:
    """Return who acts where a name may have been given: that name, and in brackets the account that gave it."""
    account = me()
    return account if declared in (None, account) else f"{declared}{_SAID_BY}{account})"


def name_of(actor: str) -> str:
    """Return the name alone, of what ``named`` made."""
    return actor.partition(_SAID_BY)[0]


def service_account(file: Path) -> str | None:
    """Return the ServiceAccount in a token, like ``system:serviceaccount:NAMESPACE:NAME``; None without one.

    Not verified: the kubelet wrote the file into this pod, and who can change it can change this process too.
    """
    try:
        body = file.read_text(encoding="ascii").strip().split(".")[1]
        subject = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["sub"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None
    return subject if isinstance(subject, str) and subject.startswith("system:serviceaccount:") else None
