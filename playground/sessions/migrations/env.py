"""Alembic's entry point: migrates the connection it is given, in that connection's own transaction."""

from alembic import context

from playground.sessions.tables import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("These migrations run through playground.sessions.schema, which passes the connection.")

context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by building a new one
    compare_type=True,
    compare_server_default=True,
)
context.run_migrations()
