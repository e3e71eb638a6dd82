"""A database of any age becomes today's without loss, a newer one or another program's is left as it is."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from playground.sessions import SessionStore, StorageError, schema
from playground.sessions.database import open_database
from tests.sessions.conftest import contents, turn

FIRST_REVISION = Path(__file__).parent / "data" / "schema_0001.sql"

# A later revision, to try the way there: it rebuilds a table that others refer to, which is what can go wrong.
NEXT_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("message", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.Text(), nullable=False, server_default="none"))
    {last_line}
"""


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make this playground one schema younger than the files it meets."""

    def use(last_line: str = "pass") -> None:
        folder = tmp_path / "migrations"
        versions = folder / "versions"
        versions.mkdir(parents=True)
        for name in ("env.py", "script.py.mako", "versions/r0001_first_schema.py", "versions/r0002_recordings.py"):
            (folder / name).write_bytes((schema.MIGRATIONS / name).read_bytes())
        (versions / "r0003_next.py").write_text(NEXT_REVISION.format(last_line=last_line))
        monkeypatch.setattr(schema, "MIGRATIONS", folder)
        monkeypatch.setattr(schema, "SCHEMA_REVISION", "0003")

    return use


def first_revision_file(path: Path) -> Path:
    """A database as the first revision wrote it, with one chat."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_REVISION.read_text())
    return path


def query(path: Path | str, sql: str):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_the_migrations_build_exactly_the_tables_of_the_models(tmp_path: Path):
    path = tmp_path / "chats.db"
    SessionStore(path).close()
    engine = open_database(str(path))
    with engine.connect() as connection:
        command.check(schema.alembic_config(connection))  # raises where they differ
    engine.dispose()


def test_the_newest_migration_is_the_one_the_store_expects_and_there_is_one_line_of_them():
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert scripts.get_heads() == [schema.SCHEMA_REVISION]
    assert {revision.revision for revision in scripts.walk_revisions()} == schema.known_revisions()


@pytest.mark.parametrize("content", [None, b""], ids=["no file", "empty file"])
def test_a_new_file_gets_the_whole_schema_and_is_marked_as_ours(tmp_path: Path, content: bytes | None):
    path = tmp_path / "chats.db"
    if content is not None:
        path.write_bytes(content)
    with SessionStore(path) as store:
        turn(store, store.create_chat().id, None, "q", "a")
    assert query(path, "SELECT version_num FROM alembic_version") == [(schema.SCHEMA_REVISION,)]
    assert query(path, "PRAGMA user_version") == [(int(schema.SCHEMA_REVISION),)]
    assert query(path, "PRAGMA application_id") == [(schema.APPLICATION_ID,)]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert list(tmp_path.glob("*.bak")) == []


def test_a_file_of_the_first_revision_opens_with_all_that_was_in_it(tmp_path: Path):
    path = first_revision_file(tmp_path / "chats.db")
    with SessionStore(path) as store:
        (chat,) = store.list_chats()
        assert (chat.title, chat.system_prompt) == ("A fox in the snow", "Tell stories.")
        question, answer = store.messages(chat.id)
        assert (question.content, answer.content) == ("A fox in the snow", "Once upon a time there was a fox.")
        assert answer.run is not None
        assert answer.run.metrics["time_to_first_token"] == 0.25
        assert answer.run.config == {"block_size": 16}
        turn(store, chat.id, answer.id, "More", "The end.")
        assert len(store.messages(chat.id)) == 4
    assert query(path, "SELECT version_num FROM alembic_version") == [(schema.SCHEMA_REVISION,)]


def test_an_older_file_is_copied_before_it_is_upgraded_and_nothing_is_lost(tmp_path: Path, next_revision):
    path = tmp_path / "chats.db"
    with SessionStore(path) as store:
        chat = store.create_chat(title="Kept")
        turn(store, chat.id, None, "question", "answer", metrics={"num_output_tokens": 3})
        before = store.messages(chat.id)
    next_revision()
    with SessionStore(path) as store:
        assert store.messages(chat.id) == before  # with the run: rebuilding `message` did not delete what refers to it
        assert query(path, "SELECT DISTINCT note FROM message") == [("none",)]
        assert query(path, "PRAGMA user_version") == [(3,)]
        with pytest.raises(sqlite3.IntegrityError), closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("INSERT INTO message VALUES (99, 12345, NULL, 'user', 'orphan', 0, 'x')")
    (copy,) = tmp_path.glob("*.bak")
    assert copy.name == "chats.db.schema-0002.bak"
    assert query(copy, "SELECT content FROM message ORDER BY id") == [("question",), ("answer",)]
    assert query(copy, "SELECT version_num FROM alembic_version") == [("0002",)]


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path, next_revision):
    path = tmp_path / "chats.db"
    with SessionStore(path) as store:
        chat = store.create_chat(title="Kept")
        turn(store, chat.id, None, "question", "answer")
    tables = query(path, "SELECT name, sql FROM sqlite_master ORDER BY name")
    with pytest.MonkeyPatch.context() as patch:
        next_revision("op.execute('INSERT INTO no_such_table VALUES (1)')")
        with pytest.raises(StorageError, match="no such table"):
            SessionStore(path)
        patch.undo()
    assert query(path, "SELECT name, sql FROM sqlite_master ORDER BY name") == tables
    assert query(path, "SELECT version_num FROM alembic_version") == [("0002",)]
    assert query(path, "SELECT content FROM message ORDER BY id") == [("question",), ("answer",)]


def open_and_write_at_once(paths: list[Path]) -> list[Exception]:
    """Open a store on each path, all at the same time, and store a turn in it; the errors met."""
    errors: list[Exception] = []
    together = threading.Barrier(len(paths))

    def open_and_write(path: Path) -> None:
        try:
            together.wait(timeout=10)
            with SessionStore(path) as store:
                turn(store, store.create_chat().id, None, "q", "a")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_write, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_many_stores_opening_an_older_file_at_once_upgrade_it_once(tmp_path: Path, next_revision):
    path = first_revision_file(tmp_path / "chats.db")
    next_revision()
    assert open_and_write_at_once([path] * 6) == []
    assert query(path, "SELECT count(*) FROM chat") == [(7,)]
    assert query(path, "SELECT version_num FROM alembic_version") == [("0003",)]
    assert [copy.name for copy in tmp_path.glob("*.bak")] == ["chats.db.schema-0001.bak"]


def test_stores_on_different_files_are_made_side_by_side(tmp_path: Path):
    paths = [tmp_path / f"{number}.db" for number in range(6)]
    assert open_and_write_at_once(paths) == []
    for path in paths:
        assert query(path, "SELECT version_num FROM alembic_version") == [(schema.SCHEMA_REVISION,)]
        assert query(path, "SELECT count(*) FROM message") == [(2,)]


def test_a_newer_file_is_refused_with_one_sentence_and_not_touched(tmp_path: Path):
    path = first_revision_file(tmp_path / "chats.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.execute("PRAGMA user_version=999")
    before = query(path, "SELECT * FROM message")
    with pytest.raises(StorageError, match="from a newer playground") as caught:
        SessionStore(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "0999" in message
    assert "upgrade the playground, or choose another file with --db" in message
    assert query(path, "SELECT * FROM message") == before
    assert query(path, "SELECT version_num FROM alembic_version") == [("0999",)]


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE notes (id INTEGER)",
        "CREATE TABLE chat (id INTEGER); CREATE TABLE message (id INTEGER)",
        "CREATE TABLE chat (id INTEGER); CREATE TABLE message (id INTEGER); CREATE TABLE alembic_version (version_num)",
    ],
)
def test_a_database_of_another_program_is_refused_and_not_touched(tmp_path: Path, statements: str):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is a database of another program: choose another file"):
        SessionStore(path)
    assert path.read_bytes() == before


def test_the_first_revision_fixture_is_what_the_first_migration_builds(tmp_path: Path):
    """Guards the fixture: a migration must not be edited after it was shipped."""
    built = tmp_path / "built.db"
    engine = open_database(str(built))
    with engine.connect() as connection, connection.begin():
        command.upgrade(schema.alembic_config(connection), "0001")
    engine.dispose()
    sql = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
    assert query(first_revision_file(tmp_path / "fixture.db"), sql) == query(built, sql)


def test_an_upgraded_store_shows_the_same_contents_in_memory_and_on_file(tmp_path: Path):
    shown = []
    for path in (":memory:", tmp_path / "chats.db"):
        with SessionStore(path) as store:
            chat = store.create_chat()
            turn(store, chat.id, None, "q", "a")
            shown.append(contents(store, chat.id))
    assert shown == [["q", "a"], ["q", "a"]]
