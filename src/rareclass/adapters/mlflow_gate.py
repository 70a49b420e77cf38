"""MLflow's server behind one token: `mlflow server --app-name rareclass-token`.

MLflow's own basic-auth application keeps users and permissions in a database of its own, which a model's private
registry does not need. Clients set MLFLOW_TRACKING_TOKEN; a browser asks for a password, which is the token, with any
user name.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rareclass.errors import ConfigError
from rareclass.network import allows, token

TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 (the name of the variable)
OPEN = ("/health", "/version")
"""Paths that the kubelet asks without a token; they tell nothing of runs and versions."""
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TokenGate:
    """An ASGI application that answers 401 to whoever does not show the token."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN or self._shown(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [
                (b"content-type", b"application/json"),
                (b"www-authenticate", b'Basic realm="MLflow: any user, the token as password"'),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            body = (
                b'{"error_code": "UNAUTHENTICATED", "message": "set MLFLOW_TRACKING_TOKEN to the token of this server"}'
            )
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _shown(self, scope: _Scope) -> bool:
        header = next((value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"), None)
        return allows(header, self._token, password=True)


def create_app() -> TokenGate:
    """MLflow's application behind the gate. Raises ConfigError without a token: nothing is served open by mistake."""
    given = token(os.environ, TOKEN)
    if given is None:
        raise ConfigError(
            f"{TOKEN} is empty, so nobody could be told from anybody. Set it to the token that clients show"
        )
    from mlflow.server.fastapi_app import app

    return TokenGate(app, given)
