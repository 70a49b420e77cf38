"""How much of a table fits into the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

from rareclass._memory import bound
from rareclass.config import Config
from rareclass.errors import DataError

BASE = 448 << 20
"""What this process and its libraries take before a row is read."""
PER_ROW = 4.0
"""Bytes that a run takes at its peak for each byte of its float32 matrix: 3 were measured (docs/benchmarks.md), and
some air.
"""
SPLITTING = 2.2
"""Bytes that splitting takes at its peak for each byte that is kept of rows whose features are not."""
LEAST = 1_000
"""Rows that a sample has to have room for."""


@dataclass(frozen=True, slots=True)
class Room:
    """memory : bytes that the process should stay below"""

    memory: int

    @staticmethod
    def of(config: Config) -> Room | None:
        """Return the room of a configuration, None where nobody says how much memory there is."""
        found = bound(config.compute.memory)
        return None if found is None else Room(found)

    def rows(self, features: int, beside: int = 0) -> int:
        """Return how many rows a run can hold with all their features. beside : bytes that are taken already"""
        return max(0, int((self.memory - BASE - beside) / (PER_ROW * 4 * max(1, features))))

    def check(self, rows: int, bytes_of_a_row: int) -> None:
        """Raise DataError where what is kept of rows without their features is too much already."""
        needed = BASE + int(SPLITTING * rows * bytes_of_a_row)
        if needed > self.memory:
            raise DataError(
                f"{rows:,} rows were read, and their ids and times alone need {in_words(needed)}; "
                f"compute.memory is {in_words(self.memory)} "
                "(default: .8 of what the process may use). Set compute.memory higher, or keep fewer rows with "
                "data.filter"
            )


def in_words(size: int) -> str:
    """Write bytes for a person: 2 GiB, 1.5 GiB, 420 MiB."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size / unit:.3g} {name}"
