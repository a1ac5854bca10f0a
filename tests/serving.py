"""Servers of their own: `taskpool serve` started as a process, and clients of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskpool import Client, TaskpoolError, connect
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
WAIT_S = 60.0


def start_server(path: Path, *options: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Serve a store with one worker, in its directory; modules of that directory and of the tests can be imported."""
    command = [sys.executable, "-m", "taskpool", "-C", str(path), "serve", "--workers", "1", *options]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, text=True, cwd=path.parent, env=env)


def reached(path: Path, *, but: int = 0) -> Client:
    """Connect as soon as somebody serves whose process is another than `but`."""

    def client() -> Client | None:
        try:
            found = connect(path)
        except TaskpoolError:
            return None  # nobody, or one that cannot import its handlers
        if found.pid != but:
            return found
        found.close()
        return None

    found: Client = wait_until(client, f"a server of {path}", WAIT_S)
    return found


@contextmanager
def served(path: Path, *options: str) -> Iterator[Client]:
    """Start a server, connect to it, and end it with the block, in order."""
    server = start_server(path, *options)
    try:
        with reached(path) as client:
            yield client
        server.send_signal(signal.SIGTERM)
        server.wait(WAIT_S)
    finally:
        server.kill()
        server.wait()
