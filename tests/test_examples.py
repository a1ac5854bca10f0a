"""The examples, as a reader runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.errors import TaskpoolError
from taskpool.store.reading import Reader
from tests.waiting import wait_until

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*words: str, place: Path) -> str:
    """Run an example to its end, and return what it prints on stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(list(words), cwd=place, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finished(store: Path) -> int:
    """Return how many tasks of a store have succeeded."""
    try:
        with Reader(store) as reader:
            return reader.counts().get("succeeded", 0)
    except TaskpoolError:
        return 0  # it is not there yet


def test_montecarlo_killed_and_run_again_gives_the_same_digits(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / "montecarlo.py"), "--tasks", "40", "--paths", "20000", "--workers", "2"]
    undisturbed = run(*words, "--store", "a.db", place=tmp_path).splitlines()
    first = subprocess.Popen([*words, "--store", "b.db"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: finished(tmp_path / "b.db") >= 5, "5 of its tasks")
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    again = run(*words, "--store", "b.db", place=tmp_path).splitlines()
    assert again[1] == undisturbed[1]
    assert " 0 of them" in undisturbed[0]
    reused = re.search(r", (\d+) of them done by an earlier run", again[0])
    assert reused is not None
    assert int(reused[1]) >= 5


def test_primes_are_counted_right_whatever_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / "primes.py"), "--below", "100_000_000", "--kills-per-second", "8", "--workers", "2"]
    printed = run(*words, place=tmp_path)
    assert "5,761,455 primes below 100,000,000" in printed
    assert "which is right" in printed
    kills, crashes = re.findall(r"(\d+) workers were killed: (\d+) crashes", printed)[0]
    assert 0 < int(crashes) <= int(kills)


@pytest.mark.slow
def test_shell_commands_go_on_where_they_were_killed(tmp_path: Path) -> None:
    printed = run("bash", str(EXAMPLES / "parallel_shell.sh"), str(tmp_path), place=tmp_path)
    assert "exit status 1: one file is not there" in printed
    assert printed.endswith("lines-23.txt.gz\nlines-24.txt.gz\nall 24 files are there\n")
