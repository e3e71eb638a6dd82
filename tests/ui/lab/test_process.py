"""Commands in processes of their own: what they say, how they end, and that nothing of them is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from playground.ui.lab.process import LONGEST_LINE, CommandRun, environment

SLOW = "import time; time.sleep(60)"
FAMILY = f"""
import subprocess, sys, time
inner = subprocess.Popen([sys.executable, '-c', {SLOW!r}])
outer = subprocess.Popen([sys.executable, '-c', {SLOW!r}], start_new_session=True)
print('family', inner.pid, outer.pid, file=sys.stderr, flush=True)
time.sleep(60)
"""


def run(code: str, folder: Path, timeout: float = 30.0) -> CommandRun:
    return CommandRun([sys.executable, "-c", code], environment=environment(folder), timeout=timeout)


def wait_for_line(command: CommandRun, start: str) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [line for line in command.lines if line.startswith(start)]
        if found:
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no line {start!r} in {command.lines}")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_lines_of_standard_error_come_in_order_and_bars_are_lines_too(tmp_path: Path) -> None:
    code = (
        "import sys; print('not this'); sys.stderr.write('1 of 2: a\\n\\n  50%\\r 100%\\r2 of 2:   b\\n' + 'x' * 5000)"
    )
    command = run(code, tmp_path)
    assert command.wait() == ("ended", 0)
    assert command.lines == ["1 of 2: a", "50%", "100%", "2 of 2: b", "x" * LONGEST_LINE]


def test_stop_kills_the_command_its_children_and_those_that_left_its_group(tmp_path: Path) -> None:
    command = run(FAMILY, tmp_path)
    pids = [command.pid, *map(int, wait_for_line(command, "family").split()[1:])]
    command.stop()
    ending, _ = command.wait()
    assert ending == "stopped"
    assert all(gone(pid) for pid in pids)


def test_a_command_that_ignores_being_asked_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("playground.ui.lab.process.GRACE_SECONDS", 0.2)
    code = "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    command = run(code + "; print('deaf', file=sys.stderr, flush=True)\nwhile True: time.sleep(1)", tmp_path)
    wait_for_line(command, "deaf")
    command.stop()
    assert command.wait()[0] == "stopped" and gone(command.pid)


def test_a_time_limit_ends_it_and_says_so(tmp_path: Path) -> None:
    command = run(SLOW, tmp_path, timeout=0.3)
    assert command.wait()[0] == "timed out" and gone(command.pid)


def test_a_child_left_behind_by_a_command_that_ended_is_killed(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {SLOW!r}], stderr=subprocess.DEVNULL)"
    )
    command = run(code + "\nprint('left', one.pid, file=sys.stderr)", tmp_path)
    ending, status = command.wait()
    assert (ending, status) == ("ended", 0)
    assert gone(int(wait_for_line(command, "left").split()[1]))


def test_a_benchmark_ends_when_the_app_is_killed(tmp_path: Path) -> None:
    """The real child process, with a command that would take long; its parent dies without a word."""
    parent = f"""
import subprocess, sys, time
one = subprocess.Popen([sys.executable, '-m', 'playground.ui.lab.child', 'playground',
                        'bench', 'engine', '--peer', 'none'],
                       stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       start_new_session=True, cwd={str(tmp_path)!r})
print(one.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as app:
        assert app.stdout is not None
        pid = int(app.stdout.readline())
        time.sleep(0.5)
        assert psutil.pid_exists(pid)
        os.kill(app.pid, 9)
    assert gone(pid)
