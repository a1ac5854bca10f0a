"""A command as a task: its stdout is the result, its exit status the error, and a cancel reaches all that it started."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskpool.worker import shell
from taskpool.worker.shell import CommandFailed, run_command
from tests.waiting import wait_until


def test_words_are_run_as_they_are_and_a_line_by_the_shell() -> None:
    assert run_command(["echo", "a b", "$HOME", "*"]) == b"a b $HOME *\n"
    assert run_command("printf '%s-' a b | tr a-z A-Z") == b"A-B-"


def test_the_output_goes_to_the_log_as_it_comes(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command("echo out; echo err >&2") == b"out\n"
    assert capfd.readouterr() == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("exit 3", 3, "exit status 3"),
        ("kill -TERM $$", -15, "killed by SIGTERM"),
        ("echo first >&2; echo why >&2; echo >&2; echo out; exit 1", 1, "exit status 1: why"),
        ("exec >&-; echo late >&2; sleep 0.1; echo later >&2; exit 1", 1, "exit status 1: later"),
    ],
)
def test_a_failure_says_how_it_ended(command: str, status: int, words: str) -> None:
    with pytest.raises(CommandFailed, match=words) as caught:
        run_command(command)
    assert caught.value.status == status
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.status, str(again)) == (status, words)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-command-anywhere"])


def test_it_reads_nothing_of_the_workers_input() -> None:
    assert run_command(["cat"]) == b""


def test_of_endless_output_the_beginning_is_kept(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "STDOUT_BYTES_MAX", 1000)
    assert run_command("yes | head -c 5000") == b"y\n" * 500
    printed = capfd.readouterr()
    assert len(printed.out) == 5000
    assert "first 1000 bytes" in printed.err


def test_output_of_exactly_the_limit_is_not_cut(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "STDOUT_BYTES_MAX", 1000)
    assert len(run_command("yes | head -c 1000")) == 1000
    assert capfd.readouterr().err == ""


def test_what_is_left_in_the_background_may_hold_stderr() -> None:
    began = time.monotonic()
    assert run_command("sleep 5 >&- & echo done") == b"done\n"
    assert time.monotonic() - began < 4


def test_a_cancel_ends_the_command_and_its_children() -> None:
    code = "from taskpool.worker.shell import run_command; run_command('sleep 60 & echo $!; wait')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())  # passed on, so run_command is past the start
        process.send_signal(signal.SIGINT)  # an exception inside run_command, as a cancel is one
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not _lives(grandchild), "the end of the child")


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return f"{pid} (" in (text := Path(f"/proc/{pid}/stat").read_text()) and ") Z" not in text
    except (ProcessLookupError, FileNotFoundError):
        return False
