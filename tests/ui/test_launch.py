"""From options to a served page: ports, and the refusals that end the process with one sentence."""

import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from playground.errors import ConfigError
from playground.ui.launch import DEFAULT_PORT, ServeOptions, check_port, resolve_host, resolve_port, serve


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(capsys: pytest.CaptureFixture[str], options: ServeOptions) -> str:
    """The one line that `serve` wrote to stderr, after checking that it is one and the exit code is 1."""
    assert serve(options) == 1
    written = capsys.readouterr()
    assert written.out == ""
    lines = written.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ") and "Traceback" not in written.err
    return lines[0]


def test_the_port_comes_from_the_option_then_the_variable_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    assert resolve_port(8001) == 8001
    assert resolve_port(None) == 7999
    monkeypatch.delenv("GRADIO_SERVER_PORT")
    assert resolve_port(None) == DEFAULT_PORT == 7860


def test_the_address_comes_from_the_option_then_the_variable_then_this_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert resolve_host("127.0.0.2") == "127.0.0.2"
    assert resolve_host(None) == "0.0.0.0"
    monkeypatch.delenv("GRADIO_SERVER_NAME")
    assert resolve_host(None) == "127.0.0.1"


@pytest.mark.parametrize("value", ["abc", "0", "70000", "-1", "78 60", "7860.0"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", value)
    with pytest.raises(ConfigError, match=r"GRADIO_SERVER_PORT.*give a whole number from 1 to 65535"):
        resolve_port(None)


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        line = refusal(capsys, ServeOptions(port=port, db=str(tmp_path / "chats.sqlite")))
    assert line == f"Error: Port {port} is in use by another program: stop it, or choose another with --port."
    assert not (tmp_path / "chats.sqlite").exists()


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on 203\.0\.113\.7"):
        check_port("203.0.113.7", free_port())


def test_a_model_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ServeOptions(port=free_port(), model=str(tmp_path / "nothing"), db=str(tmp_path / "chats.sqlite"))
    assert "nothing" in refusal(capsys, options)


def test_a_bad_option_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ServeOptions(port=free_port(), dtype="float7", db=str(tmp_path / "chats.sqlite"))
    assert "dtype='float7' is not allowed" in refusal(capsys, options)


@pytest.mark.parametrize(("given", "tokens"), [(None, "auto"), ("auto", "auto"), ("4", 4)])
def test_drafts_are_counted_or_left_to_the_engine(given: str | None, tokens: int | str) -> None:
    speculation = ServeOptions(speculation="ngram", draft_tokens=given).engine_config().speculation
    assert speculation is not None and speculation.num_tokens == tokens


@pytest.mark.parametrize(("speculation", "tokens"), [(None, "4"), ("ngram", "many"), ("ngram", "0")])
def test_a_number_of_drafts_that_cannot_be_is_refused(speculation: str | None, tokens: str) -> None:
    with pytest.raises(ConfigError, match=r"num_tokens|--draft-tokens"):
        ServeOptions(speculation=speculation, draft_tokens=tokens).engine_config()


def test_a_file_that_is_no_chat_database_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, but long enough to look like one\n" * 20)
    assert "choose another" in refusal(capsys, ServeOptions(port=free_port(), db=str(text)))


def test_a_database_of_a_newer_version_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from playground.sessions import SessionStore

    path = tmp_path / "chats.sqlite"
    SessionStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert "newer" in refusal(capsys, ServeOptions(port=free_port(), db=str(path)))
