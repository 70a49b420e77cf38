"""Rows that were chosen to be looked at, each with the probability it was chosen with.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """CREATE TABLE reviews (model text NOT NULL, request_id text NOT NULL, "row" integer NOT NULL,
        ts bigint NOT NULL, probability double precision NOT NULL, reason text NOT NULL, at bigint NOT NULL,
        PRIMARY KEY (model, request_id, "row"), CHECK (probability > 0 AND probability <= 1))"""
    )
    op.execute("CREATE INDEX reviews_by_time ON reviews (model, ts)")


def downgrade() -> None:
    op.execute("DROP TABLE reviews")
