"""Alembic migrations of the store, for both dialects, one file each.
Tables as the code reads them are next door, in ``store.tables``."""
