"""Waiting for what no message announces: it is looked for again and again, until it is there or has taken too long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 60.0
LOOK_S = 0.002


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Wait until a condition gives something true, and return that."""
    until = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(LOOK_S)
    return found


def wait_file(path: str | os.PathLike[str], timeout_s: float = WAIT_S) -> None:
    """Wait until there is such a file: a body says so that it is there, or a test that it may go on."""
    wait_until(lambda: os.path.exists(path), f"the file {os.fspath(path)}", timeout_s)


def wait_dead(pid: int, timeout_s: float = WAIT_S) -> None:
    """Wait until a process has ended (it may still be a zombie)."""
    wait_until(lambda: state_of(pid) in "ZX", f"the end of process {pid}", timeout_s)


def state_of(pid: int) -> str:
    """Return the letter of a process's state, X if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return text[text.rindex(")") + 2]
