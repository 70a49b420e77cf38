"""Alembic environment: migrations run on the connection that Store.migrate() hands in, inside its transaction."""

from alembic import context

from rareclass.adapters.store.tables import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
