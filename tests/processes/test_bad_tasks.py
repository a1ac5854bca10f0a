"""Tasks that do what tasks should not do: each costs itself, and nobody else."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskpool import (
    Cancelled,
    NonRetryableError,
    Pool,
    Snooze,
    TaskCancelled,
    TaskFailed,
    TaskPanicked,
    TaskpoolError,
    TaskTimeout,
)
from taskpool.model import Task
from tests.processes import evidence
from tests.processes.evidence import wait_gone
from tests.waiting import wait_dead, wait_file, wait_until

WAIT_S = 30.0
GRACE_S = 0.3
SOON_S = 2 * evidence.GONE_S  # what a task leaves behind is gone after half of that


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    place = tmp_path_factory.mktemp("bad")
    os.environ[evidence.TAG] = tag = f"{os.getpid()}-{place.name}"
    try:
        with Pool(place / "x.db", workers=2, durability="process", cancel_grace=GRACE_S) as pool:
            yield pool
        wait_gone(tag)
        evidence.check_file(place / "x.db")
    finally:
        del os.environ[evidence.TAG]


@pytest.fixture
def lonely(tmp_path: Path, tag: str) -> Iterator[Pool]:
    """A pool with one worker: what a task leaves is met by the next."""
    with Pool(tmp_path / "x.db", workers=1, durability="process", cancel_grace=GRACE_S) as pool:
        yield pool


@pytest.fixture(autouse=True)
def others_are_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the tasks after it succeed, uncharged for it."""
    pools: list[Pool] = [request.getfixturevalue(name) for name in ("pool", "lonely") if name in request.fixturenames]
    yield
    for pool in pools:
        futures = pool.submit_many(abs, range(-20, 0))
        assert [future.result(WAIT_S) for future in futures] == list(range(20, 0, -1))
        assert {pool.get(future.id).charged for future in futures} == {1}


def pid() -> int:
    return os.getpid()


def ended(pool: Pool, future: Any) -> Task:
    """Wait for the end of a task and return its row."""
    return pool.wait(future.id, WAIT_S)


# ---- deaths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_an_idle_worker_dies(pool: Pool, signo: signal.Signals) -> None:
    """It is replaced, and no task is charged (as is seen after each of these tests)."""
    wait_until(lambda: any(worker.state == "idle" for worker in pool.stats().workers), "an idle worker")
    before = pool.stats()
    os.kill(next(worker.pid for worker in before.workers if worker.state == "idle"), signo)
    wait_until(lambda: pool.stats().restarts > before.restarts, "its death")
    wait_until(lambda: sum(1 for worker in pool.stats().workers if worker.pid) >= 3, "another")
    assert pool.stats().counts == before.counts


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_worker_dies_while_it_reads_arguments(pool: Pool) -> None:
    future = pool.submit(abs, Bomb())  # type: ignore[arg-type]
    with pytest.raises(TaskPanicked, match="exited with code 3"):
        future.result(WAIT_S)
    assert ended(pool, future).crashes == 1


class Leaver:
    """Raises SystemExit in the process that unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_arguments_that_cannot_be_read_are_an_error(pool: Pool) -> None:
    future = pool.submit(abs, Leaver())  # type: ignore[arg-type]
    with pytest.raises(TaskFailed):
        future.result(WAIT_S)
    task = ended(pool, future)
    assert task.error is not None
    assert (task.error.kind, task.crashes) == ("decode", 0)


def die(how: str) -> None:
    print("last words", flush=True)
    if how == "exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    if how == "null":
        ctypes.string_at(0)
    if how == "deep":
        faulthandler._stack_overflow()  # type: ignore[attr-defined]  # newer interpreters end most other ways by RecursionError
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "group":
        os.killpg(0, signal.SIGTERM)
        time.sleep(WAIT_S)


@pytest.mark.parametrize(
    ("how", "words", "code", "number"),
    [
        ("exit", "exited with code 3", 3, None),
        ("abort", "SIGABRT", None, signal.SIGABRT),
        ("null", "SIGSEGV", None, signal.SIGSEGV),
        ("deep", "SIGSEGV", None, signal.SIGSEGV),
        ("kill", "killed by SIGKILL, not by us", None, signal.SIGKILL),
        ("group", "SIGTERM", None, signal.SIGTERM),
    ],
)
def test_a_worker_dies_with_a_body(pool: Pool, how: str, words: str, code: int | None, number: int | None) -> None:
    """The error says how: status or signal, the stack where there can be one, the last words, the memory."""
    future = pool.submit(die, how)
    with pytest.raises(TaskPanicked, match=words):
        future.result(WAIT_S)
    task = ended(pool, future)
    error = task.error
    assert error is not None
    assert (error.kind, error.exit_code, error.signal, task.crashes, task.charged) == ("panic", code, number, 1, 1)
    assert "last words" in error.output_tail
    assert (error.peak_rss_bytes or 0) > 1_000_000
    if number in (signal.SIGABRT, signal.SIGSEGV):
        assert "in die" in error.traceback
    (attempt,) = pool.attempts(future.id)
    assert attempt.outcome == "failed"
    assert attempt.pid > 0


def much(flag: str) -> bytes:
    Path(flag).touch()
    return os.urandom(15 << 20)


def test_a_worker_dies_while_it_hands_over_a_result(tmp_path: Path, tag: str) -> None:
    """15 MB take a while to write. Half of them are none: the task has died, or it has its whole result."""
    outcomes = set()
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        run = tmp_path / "x.db.d" / "run" / "e1"
        for n in range(6):
            future = pool.submit(much, str(tmp_path / f"flag{n}"))
            wait_file(tmp_path / f"flag{n}")
            (worker,) = [worker.pid for worker in pool.stats().workers if worker.task_id == future.id] or [0]
            size = (15 << 20) * n // 6
            wait_until(lambda: future.done() or any(at_least(file, size) for file in run.glob("*.spill")), "its bytes")  # noqa: B023
            if worker:
                os.kill(worker, signal.SIGKILL)
            try:
                assert len(future.result(WAIT_S)) == 15 << 20
                outcomes.add("whole")
            except TaskPanicked:
                outcomes.add("died")
        wait_until(lambda: pool.submit(abs, 1).result(WAIT_S) and not list(run.glob("*.spill")), "the removal of files", 10)
    assert "died" in outcomes


def at_least(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size >= size
    except FileNotFoundError:
        return False


def hoard(limit: int | None) -> int:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    blocks = []
    for _ in range(4096):
        blocks.append(bytearray(b"x") * (1 << 20))
    return len(blocks)


def test_a_body_without_memory(pool: Pool) -> None:
    """Where memory is bounded it is Python's own error, and the worker lives."""
    before = pool.stats().restarts
    with pytest.raises(MemoryError):
        pool.submit(hoard, 1 << 29).result(WAIT_S)
    assert pool.stats().restarts == before


def test_the_kernel_takes_a_worker_when_memory_runs_out(pool: Pool) -> None:
    """In a control group of its own: the error names the signal and the peak, and a worker goes before the supervisor."""
    group = Path("/sys/fs/cgroup/memory/taskpool-test")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
    except OSError as error:
        pytest.skip(f"no control group for memory: {error}")
    try:
        future = pool.submit(hoard_in, str(group / "cgroup.procs"))
        with pytest.raises(TaskPanicked, match=r"killed by SIGKILL, not by us; peak RSS \d+ MB"):
            future.result(WAIT_S)
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()
    worker = next(worker.pid for worker in pool.stats().workers if worker.pid)
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (pool.pid, worker)]
    assert scores[0] < scores[1]


def hoard_in(procs: str) -> int:
    Path(procs).write_text(str(os.getpid()))
    return hoard(None)


# ---- bodies that do not stop ----------------------------------------------------------------------------------------


def ignore_signals(flag: str) -> None:
    for signo in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(signo, signal.SIG_IGN)
        except OSError:
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    Path(flag).touch()
    while True:
        time.sleep(1)


def swallow(flag: str) -> None:
    while True:
        try:
            Path(flag).touch()
            while True:
                time.sleep(0.01)
        except:  # noqa: E722
            pass


def hold_the_gil(flag: str) -> int:
    Path(flag).touch()
    return sum(range(10**12))


def hold_in_c(flag: str) -> None:
    """Wait for ever in C, with Python's own lock held, and without an interruption by signals."""
    library = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    Path(flag).touch()
    library.pthread_mutex_lock(mutex)


def wait_for_a_lock(flag: str) -> None:
    Path(flag).touch()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@pytest.mark.parametrize("body", [ignore_signals, swallow, hold_the_gil, hold_in_c])
def test_a_body_that_cannot_be_cancelled_is_killed(pool: Pool, tmp_path: Path, body: Callable[[str], Any]) -> None:
    """After the grace, within a second; and it is cancelled, not failed."""
    future = pool.submit(body, str(tmp_path / "flag"))
    wait_file(tmp_path / "flag")
    began_at = time.monotonic()
    assert future.cancel()
    with pytest.raises(TaskCancelled):
        future.result(WAIT_S)
    assert GRACE_S * 0.9 <= time.monotonic() - began_at <= GRACE_S + 2.0
    task = ended(pool, future)
    assert (task.status, task.charged, task.crashes) == ("cancelled", 0, 0)


@pytest.mark.parametrize("body", [ignore_signals, swallow, hold_the_gil, hold_in_c, wait_for_a_lock])
def test_a_body_that_hangs_is_killed_at_its_timeout(pool: Pool, tmp_path: Path, body: Callable[[str], Any]) -> None:
    """Whatever it is doing; and the error has the stack, if the process could tell it in a few milliseconds."""
    for _ in range(5):  # on a busy machine it may not
        future = pool.options(timeout=0.4).submit(body, str(tmp_path / "flag"))
        with pytest.raises(TaskTimeout, match=r"over its timeout of 0\.4 s") as caught:
            future.result(WAIT_S)
        (attempt,) = pool.attempts(future.id)
        assert 0.4 <= attempt.duration_s <= 0.4 + 1.0
        error = caught.value.error
        assert error is not None
        assert (error.kind, error.signal) == ("timeout", signal.SIGKILL)
        if body is ignore_signals or f"in {body.__name__}" in error.traceback:
            return
    pytest.fail(f"no stack: {error}")


def test_a_lock_that_is_never_free_can_be_cancelled(pool: Pool, tmp_path: Path) -> None:
    future = pool.submit(wait_for_a_lock, str(tmp_path / "flag"))
    wait_file(tmp_path / "flag")
    before = pool.stats().restarts
    assert future.cancel(grace=WAIT_S)
    with pytest.raises(TaskCancelled):
        future.result(WAIT_S)
    assert pool.stats().restarts == before


# ---- what bodies leave behind ---------------------------------------------------------------------------------------


def leave_processes() -> list[int]:
    """Leave a child, a child of a shell, and a daemon as they are made by the book."""
    child = subprocess.Popen(["sleep", "600"])
    shell = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; exec sleep 601"], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    found = [child.pid, shell.pid, int(shell.stdout.readline())]
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writing, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    return [*found, int(os.read(reading, 20))]


def test_processes_of_a_task_end_with_it(pool: Pool) -> None:
    for left in pool.submit(leave_processes).result(WAIT_S):
        wait_dead(left, SOON_S)


def leave_processes_and(how: str, path: str) -> None:
    evidence.append(path, " ".join(map(str, leave_processes())))
    if how == "die":
        os._exit(1)
    time.sleep(600)


@pytest.mark.parametrize("how", ["die", "hang"])
def test_processes_of_a_task_end_with_its_worker(pool: Pool, tmp_path: Path, how: str) -> None:
    future = pool.options(timeout=1.0).submit(leave_processes_and, how, str(tmp_path / "pids"))
    with pytest.raises((TaskPanicked, TaskTimeout)):
        future.result(WAIT_S)
    for left in (tmp_path / "pids").read_text().split():
        wait_dead(int(left), SOON_S)


def return_twice() -> int:
    """Fork, and come back from it in both processes."""
    return os.fork()


def raise_twice() -> None:
    os.fork()
    raise ValueError


def test_a_fork_that_comes_back_reports_once(lonely: Pool) -> None:
    child = lonely.submit(return_twice).result(WAIT_S)
    assert child > 0
    wait_dead(child, SOON_S)
    with pytest.raises(ValueError, match=r"^$"):
        lonely.submit(raise_twice).result(WAIT_S)
    assert lonely.stats().attempts == 2


def close_descriptors(path: str) -> list[int]:
    """Close all there are, and open files in their place."""
    os.closerange(3, 4096)
    return [os.open(f"{path}{n}", os.O_RDWR | os.O_CREAT) for n in range(700)]


def test_descriptors_that_are_closed(pool: Pool, tmp_path: Path) -> None:
    """The worker sees that its own are gone and ends, before it writes a byte into files of the task's."""
    with pytest.raises(TaskPanicked, match="closed our file descriptors"):
        pool.submit(close_descriptors, str(tmp_path / "file")).result(WAIT_S)
    files = list(tmp_path.glob("file*"))
    assert len(files) == 700
    assert {file.stat().st_size for file in files} == {0}


def close_standard() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def test_standard_descriptors_that_are_closed(lonely: Pool) -> None:
    for _ in range(3):
        lonely.submit(close_standard).result(WAIT_S)
        future = lonely.submit(print, "still here")
        future.result(WAIT_S)
        assert "still here" in future.logs()


def state() -> dict[str, Any]:
    """What a body finds."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "cwd": os.path.exists(os.getcwd()) and os.getcwd(),
        "umask": mask,
        "environ": dict(os.environ),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)],
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdout.fileno(), sys.stderr.fileno()],
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "recursion": sys.getrecursionlimit(),
        "gc": gc.isenabled(),
        "trace": (sys.gettrace(), sys.getprofile()),
        "threads": threading.active_count(),
        "children": len(psutil.Process().children()),
    }


def soil(what: str, place: str) -> None:
    """Leave a mess."""
    if what == "directory":
        os.chdir(place)
    elif what == "removed directory":
        Path(place, "removed").mkdir()
        os.chdir(Path(place, "removed"))
        Path(place, "removed").rmdir()
    elif what == "umask":
        os.umask(0)
    elif what == "environment":
        os.environ["TASKPOOL_SOILED"] = "1"
        del os.environ["PATH"]
    elif what == "environment object":
        os.environ = {}  # type: ignore[assignment]  # noqa: B003
    elif what == "handlers":
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(signo, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    elif what == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    elif what == "limits":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    elif what == "hard limit":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    elif what == "streams":
        sys.stdout = sys.stderr = open(os.path.join(place, "out"), "w")
        os.dup2(sys.stdout.fileno(), 1)
    elif what == "closed streams":
        sys.stdout.close()
        sys.stderr.close()
    elif what == "no streams":
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        sys.__stdout__ = None  # type: ignore[misc,assignment]
    elif what == "stdin":
        os.dup2(os.open(os.path.join(place, "in"), os.O_RDWR | os.O_CREAT), 0)
    elif what == "interpreter":
        sys.setrecursionlimit(100_000)
        gc.disable()
        sys.setprofile(lambda *_: None)
        sys.settrace(lambda *_: None)
    elif what == "thread":
        threading.Thread(target=time.sleep, args=[600], daemon=True).start()
    elif what == "signals":
        for signo in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(signo, signal.SIG_DFL)
            except OSError:
                continue


MESSES = [
    "directory",
    "removed directory",
    "umask",
    "environment",
    "environment object",
    "handlers",
    "alarm",
    "limits",
    "hard limit",
    "streams",
    "closed streams",
    "no streams",
    "stdin",
    "interpreter",
    "thread",
    "signals",
]


def test_the_next_task_finds_a_clean_process(lonely: Pool, tmp_path: Path) -> None:
    """What can be put back is put back; else the worker is replaced."""
    clean = lonely.submit(state).result(WAIT_S)
    before = lonely.submit(pid).result(WAIT_S)
    for what in MESSES:
        lonely.submit(soil, what, str(tmp_path)).result(WAIT_S)
        after = lonely.submit(pid).result(WAIT_S)
        assert lonely.submit(state).result(WAIT_S) == clean, what
        if what != "hard limit":  # which some may raise again
            assert (after != before) == (what == "thread"), what
        before = after
        future = lonely.submit(print, "heard")
        future.result(WAIT_S)
        assert "heard" in future.logs(), what
        hanging = lonely.submit(time.sleep, 600)
        wait_until(hanging.running, "its begin")
        assert hanging.cancel(grace=WAIT_S), what
        with pytest.raises(TaskCancelled):
            hanging.result(WAIT_S)
    assert lonely.submit(pid).result(WAIT_S) == before  # the cancels needed no kill


def print_later(path: str) -> int:
    """Leave a thread that acts when the task is over, and return the process."""

    def act() -> None:
        for _ in range(100):
            print("from the thread", flush=True)
            evidence.append(path, "acted")
            time.sleep(0.01)

    threading.Thread(target=act).start()
    return os.getpid()


def test_threads_do_not_outlive_their_task(lonely: Pool, tmp_path: Path) -> None:
    left = lonely.submit(print_later, str(tmp_path / "log")).result(WAIT_S)
    future = lonely.submit(pid)
    assert future.result(WAIT_S) != left
    wait_dead(left)
    assert "from the thread" not in future.logs()


# ---- output ---------------------------------------------------------------------------------------------------------


def flood(size: int, fd: int) -> None:
    line = b"x" * 1023 + b"\n"
    for _ in range(size // 1024):
        os.write(fd, line)
    os.write(fd, b"the end\n")


@pytest.mark.parametrize("size", [32 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_a_body_that_prints_and_prints(pool: Pool, size: int) -> None:
    """It is never blocked for good, others go on meanwhile, the end is kept, and no memory grows."""
    before = psutil.Process(pool.pid).memory_info().rss
    loud = pool.submit_nowait(flood, size, 1)
    quick = [pool.submit(abs, -n).result(WAIT_S) for n in range(50)]
    assert quick == list(range(50))
    loud.result(2 * WAIT_S)
    assert loud.logs().endswith("the end\n")
    assert len(loud.logs()) < 1 << 20
    assert psutil.Process(pool.pid).memory_info().rss - before < 32 << 20


# ---- results and exceptions -----------------------------------------------------------------------------------------


class Reduces:
    """Does something while it is pickled."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __reduce__(self) -> Any:
        return self.action()


def deep(levels: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(levels):
        nest = [nest]
    return nest


def raise_it(error: BaseException) -> Any:
    raise error


BAD_RESULTS: dict[str, Callable[[], Any]] = {
    "a generator": lambda: (n for n in range(3)),
    "an open file": lambda: open("/dev/null"),
    "a lock": lambda: [threading.Lock()],
    "a socket": lambda: {"deep": {"inside": socket.socket()}},
    "a module": lambda: sys,
    "too much": lambda: b"x" * ((16 << 20) + 1),
    "too deep": lambda: deep(100_000),
    "raises while it is pickled": lambda: Reduces(lambda: raise_it(ValueError("no"))),
    "exits while it is pickled": lambda: Reduces(lambda: sys.exit(3)),
    "interrupts while it is pickled": lambda: Reduces(lambda: raise_it(KeyboardInterrupt())),
    "is cancelled while it is pickled": lambda: Reduces(lambda: raise_it(Cancelled())),
    "pickles as nonsense": lambda: Reduces(lambda: 42),
    "takes all memory": lambda: Reduces(lambda: raise_it(MemoryError())),
}
GOOD_RESULTS: dict[str, Callable[[], Any]] = {
    "surrogates": lambda: "\ud800 \udfff",
    "a long number": lambda: 7**20_000,
    "infinities": lambda: [math.inf, -math.inf, -0.0],
    "nothing": lambda: None,
    "bytes": lambda: bytes(range(256)) * 4096,
    "much": lambda: b"x" * ((16 << 20) - 1000),
    "an exception": lambda: KeyError("k"),
    "a class": lambda: OSError,
    "deep": lambda: deep(200),
    "a circle": lambda: circle(),
}


def circle() -> Any:
    ring: dict[str, Any] = {}
    ring["self"] = ring
    return ring


def make_bad(name: str) -> Any:
    return BAD_RESULTS[name]()


def make_good(name: str) -> Any:
    return GOOD_RESULTS[name]()


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_a_result_that_cannot_be_sent(pool: Pool, name: str) -> None:
    """It is an error of that task, which names what it was; the worker lives."""
    before = pool.stats().restarts
    future = pool.submit(make_bad, name)
    with pytest.raises(TaskFailed) as caught:
        future.result(WAIT_S)
    error = caught.value.error
    assert error is not None
    assert (error.kind, error.retryable) == ("result", False)
    assert error.message
    assert pool.stats().restarts == before


def test_results_that_can_be_sent(pool: Pool) -> None:
    for name, make in GOOD_RESULTS.items():
        result = pool.submit(make_good, name).result(WAIT_S)
        if name == "a circle":
            assert result["self"] is result
        elif name == "an exception":
            assert (type(result), result.args) == (KeyError, ("k",))
        else:
            assert (type(result), result) == (type(make()), make()), name
    assert math.isnan(pool.submit(float, "nan").result(WAIT_S))


class UnpicklesNever:
    def __reduce__(self) -> Any:
        return raise_it, (ValueError("not here"),)


def test_a_result_that_cannot_be_read(pool: Pool) -> None:
    """The task has succeeded; who wants its result is told why there is none."""
    future = pool.submit(UnpicklesNever)
    with pytest.raises(TaskpoolError, match="not here"):
        future.result(WAIT_S)
    assert ended(pool, future).status == "succeeded"


class TwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(5)


class Interrupts(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class Lies(Exception):
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return Cancelled

    __cause__ = property(lambda self: 1 / 0)  # type: ignore[assignment]
    __traceback__ = property(lambda self: "none")  # type: ignore[assignment]


class Executes(Exception):
    """Would end whoever unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


class Chatty(Exception):
    def __str__(self) -> str:
        return "x" * 100_000_000


class Strange(Exception):
    seconds = "soon"

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class StrangeSnooze(Snooze):
    def __init__(self) -> None:
        super().__init__(1)
        self.seconds = "soon"  # type: ignore[assignment]


def in_a_circle() -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def long_chain() -> BaseException:
    error: BaseException = ValueError("the first")
    for n in range(5000):
        following = ValueError(str(n))
        following.__cause__ = error
        error = following
    return error


BAD_ERRORS: dict[str, Callable[[], BaseException]] = {
    "two arguments": lambda: TwoArguments(1, 2),
    "mute": Mute,
    "exits": Exits,
    "interrupts": Interrupts,
    "lies": Lies,
    "chatty": Chatty,
    "strange": Strange,
    "strange snooze": StrangeSnooze,
    "not a number of seconds": lambda: Snooze(math.nan),
    "for ever": lambda: Snooze(math.inf),
    "in a circle": in_a_circle,
    "a long chain": long_chain,
    "holds a lock": lambda: ValueError(threading.Lock()),
    "surrogates": lambda: ValueError("\ud800"),
    "a group": lambda: BaseExceptionGroup("many", [Mute(), Exits(), KeyboardInterrupt()]),
    "no retry": lambda: NonRetryableError(Mute()),
    "system exit": lambda: SystemExit(0),
    "system exit with an object": lambda: SystemExit(threading.Lock()),
    "keyboard interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop iteration": StopIteration,
    "base exception": BaseException,
    "a great one": lambda: ValueError(b"x" * 50_000_000),
}


def raise_bad(name: str) -> None:
    raise BAD_ERRORS[name]()


@pytest.mark.parametrize("name", BAD_ERRORS)
def test_an_exception_whatever_it_does(pool: Pool, name: str) -> None:
    """It is an error of that task, not a cancel, not the end of the worker; its words are bounded."""
    before = pool.stats().restarts
    future = pool.submit(raise_bad, name)
    task = ended(pool, future)
    assert task.status == "failed"
    error = task.error
    assert error is not None
    assert error.kind == "handler"
    assert len(error.message) <= 64 << 10
    assert len(error.traceback) <= 64 << 10
    assert len(error.exception or b"") <= 256 << 10
    assert pool.stats().restarts == before
    with pytest.raises(BaseException) as caught:
        future.result(WAIT_S)
    assert not isinstance(caught.value, TaskCancelled | TimeoutError)


def raise_executes() -> None:
    raise Executes


def test_an_exception_that_ends_whoever_reads_it(pool: Pool) -> None:
    """It is tried in the worker that raised it, so that it does not end the one who asks for the result."""
    with pytest.raises(TaskPanicked, match="exited with code 9"):
        pool.submit(raise_executes).result(WAIT_S)


def test_cancelled_by_itself(pool: Pool) -> None:
    """A body that raises Cancelled has cancelled itself."""
    with pytest.raises(TaskCancelled):
        pool.submit(raise_it, Cancelled("enough")).result(WAIT_S)
