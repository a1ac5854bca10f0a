"""SIGUSR1 to a server: its state and its stacks in the log, and nothing else happens. SIGUSR2 does nothing."""

from __future__ import annotations

import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskpool import Client
from taskpool.model import Stats, WorkerState
from taskpool.supervisor.dump import stack, stack_lines, state_lines
from tests.serving import ROOT, WAIT_S, reached
from tests.waiting import wait_file, wait_until


def hold(gate: str) -> str:
    wait_file(Path(gate))
    return "let go"


class Server:
    """A server whose log can be read while it runs."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.path, self._log = directory / "x.db", directory / "log"
        command = [sys.executable, "-m", "taskpool", "-C", str(self.path), "serve", "--workers", "1", *options]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory, env=env)

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def wait_line(self, *words: str, count: int = 1) -> str:
        """Return the last of so many lines that have all these words."""

        def found() -> str | None:
            lines = [line for line in self.lines if all(word in line for word in words)]
            return lines[-1] if len(lines) >= count else None

        line: str = wait_until(found, f"{count} lines with {words}", WAIT_S)
        return line


@pytest.fixture
def start(tmp_path: Path) -> Iterator[functools.partial[Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path, *options))
        return servers[-1]

    yield functools.partial(start)
    for server in servers:
        server.process.kill()
        server.process.wait()


def test_the_state_and_all_stacks_are_logged_and_the_task_runs_on(tmp_path: Path, start: functools.partial[Server]) -> None:
    server, gate = start(), tmp_path / "gate"
    with reached(server.path) as client:
        future = client.submit(hold, str(gate))
        client.wait(future.id, status="running", timeout=WAIT_S)
        server.process.send_signal(signal.SIGUSR2)
        server.wait_line("SIGUSR2 means nothing here")
        for n in (1, 2):
            server.process.send_signal(signal.SIGUSR1)
            server.wait_line("SIGUSR1: MainThread is at ", "loop.py:", count=n)
            server.wait_line(f"state: pid {server.process.pid}, ", "tasks: 1 running;", count=n)
            server.wait_line("worker 1: pid ", f"busy, task {future.id} test_dump:hold, for ", count=n)
            server.wait_line("thread ", "killer.py:", count=n)
        gate.touch()
        assert future.result(WAIT_S) == "let go"
        assert client.get(future.id).attempt == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT_S) == 0


def test_it_answers_while_the_store_takes_no_writes(start: functools.partial[Server]) -> None:
    server = start("--log-format", "json")
    with reached(server.path) as client, closing(sqlite3.connect(server.path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        future = client.submit_nowait(abs, -1)
        client._link.flush()
        server.wait_line("another connection holds its write lock")
        server.process.send_signal(signal.SIGUSR1)
        line = json.loads(server.wait_line("state: pid "))
        assert (line["schema"], line["level"]) == ("taskpool.log-line/1", "info")
        db.execute("ROLLBACK")
        assert future.result(WAIT_S) == 1


def test_under_reload_the_server_answers(tmp_path: Path, start: functools.partial[Server]) -> None:
    (tmp_path / "jobs.py").write_text("")
    server = start("jobs.py", "--reload")
    with reached(server.path) as client:
        pid = client.pid
        assert pid != server.process.pid
        server.process.send_signal(signal.SIGUSR1)
        server.wait_line(f"state: pid {pid}, ")
        server.process.send_signal(signal.SIGUSR2)
        server.wait_line("SIGUSR2 means nothing here")
        assert client.submit(abs, -1).result(WAIT_S) == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT_S) == 0


def dispositions() -> list[int]:
    return [int(signal.getsignal(number) == signal.SIG_DFL) for number in (signal.SIGUSR1, signal.SIGUSR2)]


def test_bodies_have_these_signals_for_themselves(start: functools.partial[Server]) -> None:
    server = start()
    client: Client
    with reached(server.path) as client:
        assert client.submit(dispositions).result(WAIT_S) == [1, 1]


def test_the_words() -> None:
    workers = (WorkerState(1, 11, "busy", 7, "m:f", 5_000_000, 2), WorkerState(2, 12, "idle"))
    stats = Stats(10, 3, "x.db", {"queued": 1200, "failed": 0}, workers, 2, 2, 1, 60.4, 9, 0.25, ("beware",))
    assert list(state_lines(stats, 6_500_000)) == [
        "state: pid 10, epoch 3, up 60 s, 0.2 s of CPU, 9 turns; tasks: 1,200 queued; 2 finished, 1 workers started anew",
        "worker 1: pid 11, busy, task 7 m:f, for 1.5 s; 2 done",
        "worker 2: pid 12, idle; 0 done",
        "note: beware",
    ]
    assert "tasks: none;" in next(state_lines(Stats(10, 3, "x.db", {}), 0))


def test_stacks_are_those_of_the_other_threads() -> None:
    gate = threading.Event()
    other = threading.Thread(target=gate.wait, name="other")
    other.start()
    try:
        (line,) = [line for line in stack_lines() if line.startswith("thread other")]
        assert "wait (" in line
        assert "threading.py:" in line
        assert not any(line.startswith("thread MainThread") for line in stack_lines())
    finally:
        gate.set()
        other.join(WAIT_S)
    assert stack(sys._getframe()).startswith("test_stacks_are_those_of_the_other_threads (")
    assert stack(None) == "nowhere"
