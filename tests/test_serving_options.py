"""`serve --queues`, `--once`, `--reload`: limits that are stored, an end when nothing is due, a new start when the code changes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskpool import Pool, Queue, Status
from taskpool.store.reading import Reader
from tests.serving import reached, start_server
from tests.waiting import wait_dead, wait_until

WAIT_S = 40.0
Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def serve(path: Path) -> Iterator[Serve]:
    """Start servers, and end in the end those that live."""
    servers: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        servers.append(start_server(path, *options, stderr=subprocess.PIPE))
        return servers[-1]

    yield start
    for server in servers:
        if server.poll() is None:
            server.kill()
        server.communicate(timeout=WAIT_S)


def test_queues_sets_limits_and_leaves_the_rest(path: Path, serve: Serve) -> None:
    with Pool(path, workers=1) as pool:
        pool.register_queue(Queue("cpu", concurrency=9, max_retry=3))
    server = serve("--queues", "cpu:4,io:16,a:b:2")
    with reached(path) as client:
        limits = {state.name: (state.config.concurrency, state.config.max_retry) for state in client.queues()}
    assert limits == {"cpu": (4, 3), "io": (16, None), "a:b": (2, None)}
    server.send_signal(signal.SIGTERM)
    assert server.wait(WAIT_S) == 0


@pytest.mark.parametrize("text", ["cpu", "cpu:", ":4", "cpu:0", "cpu:x", "cpu=4"])
def test_what_names_no_limit_is_refused(serve: Serve, text: str) -> None:
    server = serve("--queues", text)
    _, words = server.communicate(timeout=WAIT_S)
    assert server.returncode == 2
    assert "is no NAME:N, such as cpu:4" in words


def test_once_does_what_is_due_and_ends(path: Path, serve: Serve) -> None:
    with Pool(path, workers=1) as pool:
        pool.register_queue(Queue("slow", rate=20.0, burst=1))
        pool.register_queue(Queue("shut", paused=True))
        holder = pool.options(at_most_once=True).submit(time.sleep, 60)
        wait_until(holder.running, "its begin")
        due = [pool.submit(abs, -n).id for n in range(5)]
        due += [pool.options(queue="slow").submit(abs, -n).id for n in range(3)]
        later = pool.options(delay=3600).submit(abs, -1).id
        lost = pool.options(target="nobody").submit(abs, -1).id
        shut = pool.options(queue="shut").submit(abs, -1).id
        pool.stop(0.0)
    with Reader(path) as reader:
        assert reader.counts().get("succeeded", 0) == 0
    server = serve("--once")
    _, words = server.communicate(timeout=WAIT_S)
    assert server.returncode == 0
    assert "nothing is due any more" in words
    with Reader(path) as reader:
        assert {reader.task(task_id).status for task_id in due} == {Status.SUCCEEDED}
        assert {reader.task(task_id).status for task_id in (later, lost, shut)} == {Status.PENDING, Status.QUEUED}


def test_once_ends_at_once_where_nothing_waits(serve: Serve) -> None:
    server = serve("--once")
    _, words = server.communicate(timeout=WAIT_S)
    assert (server.returncode, "nothing is due any more" in words) == (0, True)


def test_reload_starts_anew_with_the_new_code(path: Path, serve: Serve) -> None:
    app = path.parent / "jobs.py"
    code = 'from taskpool import task\n@task(name="version")\ndef version() -> str:\n    return "{}"\n'
    app.write_text(code.format("one"))
    server = serve("jobs.py", "--reload", "--fail-unknown")
    with reached(path) as client:
        first = client.pid
        assert client.submit("version").result(WAIT_S) == "one"
    app.write_text("this is half a file (")
    wait_until(lambda: not os.path.exists(f"/proc/{first}"), "the end of the first server")
    app.write_text(code.format("number two"))
    with reached(path, but=first) as client:
        assert client.submit("version").result(WAIT_S) == "number two"
        last = client.pid
    server.send_signal(signal.SIGINT)
    _, words = server.communicate(timeout=WAIT_S)
    assert server.returncode == 0
    assert "a file has changed" in words
    assert not os.path.exists(f"/proc/{last}")


def test_reload_ends_with_its_server_if_it_is_killed(path: Path, serve: Serve) -> None:
    (path.parent / "jobs.py").write_text("")
    server = serve("jobs.py", "--reload")
    with reached(path) as client:
        pid = client.pid
    server.kill()
    wait_dead(pid)


def test_reload_needs_an_app(serve: Serve) -> None:
    server = serve("--reload")
    _, words = server.communicate(timeout=WAIT_S)
    assert (server.returncode, "name it" in words) == (2, True)
