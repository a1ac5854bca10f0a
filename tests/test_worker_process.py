"""The worker as a process: how it is born, what it holds, and how it ends."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import resource
import select
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

from taskpool import faults
from taskpool.wire import barrier
from taskpool.wire.jobs import Report
from taskpool.wire.page import CURRENT, PID, Page, RingReader
from taskpool.worker.hygiene import thread_count
from taskpool.worker.interrupt import STACK_SIGNAL


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def noop() -> None: ...


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


# ---- birth ----------------------------------------------------------------------------------------------------------


def test_a_worker_leads_its_own_session_and_holds_little(rig: Rig) -> None:
    def facts() -> dict[str, Any]:
        return {
            "session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "oom": int(Path("/proc/self/oom_score_adj").read_text()),
            "stdin": os.readlink("/proc/self/fd/0"),
            "threads": thread_count(),
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "membarrier": barrier.register(),
            "conn": [fd for fd in range(1024) if is_socket(fd)],
            "pid": os.getpid(),
        }

    found = rig.value(facts)
    assert found["session"]
    assert found["oom"] == min(1000, int(Path("/proc/self/oom_score_adj").read_text()) + 300)
    assert found["stdin"] == os.devnull
    assert found["threads"] == 0
    assert found["blocked"] == set()
    assert found["membarrier"] == barrier.available()
    assert len(found["conn"]) == 1
    assert found["conn"][0] >= min(500, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 16)
    assert found["pid"] == rig.pid == rig.page.words[PID]


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    rig = Rig(tmp_path, prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)))
    try:
        assert rig.value(os.getpid) == rig.pid
    finally:
        rig.stop()


def test_no_two_workers_draw_the_same_random_numbers(tmp_path: Path) -> None:
    random.seed(5)
    drawn = []
    for worker in (1, 2):
        rig = Rig(tmp_path, worker)
        drawn.append(rig.value(lambda: random.random()))
        rig.stop()
    assert len({*drawn, random.Random(5).random()}) == 3


def test_a_worker_rings_when_it_is_ready(rig: Rig) -> None:
    rig.until(lambda: rig.bells == 1)
    assert rig.page.words[PID] == rig.pid
    assert not rig.records


# ---- the end of the supervisor --------------------------------------------------------------------------------------


def test_it_ends_when_the_link_is_closed(rig: Rig) -> None:
    rig.run(noop)
    rig.conn.shutdown(socket.SHUT_WR)
    assert rig.wait() == 0


def test_a_torn_frame_is_never_run(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    job = rig.job(Path.touch, path)
    import struct

    import msgspec

    body = msgspec.msgpack.encode([job])
    rig.conn.sendall(struct.pack("<I", len(body)) + body[:-1])
    rig.conn.shutdown(socket.SHUT_WR)
    assert rig.wait() == 0
    assert not path.exists()
    assert rig.page.current() == (0, 0, 0)


def test_it_dies_with_the_supervisor_whatever_it_does(tmp_path: Path) -> None:
    """A middle process plays the supervisor and is killed while the body runs."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        rig = Rig(tmp_path)
        rig.send(rig.job(lambda: [None for _ in iter(int, 1)]))
        rig.begun(1)
        os.write(write, str(rig.pid).encode())
        signal.pause()
        os._exit(0)
    os.close(write)
    worker = int(os.read(read, 20))
    pidfd = os.pidfd_open(worker)
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert select.select([pidfd], [], [], 30)[0], "the worker lives on"
    os.close(pidfd)
    os.close(read)


def test_an_orphan_ends_before_it_does_anything() -> None:
    from taskpool.worker import birth

    pid = os.fork()
    if pid == 0:
        birth.die_with(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == birth.EXIT_ORPHAN


# ---- its own end ----------------------------------------------------------------------------------------------------


def crash() -> None:
    ctypes.string_at(0)


def deep_recursion() -> None:
    faulthandler._stack_overflow()  # newer interpreters raise RecursionError before most other ways get there


@pytest.mark.parametrize(("fn", "code"), [(crash, -signal.SIGSEGV), (deep_recursion, -signal.SIGSEGV), (os.abort, -signal.SIGABRT)])
def test_a_crash_leaves_page_and_stack_to_read(rig: Rig, fn: Any, code: int) -> None:
    rig.run(noop)
    rig.send(rig.job(fn))
    assert rig.wait() == code
    assert rig.page.current() == (2, 102, 1)
    assert [record.n for record in rig.records] == [1]
    if fn is not deep_recursion:
        assert "call_body" in rig.stack()


def test_an_exit_leaves_the_page_and_what_was_printed(rig: Rig) -> None:
    def leave() -> None:
        print("last words", end="")
        sys.stdout.flush()
        os._exit(3)

    rig.send(rig.job(leave))
    assert rig.wait() == 3
    rig.until(lambda: rig.output == b"last words")
    assert rig.page.current()[0] == 1


def test_stacks_are_told_on_demand_even_inside_c(rig: Rig) -> None:
    def in_c() -> int:
        return sum(range(10**12))

    rig.send(rig.job(in_c))
    rig.begun(1)

    def told() -> bool:
        os.kill(rig.pid, STACK_SIGNAL)
        return "in in_c" in rig.stack()

    rig.until(told)


def test_atexit_of_the_parent_never_runs_in_a_worker(tmp_path: Path) -> None:
    import atexit

    path = tmp_path / "exited"
    atexit.register(path.touch)
    rig = Rig(tmp_path)
    try:
        rig.run(noop)
        rig.conn.shutdown(socket.SHUT_WR)
        assert rig.wait() == 0
        assert not path.exists()
    finally:
        atexit.unregister(path.touch)
        rig.stop()


# ---- descriptors ----------------------------------------------------------------------------------------------------


def close_all_and_open_files(path: str) -> None:
    """Close everything, then take every number up to the socket's by files of one's own."""
    top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    os.closerange(3, top + 100)
    for i in range(top + 2):
        os.open(f"{path}{i}", os.O_RDWR | os.O_CREAT)


def test_a_body_that_closes_our_socket_ends_the_worker_and_its_files_stay_clean(rig: Rig, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    rig.run(noop)
    rig.send(rig.job(close_all_and_open_files, str(files) + "/f"))
    assert rig.wait() == 70
    assert [record.n for record in rig.records] == [1], "nothing is claimed of the body"
    assert rig.page.current()[0] == 2
    assert all(file.stat().st_size == 0 for file in files.iterdir())


def test_a_body_may_close_all_descriptors_below_ours(rig: Rig) -> None:
    def tidy() -> None:
        os.closerange(3, 200)

    assert not rig.run(tidy).dirty
    assert rig.value(os.getpid) == rig.pid


# ---- forks ----------------------------------------------------------------------------------------------------------


def test_a_forked_child_that_comes_back_does_not_act_as_the_worker(rig: Rig) -> None:
    def fork_and_return() -> str:
        if os.fork() == 0:
            return "child"
        os.wait()
        return "parent"

    def fork_and_raise() -> str:
        if os.fork() == 0:
            raise ValueError("in the child")
        return str(os.waitstatus_to_exitcode(os.wait()[1]))

    def fork_and_exit() -> str:
        if os.fork() == 0:
            sys.exit(5)
        return str(os.waitstatus_to_exitcode(os.wait()[1]))

    assert [rig.value(fn) for fn in (fork_and_return, fork_and_raise, fork_and_exit)] == ["parent", "1", "5"]
    assert len(rig.of(Report)) == 3
    assert b"ValueError: in the child" in rig.printed(2)


def test_multiprocessing_works_inside_a_task(rig: Rig) -> None:
    def family() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, 2, -3])

    report = rig.run(family)
    assert report.error is None


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "reports", "current"),
    [("body.before", 1, 2), ("result.before", 1, 2), ("result.half", 1, 2), ("result.after", 2, 2)],
)
def test_a_kill_at_any_step_leaves_at_most_one_body_in_doubt(tmp_path: Path, point: str, reports: int, current: int) -> None:
    """At the second job: its record is whole in the ring or absent; what is behind it never began."""

    def plant() -> None:
        faults.point = faults._armed({point: (2, "kill")})

    rig = Rig(tmp_path, prepare=plant)
    try:
        rig.send(*(rig.job(noop) for _ in range(5)))
        assert rig.wait() == -signal.SIGKILL
        assert [record.n for record in rig.records] == list(range(1, reports + 1))
        assert rig.page.words[CURRENT] == current
        again = Page.open(rig.page.path)
        assert RingReader(again).read() == []
        again.close()
    finally:
        rig.stop()


def test_a_worker_under_random_kills_loses_nothing_that_it_handed_over(tmp_path: Path) -> None:
    dice = random.Random(3)
    for worker in range(1, 9):
        rig = Rig(tmp_path, worker)
        rig.send(*(rig.job(int, i) for i in range(2000)))
        wanted = dice.randrange(1, 1500)
        rig.until(lambda: len(rig.records) >= wanted)  # noqa: B023
        os.kill(rig.pid, signal.SIGKILL)
        assert rig.wait() == -signal.SIGKILL
        rig.collect()
        assert [record.n for record in rig.records] == list(range(1, len(rig.records) + 1))
        n, task_id, _ = rig.page.current()
        assert n in (0, len(rig.records), len(rig.records) + 1)
        assert n == 0 or task_id == 100 + n
        rig.stop()
