"""The champion reaches the pods: the serving object is pinned to it, rolled out, asked for its golden rows,
recorded.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rareclass.adapters import cluster
from rareclass.config import Config
from rareclass.errors import AlreadyDoneError, ModelError, RareclassError, UnreachableError
from rareclass.network import token
from rareclass.retry import retry_until_deadline
from rareclass.services import promotion
from rareclass.services.training.steps import Progress, silent

if TYPE_CHECKING:
    from rareclass.adapters.cluster import Workload
    from rareclass.core.model import RareModel

ACTOR = "rareclass-deploy"
GOLDEN_ROWS = 20
TOLERANCE = 1e-6
SMOKES = 5
"""Times in a row that the Service must answer with the new version: connections are spread over the pods."""
SILENCE = 60.0
"""Seconds for which a Service may not answer at all before its new version is taken back."""
PAUSE = 1.0
"""Seconds between two tries of a Service that does not answer."""


@dataclass(frozen=True)
class Deployed:
    """Where a version answers now. before : the version that was pinned; changed : False when it was so already."""

    target: str
    version: str
    before: str | None
    changed: bool
    rows: int

    def __str__(self) -> str:
        was = (
            f", was {f'version {self.before}' if self.before else 'whatever is champion'}"
            if self.changed
            else " already"
        )
        return f"{self.target} serves version {self.version}{was}; {self.rows} golden rows agree"


def champion(config: Config) -> str | None:
    """Return the version that is champion."""
    from rareclass.adapters.registry import Registry

    found = Registry(config.tracking.uri).at(config.name, "champion")
    return None if found is None else found.version


def deploy(
    config: Config,
    target: Workload,
    service: str,
    *,
    now: datetime,
    version: str | None = None,
    seconds: float = 600,
    progress: Progress = silent,
) -> Deployed:
    """Pin ``target`` to the champion, wait until every pod serves it, and ask ``service`` for its golden rows.

    service : base URL of the Service;  version : instead of the champion
    Doing it again changes nothing. Raises RolloutFailedError or ModelError after going back to the version that was
    pinned.
    """
    from rareclass.adapters.registry import Registry

    registry = Registry(config.tracking.uri)
    found = registry.version(config.name, version) if version else registry.at(config.name, "champion")
    if found is None:
        raise ModelError(f"'{config.name}' has no champion to deploy. Promote one with: rareclass promote -c CONFIG")
    wanted, before = found.version, target.version()
    changed = before != wanted
    try:
        if changed:
            progress("pin", f"{target} to version {wanted}, was {before or 'the champion of the day'}")
            target.point(wanted)
        target.wait(wanted, seconds, progress)
        rows = smoke(config, service, registry.load(found), wanted, progress=progress)
    except RareclassError as error:
        if changed:
            progress("back", f"to {before or 'the champion of the day'}: {error}")
            target.point(before)
            _record(config, "undeploy", target, wanted, before, now, str(error))
        raise
    _record(config, "deploy", target, wanted, before, now, f"{rows} golden rows agree through the Service")
    return Deployed(str(target), wanted, before, changed, rows)


def smoke(config: Config, service: str, model: RareModel, version: str, *, progress: Progress = silent) -> int:
    """Ask the Service for the golden rows until it answered SMOKES times; returns how many rows agree.

    The rows say that they were not sampled from the traffic (propensity 0), so that monitoring and retraining skip
    them.
    An answer that does not come is waited for, `SILENCE` seconds at most: a name server that is busy or a Service that
    takes a new pod in says nothing of the version. Raises ModelError when another version answers or a score differs.
    """
    from rareclass.core.model import golden_score

    assert model.golden is not None
    rows = model.golden.head(GOLDEN_ROWS)
    url = f"{service.rstrip('/')}/v2/models/{config.name}/infer"
    bearer = token(os.environ, config.serve.token_env)
    for attempt in range(SMOKES):
        body = {**request(model, rows), "id": f"smoke-{version}-{attempt}"}
        asking = partial(cluster.ask, url, body, token=bearer)
        answer = retry_until_deadline(asking, SILENCE, on=UnreachableError, pause=PAUSE, log=False)
        if answer.get("model_version") != version:
            raise ModelError(f"{service} answers with version {answer.get('model_version')}, not {version}")
        score = next(each["data"] for each in answer["outputs"] if each["name"] == "score")
        worst = max(abs(a - b) for a, b in zip(score, rows[golden_score(model.schema)], strict=True))
        if worst > TOLERANCE:
            raise ModelError(f"{service} scores the golden rows of version {version} differently by {worst:.2g}")
    progress("smoke", f"{service} answered {SMOKES} times, {len(rows)} golden rows agree")
    return len(rows)


def request(model: RareModel, rows: Any) -> Mapping[str, Any]:
    """Return rows as a request of the Open Inference Protocol, a column a tensor."""
    inputs = []
    for feature in model.schema.features:
        text = feature.kind == "categorical"
        values = [_value(value, text) for value in rows[feature.name]]
        datatype = "BYTES" if text else "FP32"
        inputs.append({"name": feature.name, "shape": [len(rows)], "datatype": datatype, "data": values})
    return {"inputs": inputs, "parameters": {"missing": True, "propensity": 0.0}}


def _value(value: Any, text: bool) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if text else float(value)


def _record(
    config: Config, kind: str, target: Workload, version: str, before: str | None, now: datetime, reason: str
) -> None:
    """One line of the ledger for each deployment of each promotion, however often it is tried."""
    from rareclass.adapters.store import Store

    payload = {"version": version, "before": before, "target": str(target)}
    with Store(config.store.url) as store:
        moves = len(promotion.moves(store.entries(config.name)))
        with contextlib.suppress(AlreadyDoneError):
            store.append(config.name, f"{kind}:{target}:{version}:{moves}", kind, ACTOR, reason, payload, now)
