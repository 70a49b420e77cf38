"""One kind of time inside: UTC without a zone."""

from __future__ import annotations

from datetime import UTC, datetime


def naive(moment: datetime) -> datetime:
    """Return the same moment in UTC without a zone; one without a zone is in UTC already."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
