"""Alembic migrations of the chat database; run by `playground.sessions.schema`."""
