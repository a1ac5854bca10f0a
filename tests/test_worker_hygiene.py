"""Pairs of tasks: one leaves something behind, the next finds a clean process, or the worker asks to be replaced."""

from __future__ import annotations

import _thread
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

from taskpool.wire.jobs import OK, Report
from taskpool.worker.interrupt import INTERRUPT_SIGNAL
from tests.waiting import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


# ---- what is left, and how it is looked at --------------------------------------------------------------------------


def change_directory(path: Path) -> None:
    os.chdir(path)


def remove_directory(path: Path) -> None:
    gone = path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def change_environment(_: Path) -> None:
    os.environ["PATH"] = "/nowhere"
    os.environ["TASKPOOL_TEST_LEFT"] = "1"
    del os.environ["HOME"]


def replace_environment(_: Path) -> None:
    os.environ["TASKPOOL_TEST_LEFT"] = "1"
    os.environ = {}  # type: ignore[assignment]  # noqa: B003


def handle_signals(_: Path) -> None:
    for signo in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, INTERRUPT_SIGNAL):
        signal.signal(signo, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mask_signals(_: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, INTERRUPT_SIGNAL])


def set_alarm(_: Path) -> None:
    signal.alarm(1)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)


def set_umask(_: Path) -> None:
    os.umask(0)


def set_limits(_: Path) -> None:
    time.sleep(0.002)  # limits are looked at after bodies that are not that short
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_CPU, (60, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def trace(_: Path) -> None:
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    sys.setrecursionlimit(50_000)
    gc.disable()


def take_stdin(path: Path) -> None:
    (path / "in").write_text("input")
    os.dup2(os.open(path / "in", os.O_RDONLY), 0)


def leave_zombie(_: Path) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def state(_: Path) -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    try:
        os.waitpid(-1, os.WNOHANG)
        children = True
    except ChildProcessError:
        children = False
    return {
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "getenv": os.getenv("TASKPOOL_TEST_LEFT"),
        "child": subprocess.run(["sh", "-c", "echo $TASKPOOL_TEST_LEFT $HOME"], capture_output=True, check=True).stdout,
        "signals": {signo: str(signal.getsignal(signo)).partition(" at ")[0] for signo in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": (signal.getitimer(signal.ITIMER_REAL), signal.getitimer(signal.ITIMER_VIRTUAL)),
        "umask": umask,
        "limits": [resource.getrlimit(i) for i in range(resource.RLIM_NLIMITS if hasattr(resource, "RLIM_NLIMITS") else 10)],
        "interpreter": (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), gc.isenabled()),
        "stdin": os.readlink("/proc/self/fd/0"),
        "threads": threading.active_count(),
        "children": children,
    }


CLEANED = [
    change_directory,
    remove_directory,
    change_environment,
    replace_environment,
    handle_signals,
    mask_signals,
    set_alarm,
    set_umask,
    set_limits,
    trace,
    take_stdin,
    leave_zombie,
]


@pytest.mark.parametrize("leave", CLEANED)
def test_what_a_body_changes_is_put_back(rig: Rig, tmp_path: Path, leave: Any) -> None:
    before = rig.value(state, tmp_path)
    report = rig.run(leave, tmp_path)
    assert (report.outcome, report.dirty) == (OK, False), report
    assert rig.value(state, tmp_path) == before


def test_all_of_it_at_once(rig: Rig, tmp_path: Path) -> None:
    before = rig.value(state, tmp_path)

    def leave_all(path: Path) -> None:
        for leave in (change_environment, handle_signals, mask_signals, set_alarm, set_umask, set_limits, trace):
            leave(path)
        raise ValueError("and fail")

    assert not rig.run(leave_all, tmp_path).dirty
    assert rig.value(state, tmp_path) == before


def test_a_mailbox_of_short_bodies_is_cleaned_at_its_end(rig: Rig, tmp_path: Path) -> None:
    before = rig.value(state, tmp_path)
    jobs = [rig.job(change_environment, tmp_path), rig.job(os.sched_yield), rig.job(set_umask, tmp_path)]
    rig.send(*jobs)
    rig.report(jobs[-1].n)
    assert rig.value(state, tmp_path) == before


# ---- what cannot be put back ----------------------------------------------------------------------------------------


def leave_thread() -> None:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def leave_raw_thread() -> None:
    before = _thread._count()
    _thread.start_new_thread(time.sleep, (1000,))
    while _thread._count() == before:
        os.sched_yield()


_kept: list[ThreadPoolExecutor] = []


def leave_executor() -> None:
    _kept.append(ThreadPoolExecutor(1))
    _kept[0].submit(int).result()


def leave_child() -> None:
    subprocess.Popen(["sleep", "1000"])


def lower_hard_limit() -> None:
    time.sleep(0.002)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forget_modules() -> None:
    sys.modules.clear()


def remove_first_directory(path: Path) -> None:
    os.rmdir(path)


@pytest.mark.parametrize("leave", [leave_thread, leave_raw_thread, leave_executor, leave_child, forget_modules])
def test_a_worker_that_cannot_be_cleaned_says_so_and_begins_nothing_more(rig: Rig, leave: Any) -> None:
    jobs = [rig.job(leave), rig.job(os.getpid), rig.job(os.getpid)]
    if leave in (leave_child, forget_modules):
        jobs = [jobs[0]]  # these are looked for at the end of a mailbox, or after a body that is not that short
    rig.send(*jobs)
    report = rig.report(1)
    assert (report.outcome, report.dirty) == (OK, True)
    rig.send(rig.job(os.getpid))
    rig.conn.close()  # it finds what was sent before that end
    wait_until(lambda: os.waitpid(rig.pid, os.WNOHANG) != (0, 0), "its end")
    rig.pid = 0
    rig.collect()
    assert len(rig.records) == 1
    assert rig.page.current() == (0, 0, 0)


@pytest.mark.skipif(os.geteuid() == 0 and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="the limit is 0 already")
def test_a_hard_limit_is_restored_or_the_worker_is_dirty(rig: Rig) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    report = rig.run(lower_hard_limit)
    if not report.dirty:  # root may raise it again
        assert rig.value(resource.getrlimit, resource.RLIMIT_CORE) == before


def test_a_first_directory_that_is_gone_makes_the_worker_dirty(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    rig = Rig(tmp_path, prepare=lambda: os.chdir(home))
    try:
        assert rig.run(remove_first_directory, home).dirty
    finally:
        rig.stop()


def test_a_thread_that_is_about_to_end_is_waited_for(rig: Rig) -> None:
    def brief() -> None:
        threading.Thread(target=time.sleep, args=(0.001,)).start()

    assert not rig.run(brief).dirty
    assert not rig.run(os.sched_yield).dirty


def test_threads_from_before_the_first_task_are_the_workers_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path, prepare=leave_thread)
    try:
        assert not rig.run(os.getpid).dirty
        assert rig.run(leave_thread).dirty
    finally:
        rig.stop()


def test_children_are_killed_and_reaped_and_so_are_theirs(rig: Rig) -> None:
    def family() -> list[int]:
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # as the zygote makes every worker: a subreaper
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            grandchild = os.fork()
            if grandchild == 0:
                os.setsid()
                signal.pause()
            os.write(write, str(grandchild).encode())
            os._exit(0)
        grandchild = int(os.read(read, 20))
        sleeper = subprocess.Popen(["sleep", "1000"])
        return [pid, grandchild, sleeper.pid]

    time_to_measure = rig.job(lambda: time.sleep(0.002))
    rig.send(time_to_measure)
    report = rig.run(family)
    assert report.dirty
    from taskpool.wire.codec import decode_result

    for pid in decode_result(report.codec, report.value):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert all(not other.dirty for other in rig.of(Report) if other.n < report.n)
