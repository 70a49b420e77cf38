"""Hashes that are the same in every run, on every platform and whatever the order of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core.dataset import AnyArray, FloatMatrix, text_of

HashArray = NDArray[np.uint64]

CHUNK = 1 << 18  # rows at a time, so that what is computed on the way stays small
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MISSING = np.uint64(0xA5A5A5A5DEADBEEF)


def mix(values: HashArray, salt: int = 0) -> HashArray:
    """Return (n,) well mixed uint64 of (n,) uint64; another ``salt`` gives an unrelated order.

    Source: Steele, Lea and Flood, OOPSLA 2014 (splitmix64).
    """
    with np.errstate(over="ignore"):
        z = values + _GOLDEN * np.uint64((salt + 1) & 0xFFFFFFFFFFFFFFFF)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def unit(values: HashArray, salt: int = 0) -> NDArray[np.float64]:
    """Return (n,) numbers in [0, 1), uniform and independent of the row order."""
    numbers = np.empty(len(values), dtype=np.float64)
    for start in range(0, len(values), CHUNK):
        numbers[start : start + CHUNK] = mix(values[start : start + CHUNK], salt) >> np.uint64(11)
    numbers *= 2.0**-53
    return numbers


def name_hash(name: str) -> np.uint64:
    """Return the hash of one text."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def of_rows(row_id: NDArray[np.uint64], y: NDArray[Any]) -> str:
    """Return a hash of labelled rows, whatever their order."""
    return f"{int(np.bitwise_xor.reduce(mix(row_id ^ y.astype(np.uint64)), initial=np.uint64(0))):016x}"


def text_hash(values: pd.Series[Any]) -> HashArray:
    """Return (n,) uint64 hash of values as text, so that 7, 7.0 and '7' are the same; missing gets one value of its
    own.
    """
    text = text_of(values)
    missing = text.isna().to_numpy(dtype=bool)
    hashed = pd.util.hash_array(text.fillna("").to_numpy(dtype=object), categorize=True)
    return np.asarray(np.where(missing, MISSING, hashed), dtype=np.uint64)


def number_hash(values: AnyArray) -> HashArray:
    """Return (n,) uint64 hash of float32 values; -0 equals 0 and every NaN is the same."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    bits[np.isnan(values)] = MISSING
    return bits


def combine(total: HashArray, column: HashArray, name: str) -> None:
    """Add one column's hash to the rows' hash in place; the order of the columns does not matter."""
    with np.errstate(over="ignore"):
        total += mix(column ^ name_hash(name))


def content_groups(x: FloatMatrix) -> HashArray:
    """Return (n,) uint64 that is equal where two rows of ``x`` are equal in every column (NaN equals NaN)."""
    total = np.zeros(len(x), dtype=np.uint64)
    for start in range(0, len(x), CHUNK):
        part = total[start : start + CHUNK]
        for position in range(x.shape[1]):
            combine(part, number_hash(x[start : start + CHUNK, position]), str(position))
    return total


def plain_hash(values: AnyArray) -> HashArray:
    """Return (n,) uint64 of the very bits of 64-bit values (times, float64): -0 equals 0 and every NaN is the same."""
    if values.dtype.kind == "f":
        bits = (values.astype(np.float64) + 0.0).view(np.uint64).copy()
        bits[np.isnan(values)] = MISSING
        return bits
    return values.view(np.uint64) if values.dtype.itemsize == 8 else values.astype(np.uint64)


def rows_hash(total: HashArray, **arrays: AnyArray | None) -> HashArray:
    """Return (n,) hash of rows: what is there of them besides the features, by name, on top of the features' own
    ``total``.
    """
    hashes = total.copy()
    for name, values in arrays.items():
        if values is not None:
            combine(hashes, plain_hash(values), f"__{name}")
    return hashes


class SetHash:
    """Hash of a set of rows with multiplicity, independent of their order."""

    def __init__(self) -> None:
        self.count, self.sums = 0, [0, 0]

    def add(self, rows: HashArray) -> None:
        """Take in the hashes of some rows."""
        self.count += len(rows)
        for salt in (0, 1):
            self.sums[salt] = (self.sums[salt] + int(mix(rows, salt).sum(dtype=np.uint64))) % 2**64

    @staticmethod
    def joined(parts: Iterable[SetHash]) -> SetHash:
        """Return the hash of all rows of the parts."""
        union = SetHash()
        for part in parts:
            union.count += part.count
            union.sums = [(a + b) % 2**64 for a, b in zip(union.sums, part.sums, strict=True)]
        return union

    def hex(self, names: Sequence[str]) -> str:
        """Return the hash, with the names of the columns."""
        text = f"{self.count}|{self.sums[0]:016x}|{self.sums[1]:016x}|{'|'.join(sorted(names))}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def data_hash(rare: SetHash, others: SetHash, names: Sequence[str]) -> str:
    """Return the one hash of labelled rows: those of the rare class, the others, and the names of the features."""
    return hashlib.sha256(f"{rare.hex(names)}|{others.hex(names)}".encode()).hexdigest()[:32]
