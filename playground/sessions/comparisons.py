"""The statements for saved comparisons: each runs inside a transaction that it is given and returns plain records."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from playground.sessions.codec import canonical_json, title_from
from playground.sessions.errors import StorageError
from playground.sessions.queries import now_ms
from playground.sessions.records import ComparisonInfo
from playground.sessions.tables import Comparison, table

comparisons = table(Comparison)
_INFO = [comparisons.c[name] for name in ComparisonInfo.__dataclass_fields__]


def add(connection: Connection, title: str, data: Mapping[str, Any]) -> ComparisonInfo:
    values = {"title": title_from(title), "created_ms": now_ms(), "data": canonical_json(data)}
    row = connection.execute(insert(comparisons).values(**values).returning(*_INFO)).mappings().one()
    return ComparisonInfo(**row)


def newest(connection: Connection, limit: int) -> list[ComparisonInfo]:
    query = select(*_INFO).order_by(comparisons.c.created_ms.desc(), comparisons.c.id.desc()).limit(limit)
    return [ComparisonInfo(**row) for row in connection.execute(query).mappings()]


def read(connection: Connection, comparison_id: int) -> tuple[ComparisonInfo, dict[str, Any]]:
    query = select(*_INFO, comparisons.c.data).where(comparisons.c.id == comparison_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise StorageError("This comparison no longer exists, it may have been deleted in another tab.")
    fields = dict(row)
    data: dict[str, Any] = json.loads(fields.pop("data"))
    return ComparisonInfo(**fields), data


def vote(connection: Connection, comparison_id: int, choice: str) -> None:
    """The first vote stays: a second one would be cast with the names in sight."""
    unvoted = comparisons.c.vote.is_(None)
    connection.execute(update(comparisons).where(comparisons.c.id == comparison_id, unvoted).values(vote=choice))


def remove(connection: Connection, comparison_id: int) -> None:
    connection.execute(delete(comparisons).where(comparisons.c.id == comparison_id))
