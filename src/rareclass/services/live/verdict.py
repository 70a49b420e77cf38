"""What happened and what to do about it, from one evaluation of the monitor; nothing is changed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rareclass.config import Config

if TYPE_CHECKING:
    from rareclass.core.triage import Snapshot, Verdict
    from rareclass.services.live.monitor import Monitor


def triage(
    config: Config, now: datetime, *, monitor: Monitor | None = None, snapshot: Snapshot | None = None
) -> Verdict:
    """Evaluate the live system at ``now`` and say what happened and what to do. Changes nothing."""
    from rareclass.core import triage as core

    found = snapshot or _snapshot(config, now, monitor)
    evidence = found.evidence
    if evidence is None:
        return core.Verdict("nothing", (f"'{config.name}' has answered nothing yet",))
    return core.triage(evidence, config.monitor, config.gate)


def _snapshot(config: Config, now: datetime, monitor: Monitor | None) -> Snapshot:
    from rareclass.services.live.monitor import Monitor

    own = monitor or Monitor(config)
    try:
        return own.evaluate(now)
    finally:
        if monitor is None:
            own.close()
