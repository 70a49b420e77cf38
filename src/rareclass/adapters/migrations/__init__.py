"""Alembic migrations of the store, for both dialects."""
