"""Care of the store as a whole: its schema, its backup."""

from __future__ import annotations

import time

from rareclass.adapters.store import Store
from rareclass.adapters.store.tables import HEAD
from rareclass.config import Config
from rareclass.errors import StoreError


def migrate(config: Config, wait: float = 0.0, pause: float = 2.0) -> str:
    """Bring the store to this version's schema and return its revision.

    wait : seconds during which a database that does not answer is tried again, for an installation where it starts
    beside this. Raises StoreError.
    """
    end = time.monotonic() + wait
    while True:
        try:
            with Store(config.store.url) as store:
                store.migrate()
                return HEAD
        except StoreError as error:
            if time.monotonic() > end:
                raise
            print(f"waiting: {error}", flush=True)
            time.sleep(pause)
