"""Passwords out of text: the one place that knows what a secret in a URL or a setting looks like.

Errors mask their own message, the terminal what it prints, and `public` every configuration that is kept or shown.
Where it cannot be told whether a piece of text is a secret it is masked: a log that hides too much does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|credential|api_?key|access_?key|account_?key|private_?key)"
)
_SETTING = re.compile(rf"^{_NAME}$", re.IGNORECASE)
_PAIR = re.compile(
    # NAME=value in the query of a URL, in a connection string, in a message; a value ends at a space, & or its quote
    rf"(?P<name>(?<![\w.-])(?:{_NAME}|sig|signature)\s?=\s?)(?:'[^']*'|\"[^\"]*\"|(?P<value>[^&\s]+?)(?=['\"\])>,.;:]*(?:[&\s]|$)))",
    re.IGNORECASE,
)
_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*)://(?P<rest>\S+)", re.IGNORECASE)
_PORT = re.compile(r"[^:@/]+:\d{1,5}(?:[/?]|$)")
_CUT = re.compile(r"(?P<name>[^:/@\[]*):(?!\d{1,5}(?:[^\w@]|$))[^/@\s]\S*")
"""A user and password whose host was cut off, as it happens to a long message."""
_NO_HOST = ("/", "'", '"')


def masked(text: str) -> str:
    """Return ``text`` with every password of a URL, a query or a connection string replaced; the rest as it is.

    Passwords may hold @ and / as they are: everything up to the last @ of a URL belongs to its user and password.
    """
    return _URL.sub(_without_user, _PAIR.sub(lambda found: f"{found['name']}{MASK}", text))


def has_secret(text: str) -> bool:
    """Tell whether `masked` would change the text."""
    return masked(text) != text


def masked_values(value: Any) -> Any:
    """Return JSON-ready ``value`` with every text masked, and whole where the name of a setting says that it is a
    secret.
    """
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(each, str) and each and _SETTING.match(str(key)) else masked_values(each)
            for key, each in value.items()
        }
    if isinstance(value, str):
        return masked(value)
    return [masked_values(each) for each in value] if isinstance(value, list | tuple) else value


def quoted(url: str) -> str:
    """Return the URL with the password's @, / and : percent-encoded,
    so that every library finds the same host in it.
    """
    scheme, mark, rest = url.partition("://")
    head = rest.partition("?")[0]
    if not mark or rest.startswith(_NO_HOST) or "@" not in head:
        return url
    user, _, host = head.rpartition("@")
    name, colon, password = user.partition(":")
    if not colon or not re.search(r"[@/:#\[\]]", password):
        return url
    return f"{scheme}://{name}:{quote(password, safe='%')}@{host}{rest[len(head) :]}"


def _without_user(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    web = scheme.lower() in ("http", "https")
    if rest.startswith(_NO_HOST) or (web and _PORT.match(rest)):
        return found[0]
    if "@" not in rest:
        cut = _CUT.fullmatch(rest)
        return found[0] if cut is None else f"{scheme}://{cut['name']}:{MASK}"
    user, _, host = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    if colon:
        return f"{scheme}://{name}:{MASK}@{host}"
    return f"{scheme}://{MASK}@{host}" if web else found[0]  # a lone user of http is a token
