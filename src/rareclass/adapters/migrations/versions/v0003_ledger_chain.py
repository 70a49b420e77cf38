"""The ledger is append-only by the database, and its lines are a chain of hashes.

Revision ID: 0003
"""

from collections.abc import Mapping
from typing import Any, cast

import sqlalchemy as sa
from alembic import op

from rareclass.adapters.store.ledger import line_hash

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SQLITE = [
    f"""CREATE TRIGGER ledger_no_{verb.lower()} BEFORE {verb} ON ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
    for verb in ("UPDATE", "DELETE")
]
POSTGRESQL = [
    """CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$""",
    (
        "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger FOR EACH ROW EXECUTE FUNCTION "
        "ledger_append_only()"
    ),
    (
        "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION "
        "ledger_append_only()"
    ),
    "REVOKE UPDATE, DELETE, TRUNCATE ON ledger FROM PUBLIC",
    "REVOKE UPDATE, DELETE, TRUNCATE ON ledger FROM CURRENT_USER",
]


def upgrade() -> None:
    connection = op.get_bind()
    for column in ("previous", "hash"):
        op.execute(f"ALTER TABLE ledger ADD COLUMN {column} text NOT NULL DEFAULT ''")
    lines = connection.execute(sa.text("SELECT * FROM ledger ORDER BY id")).mappings().all()
    last: dict[str, str] = {}
    for line in lines:
        previous = last.get(line["model"], "")
        last[line["model"]] = found = line_hash(cast("Mapping[str, Any]", line), previous)
        connection.execute(
            sa.text("UPDATE ledger SET previous = :previous, hash = :hash WHERE id = :id"),
            {"previous": previous, "hash": found, "id": line["id"]},
        )
    for statement in POSTGRESQL if connection.dialect.name == "postgresql" else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ledger_append_only() CASCADE")
        op.execute("GRANT UPDATE, DELETE, TRUNCATE ON ledger TO CURRENT_USER")
    else:
        for verb in ("update", "delete"):
            op.execute(f"DROP TRIGGER ledger_no_{verb}")
    for column in ("previous", "hash"):
        op.execute(f"ALTER TABLE ledger DROP COLUMN {column}")
