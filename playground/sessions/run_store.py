"""`RunStore`: what may be done with recorded requests, in the database and with the writer of a `SessionStore`.

Every method may block: call it off the event loop. They raise `StorageError` where the database cannot be used.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from playground.sessions import run_changes, run_queries
from playground.sessions.database import MEMORY
from playground.sessions.errors import StorageError
from playground.sessions.run_records import RecordedRun, RequestInfo, RunConfigInfo, RunPage, RunQuery, StorageInfo
from playground.sessions.store import SessionStore
from playground.sessions.transcriber import Batch
from playground.telemetry.rows import EngineFacts

T = TypeVar("T")

LIMITS = (16 * 2**20, 64 * 2**20, 256 * 2**20, 2**30, 4 * 2**30)
"""What may be chosen as the limit of raw events, in bytes."""
BATCH_LOCK_WAIT = 0.5
"""Seconds: a batch of events comes again; whoever waits to save a message behind it does not wait for long."""


class RunStore:
    """The recorded requests of one database. Thread-safe."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    @property
    def path(self) -> str:
        return self._store.path

    # Recording

    def begin(
        self,
        *,
        created_ms: int,
        config: Mapping[str, Any],
        model: str,
        environment: Mapping[str, Any],
        facts: EngineFacts,
    ) -> tuple[int, str]:
        """A new recording of an engine: its id, and that of its configuration."""
        values: dict[str, Any] = {"config": config, "model": model, "environment": environment, "facts": facts}
        return self._write(
            lambda connection: run_changes.add_recording(connection, origin="here", created_ms=created_ms, **values)
        )

    def know(self, recording_id: int, facts: EngineFacts) -> None:
        """More has become known of a recording's engine: what its machine can do at most."""
        self._write(lambda connection: run_changes.set_facts(connection, recording_id, facts))

    def store(self, recording_id: int, batch: Batch) -> "Future[set[int]]":
        """Store a batch; the result names the segments that have been deleted meanwhile."""
        return self._store._writer.submit(
            lambda connection: run_changes.store_batch(connection, recording_id, batch), BATCH_LOCK_WAIT
        )

    # Reading

    def find(self, wish: RunQuery) -> RunPage:
        """The requests that are asked for, and the latencies of all that the filter lets through."""
        return self._read(lambda connection: run_queries.find_page(connection, wish))

    def configs(self) -> list[RunConfigInfo]:
        """The configurations that requests ran with, most used first."""
        return self._read(run_queries.find_configs)

    def request(self, request_id: int) -> RequestInfo:
        return self._read(lambda connection: run_queries.require_request(connection, request_id))

    def run(self, request_id: int) -> RecordedRun:
        """All that is needed to play a request."""
        return self._read(lambda connection: run_queries.load_run(connection, request_id))

    def of_message(self, message_id: int) -> int | None:
        """The request that made a saved reply."""
        return self._read(lambda connection: run_queries.run_of_message(connection, message_id))

    def of_engine(self, recording_id: int) -> dict[int, int]:
        """The requests of one recording, by the engine's numbers for them."""
        return self._read(lambda connection: run_queries.runs_of_engine(connection, recording_id))

    def storage(self) -> StorageInfo:
        return self._read(lambda connection: run_queries.measure(connection, self._file_bytes()))

    # Changing

    def add(self, run: RecordedRun) -> int:
        """Store an imported run; its new id."""
        return self._write(lambda connection: run_changes.add_run(connection, run))

    def delete(self, request_id: int) -> None:
        """Delete a request and what only it needs; one that does not exist is not an error."""
        self._write(lambda connection: run_changes.delete_request(connection, request_id))

    def set_limit(self, num_bytes: int) -> None:
        """How much room raw events may take; what is too much is deleted now, oldest first."""
        if num_bytes not in LIMITS:
            allowed = ", ".join(str(limit) for limit in LIMITS)
            raise StorageError(f"limit={num_bytes} is not allowed: give one of {allowed} bytes.")
        self._write(lambda connection: run_changes.set_limit(connection, num_bytes))

    def clear_raw(self) -> None:
        """Delete all raw events and give their room back to the disk; the figures of all requests stay."""
        self._write(run_changes.delete_raw)
        self._compact()

    # Parts

    def _compact(self) -> None:
        """Make the file as small as what is in it. Where others use it just now, its free room is used later."""
        if self.path == MEMORY:
            return
        with contextlib.suppress(sqlite3.Error, SQLAlchemyError), self._store._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("VACUUM")
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _file_bytes(self) -> int:
        if self.path == MEMORY:
            return 0
        files = (Path(self.path), Path(f"{self.path}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def _write(self, unit: Callable[[Connection], T]) -> T:
        return self._store._write(unit)

    def _read(self, query: Callable[[Connection], T]) -> T:
        return self._store._read(query)
