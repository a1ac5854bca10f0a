"""The demo, as a stranger runs it: killed in the middle and started again it prints what an undisturbed run prints."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.errors import TaskpoolError
from taskpool.store.reading import Reader
from tests.waiting import wait_until

DEMO = Path(__file__).parent.parent / "examples" / "hardest_functions.py"


def _finished(store: Path) -> int:
    """Return how many of the demo's tasks have succeeded so far."""
    try:
        with Reader(store) as reader:
            return reader.counts().get("succeeded", 0)
    except TaskpoolError:
        return 0  # the store is not there yet


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_prints_the_same_report(tmp_path: Path) -> None:
    store = tmp_path / "demo.db"
    words = [sys.executable, str(DEMO), "--store", str(store), "--workers", "2"]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _finished(store) >= 50, "50 of its tasks")
        first.send_signal(signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
    finally:
        first.kill()
        first.wait()
    second = subprocess.run(words, capture_output=True, text=True, timeout=110, check=True)
    assert "results were taken from the store" in second.stdout
    assert "this.py was not measured" in second.stdout
    assert "killed by SIGSEGV" in second.stdout
    assert "string_at" in second.stdout  # the stack at its death
    third = subprocess.run(words, capture_output=True, text=True, timeout=110, check=True)
    assert second.stdout.partition("this.py")[0] == third.stdout.partition("this.py")[0]
