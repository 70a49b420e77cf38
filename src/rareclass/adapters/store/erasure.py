"""What was erased stays away: salted digests of ids, and rows held against them.

A digest is of one of three kinds: ``request_id`` (all rows of a request), ``entity`` (all rows of an entity up to the
time of the erasure) and ``row`` (one row of a request, known to have belonged to an entity that was erased: its labels
and shadow scores do not name the entity).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd
import sqlalchemy as sa

from rareclass.adapters.store.tables import FORGOTTEN


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did. ``rows`` by table; ``digest`` names what was erased without saying it; ``parts``: the tables
    and partitions of PostgreSQL that still hold dead rows of it."""

    kind: str
    digest: str
    rows: dict[str, int] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Rows of all tables together."""
        return sum(self.rows.values())


def digest(salt: str, value: str) -> str:
    """Return the digest under which an id is remembered; an empty salt is that of revision 0001."""
    return hashlib.sha256(f"{salt}{value}".encode("utf-8", "replace")).hexdigest()


def row_name(request_id: object, row: object) -> str:
    """Return one text for a request id and a row, the key of what is erased."""
    return f"{request_id}\x00{row}"


def salt_of(connection: sa.Connection, model: str) -> str:
    """Return the salt of a model's digests; made when it first forgets."""
    f = FORGOTTEN.c
    known = connection.execute(sa.select(f.salt).where(f.model == model, f.salt != "").limit(1)).scalar()
    return str(known) if known else secrets.token_hex(16)


def remember(
    connection: sa.Connection, model: str, names: Iterable[tuple[str, str]], at: int, salt: str
) -> dict[tuple[str, str], str]:
    """Keep the digests of (kind, id) pairs; return them."""
    digests = {(kind, value): digest(salt, value) for kind, value in dict.fromkeys(names)}
    lines = [
        {"model": model, "kind": key[0], "digest": found, "at": at, "salt": salt} for key, found in digests.items()
    ]
    if lines:
        connection.execute(sa.insert(FORGOTTEN), lines)
    return digests


def matches(connection: sa.Connection, rows: pd.DataFrame, since: int | None, kinds: Sequence[str]) -> pd.DataFrame:
    """Return for rows (model, request_id, row, and entity where there is one) when each was erased.

    since : erasures before this moment do not matter;  Returns columns kind -> microseconds, -1 where it was not.
    """
    f = FORGOTTEN.c
    out = pd.DataFrame(-1, index=rows.index, columns=list(kinds), dtype="int64")
    query = sa.select(f.model, f.kind, f.digest, f.at, f.salt).where(f.kind.in_(kinds), f.model.in_(set(rows["model"])))
    if since is not None:
        query = query.where(f.at >= since)
    known: dict[tuple[str, str, str], dict[str, int]] = {}
    for model, kind, found, at, salt in connection.execute(query):
        moments = known.setdefault((model, kind, salt), {})
        moments[found] = max(at, moments.get(found, -1))
    for (model, kind, salt), moments in known.items():
        names = _names(rows, kind)
        if names is None:
            continue
        mine = (rows["model"] == model).to_numpy()
        at = names[mine].map(
            lambda name, salt=salt, moments=moments: (
                moments.get(digest(salt, name), -1) if isinstance(name, str) else -1
            )
        )
        out.loc[mine, kind] = out.loc[mine, kind].clip(lower=at.astype("int64"))
    return out


def _names(rows: pd.DataFrame, kind: str) -> pd.Series | None:
    if kind == "row":
        return pd.Series(
            [row_name(*each) for each in zip(rows["request_id"], rows["row"], strict=True)],
            index=rows.index,
            dtype=object,
        )
    return rows[kind] if kind in rows.columns else None
