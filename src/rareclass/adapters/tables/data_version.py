"""Which version of the data a path holds, without reading the rows: the key under which reading it may be cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow.fs as pafs

from rareclass.adapters.tables import sources
from rareclass.adapters.tables.demos import DEMOS
from rareclass.adapters.tables.opening import LAKES
from rareclass.adapters.tables.sources import DRIVERS, scheme
from rareclass.errors import RareclassError


def data_version(path: str) -> str | None:
    """Return a hash of what identifies the content of ``path``: sizes and times of files, etags of objects.

    None where nothing does (live SQL), or where this machine does not see the data.
    """
    name = path.removeprefix("demo:")
    if name != path and name in DEMOS:
        return _hashed([path])
    if scheme(path) in (*DRIVERS, *LAKES):
        return None
    try:
        filesystem, names = sources._locate(path)
        return _hashed(_marks(path, filesystem, names))
    except (RareclassError, OSError, ImportError):
        return None


def _marks(path: str, filesystem: pafs.FileSystem, names: list[str]) -> Iterable[str]:
    tags = _etags(path, names)
    for info in filesystem.get_file_info(names):
        yield f"{info.path}\0{info.size}\0{tags.get(info.path) or info.mtime_ns}"


def _etags(path: str, names: list[str]) -> dict[str, str]:
    """Etags by name, where the store has any: an object written again with the same bytes is the same data."""
    if not path.startswith(("s3://", "gs://", "abfs://")):
        return {}
    try:
        import fsspec

        store: Any = fsspec.core.url_to_fs(path)[0]
        return {name: str(tag) for name in names if (tag := _etag(store.info(name)))}
    except ImportError:
        return {}


def _etag(info: dict[str, Any]) -> object:
    return info.get("ETag") or info.get("etag")


def _hashed(marks: Iterable[str]) -> str:
    found = hashlib.sha256()
    for mark in sorted(marks):
        found.update(mark.encode() + b"\n")
    return found.hexdigest()[:16]
