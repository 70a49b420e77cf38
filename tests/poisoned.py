"""Learners, and a shadow process, that do harm, for tests of what a shadow may do to the champion: nothing."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rareclass.core import training


@dataclass(frozen=True)
class Raising:
    """Scores its golden rows and nothing else."""

    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            raise RuntimeError("poisoned\nin two lines")
        return np.full(len(x), 0.5)


@dataclass(frozen=True)
class Hanging(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            time.sleep(3600)
        return np.full(len(x), 0.5)


@dataclass(frozen=True)
class Hungry(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            return np.ones(8 << 30).astype(np.float64)[: len(x)]
        return np.full(len(x), 0.5)


@dataclass(frozen=True)
class Dying(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            os.kill(os.getpid(), 9)
        return np.full(len(x), 0.5)


LEARNERS = {"raises": Raising, "hangs": Hanging, "eats memory": Hungry, "dies": Dying}
training.SAVED = (*training.SAVED, *LEARNERS.values())  # so that they can be registered


def shadow_process(connection: Any, busy: Any, out: str) -> None:
    """A shadow process whose versions are the learners above, and whose records go to a file."""
    import small_model
    from rareclass.adapters.serving.interfaces import ServedVersion
    from rareclass.adapters.serving.shadow import limit_memory, work
    from rareclass.core.calibration import Identity
    from rareclass.core.model import RareModel

    limit_memory(256 << 20)

    def load(version: ServedVersion) -> RareModel:
        if version.uri == "good":
            return small_model.model(2)
        return RareModel(small_model.SCHEMA, LEARNERS[version.uri](), Identity(), {"default": 0.5})

    def write(records: list[dict[str, Any]]) -> None:
        with Path(out).open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    work(connection, busy, load=load, write=write, model="small")
