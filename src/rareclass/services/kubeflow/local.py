"""The compiled pipeline under KFP's local runner: the same steps and the same summary as in one process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rareclass.adapters import cluster
from rareclass.config import Config, dump
from rareclass.errors import ModelError
from rareclass.services.training import results
from rareclass.services.training.steps import Progress, silent


def run(config: Config, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Execute the pipeline and leave in ``out`` what a run in one process leaves. Returns the summary."""

    progress("pipeline", "the compiled pipeline, each step a process of its own")
    root = out / "pipeline" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    cluster.run_local({"config": json.dumps(dump(config))}, root.resolve())
    found = sorted(root.rglob("promote/summary"))
    if len(found) != 1:
        raise ModelError(f"the pipeline left no summary under {root}; read {root / 'steps.log'}")
    details = json.loads(found[0].read_text(encoding="utf-8"))
    return results.write_outputs(details, out)
