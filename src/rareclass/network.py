"""What every server here needs, by one rule: its socket, the token that opens it, and whether a request shows that."""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
from collections.abc import Mapping

from rareclass.errors import ConfigError


def token(environment: Mapping[str, str], name: str) -> str | None:
    """Return the token in an environment variable, None where there is none.

    A file that a Secret was made from often ends in a newline, which no client sends: space around a token is no part
    of it.
    Raises ConfigError for one that is nothing but space, which must not open what it was to close.
    """
    given = environment.get(name) or ""
    if given and not given.strip():
        raise ConfigError(f"{name} holds only space. Set it to the token, or unset it")
    return given.strip() or None


def allows(header: str | bytes | None, token: str, *, password: bool = False) -> bool:
    """Tell, in constant time, whether an Authorization header carries the token.

    header : its value, as bytes or as latin-1 text, the way HTTP servers hand it on
    password : also take HTTP Basic with any user name and the token as password, which a browser can send
    """
    value = header.encode("latin-1", "replace") if isinstance(header, str) else header or b""
    scheme, _, given = value.strip().partition(b" ")
    given = given.strip()
    if password and scheme.lower() == b"basic":
        given = _password(given)
    elif scheme.lower() != b"bearer":
        given = b""
    return hmac.compare_digest(given, token.encode()) and bool(token)


def _password(given: bytes) -> bytes:
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2].strip()
    except (binascii.Error, ValueError):
        return b""


def bound(host: str, port: int, *, port_setting: str, host_setting: str, shared: bool = False) -> socket.socket:
    """Return a TCP socket bound to an address, not listening yet.

    port_setting, host_setting : what to set instead, for the message
    shared : other processes may bind the port too, and the system spreads connections over them
    Raises ConfigError when the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise taken(host, port, error, port_setting=port_setting, host_setting=host_setting) from None
    return made


def http_url(held: socket.socket) -> str:
    """Return the address of a bound socket as the start of a URL, without a slash at its end."""
    host, port = held.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def taken(host: str, port: int, error: OSError | None, *, port_setting: str, host_setting: str) -> ConfigError:
    """Return the one line about an address that cannot be listened on; error None: another process listens there."""
    why = "another process listens there" if error is None else (error.strerror or str(error)).lower()
    return ConfigError(
        f"cannot listen on {host}:{port}: {why}. Set {port_setting} to a free port (0 picks one), or {host_setting}"
    )
