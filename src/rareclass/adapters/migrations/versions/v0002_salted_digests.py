"""Digests of what was erased carry a salt, so that nobody finds the ids by trying them.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE forgotten ADD COLUMN salt text NOT NULL DEFAULT ''")


def downgrade() -> None:
    op.execute("ALTER TABLE forgotten DROP COLUMN salt")
