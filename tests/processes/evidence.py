"""Evidence: what bodies say of themselves in a file, held against what the store says of them.

A body writes a line when it begins and one when it ends, each by one write to a file opened with O_APPEND, so that no kill tears or
mixes lines. A client writes into a ledger what it is about to submit and, after the submit has returned, the id it was given.
Whatever is killed, the checks here must hold; they read the store as anybody may, and need no supervisor.
"""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from taskpool import Pool, PoolStopped, controller
from taskpool.core.lifecycle import MOVES, RUNNING, SUCCEEDED
from taskpool.model import Attempt, Task
from taskpool.store.reading import LIVE, Reader
from tests.waiting import wait_file, wait_until

SEED = int(os.environ.get("TASKPOOL_TEST_SEED") or random.randrange(1 << 32))
TAG = "TASKPOOL_TEST_TAG"  # in the environment of all that a test starts
GONE_S = 2.0  # so long anything of a killed owner may live on
WAIT_S = 60.0


def chance(name: str) -> random.Random:
    """Return the random numbers of a test. Its seed is printed with a failure; TASKPOOL_TEST_SEED replays it."""
    print(f"replay with TASKPOOL_TEST_SEED={SEED}")
    return random.Random(f"{SEED}:{name}")


# ---- lines ----------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One line of evidence. at_ns: monotonic."""

    kind: str
    task_id: int
    attempt: int
    pid: int
    at_ns: int


def append(path: str | os.PathLike[str], line: str) -> None:
    """Add a line by one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def note(place: str | os.PathLike[str], kind: str) -> None:
    """Called by a body: say that it is there."""
    running = controller()
    append(Path(place, "evidence"), f"{kind} {running.task.id} {running.attempt} {os.getpid()} {time.monotonic_ns()}")


def read_evidence(place: str | os.PathLike[str]) -> list[Line]:
    """Return the lines there are, in the order they were written."""
    try:
        text = Path(place, "evidence").read_text()
    except FileNotFoundError:
        return []
    return [Line(kind, *map(int, rest)) for kind, *rest in map(str.split, text.splitlines())]


def wait_lines(place: str | os.PathLike[str], count: int) -> list[Line]:
    """Wait until bodies have written so many lines, and return what there is."""
    wait_until(lambda: len(read_evidence(place)) >= count, f"{count} lines")
    return read_evidence(place)


# ---- work -----------------------------------------------------------------------------------------------------------


def work(place: str, n: int, us: int = 0) -> tuple[int, int]:
    """Begin, take so many µs, end; return the number and the attempt that made it."""
    note(place, "begin")
    if us:
        time.sleep(us / 1e6)
    note(place, "end")
    return n, controller().attempt


def hold(place: str, n: int) -> tuple[int, int]:
    """Begin, wait for the file `go`, end."""
    note(place, "begin")
    wait_file(Path(place, "go"))
    note(place, "end")
    return n, controller().attempt


def duration_us(n: int) -> int:
    """Return how long item n takes: mostly next to nothing, so that mailboxes fill, sometimes long enough to be hit."""
    return (0, 0, 0, 300, 0, 2_000, 0, 0, 20_000, 0)[n * 7919 % 10]


def items(place: str, count: int) -> list[tuple[str, int, int]]:
    """Return the arguments of a batch."""
    return [(place, n, duration_us(n)) for n in range(count)]


def work_item(item: tuple[str, int, int]) -> tuple[int, int]:
    """Do `work` on an item of a batch."""
    return work(*item)


def submit(pool: Pool, place: str | os.PathLike[str], n: int, us: int = 0, fn: Any = work, **options: Any) -> Any:
    """Submit one task and keep the ledger: what was tried, and what was acknowledged as durable."""
    ledger = Path(place, "ledger")
    append(ledger, f"try {n}")
    args = (os.fspath(place), n, us) if fn is work else (os.fspath(place), n)
    future = (pool.options(**options) if options else pool).submit(fn, *args)
    append(ledger, f"ack {n} {future.id}")
    return future


def acknowledged(place: str | os.PathLike[str]) -> dict[int, int]:
    """Return number → id of all that a client was told to be durable."""
    try:
        lines = Path(place, "ledger").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(n): int(task_id) for kind, n, task_id in (line.split() for line in lines if line.startswith("ack"))}


def drive(pool: Pool, place: str | os.PathLike[str], run: int, count: int, plain: int) -> None:
    """Take up a batch of `count` items, and submit `plain` tasks of this run's own meanwhile; wait for all of them."""
    place = os.fspath(place)
    results = pool.map(work_item, items(place, count), batch="items", buffersize=200)
    futures = []
    for n in range(max(count, plain)):
        if n < plain:
            futures.append(submit(pool, place, 1_000_000 * (run + 1) + n, duration_us(n)))
        if n < count:
            assert next(results)[0] == n
    for n, future in enumerate(futures):
        assert future.result(WAIT_S)[0] == 1_000_000 * (run + 1) + n


def finish(pool: Pool, timeout_s: float = WAIT_S) -> None:
    """Wait until nothing waits or runs in the store any more."""
    until = time.monotonic() + timeout_s
    while live := pool.count(status=("pending", "queued", "running", "retrying")):
        assert time.monotonic() < until, f"{live} tasks have not ended: {pool.stats()}"
        time.sleep(0.01)


# ---- processes ------------------------------------------------------------------------------------------------------


def tagged(tag: str) -> dict[int, str]:
    """Return the live processes that a test with that tag has started, and what they are."""
    wanted = f"{TAG}={tag}".encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{name}/stat", "rb") as file:
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        if text[text.rindex(")") + 2] not in "ZX":
            found[int(name)] = text[text.index("(") + 1 : text.rindex(")")]
    return found


def wait_gone(tag: str, timeout_s: float = 2 * GONE_S) -> float:
    """Wait until nothing with that tag lives; return the seconds it took. Twice what is promised is allowed: machines are busy."""
    began = time.monotonic()
    while left := tagged(tag):
        assert time.monotonic() < began + timeout_s, f"still alive: {left}"
        time.sleep(0.005)
    return time.monotonic() - began


# ---- checks ---------------------------------------------------------------------------------------------------------


class Reruns:
    """Watches a store through kills: a body may begin again only if it was the last that its process had begun."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self._place = place

    def check(self) -> int:
        """Check all evidence so far; return how many bodies began more than once."""
        lines = read_evidence(self._place)
        last: dict[int, tuple[int, int]] = {}
        begun: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for line in lines:
            if line.kind == "begin":
                last[line.pid] = (line.task_id, line.attempt)
                begun[line.task_id].append((line.attempt, line.pid))
        again = 0
        for task_id, attempts in begun.items():
            for attempt, pid in attempts[:-1]:
                again += 1
                assert last[pid] == (task_id, attempt), (
                    f"task {task_id} began again, though process {pid} had gone on from its attempt {attempt} to {last[pid]}"
                )
        return again


class Checked(NamedTuple):
    """What a check found. statuses: tasks by status; again: bodies that began again; tasks by id."""

    statuses: Counter[str]
    again: int
    tasks: dict[int, Task]
    attempts: dict[int, list[Attempt]]


def check(place: str | os.PathLike[str], *, again_max: int | None = None, ended: bool = False) -> Checked:
    """Hold evidence, ledger, rows and attempts against each other. Nothing may own the store meanwhile, nor have work in it change.

    again_max: so many bodies were running at the kills; ended: all tasks have come to their end.
    """
    store = Path(place, "x.db")
    check_file(store)
    lines = read_evidence(place)
    tasks: dict[int, Task] = {}
    attempts: dict[int, list[Attempt]] = {}
    with Reader(store) as reader:
        assert reader.counts_by_queue() == reader.recount(), "the tally is wrong"
        for task_id in reader.match(_ALL):
            tasks[task_id] = reader.task(task_id)
            attempts[task_id] = reader.attempts(task_id)
        counts = reader.counts()
    assert sum(counts.values()) == len(tasks)
    _check_ledger(place, tasks)
    for task in tasks.values():
        _check_attempts(task, attempts[task.id])
        assert (task.finished_at is not None) == task.status.is_terminal, task
        if ended:
            assert task.status.is_terminal, task
    _check_evidence(lines, tasks, attempts)
    again = Reruns(place).check()
    if again_max is not None:
        assert again <= again_max, f"{again} bodies began again, at most {again_max} were running at the kills"
    return Checked(Counter(map(str, (task.status for task in tasks.values()))), again, tasks, attempts)


def check_file(store: Path) -> None:
    """SQLite finds nothing wrong with the file."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        (live,) = connection.execute(f"SELECT COUNT(*) FROM task WHERE {LIVE} AND result IS NOT NULL").fetchone()
        assert live == 0, "a task that has not ended has a result"
    finally:
        connection.close()


def number_of(task: Task) -> int:
    """Return the number that a task was given."""
    (args, _) = pickle.loads(task.payload)
    return int(args[0][1] if isinstance(args[0], tuple) else args[1])


def _check_ledger(place: str | os.PathLike[str], tasks: dict[int, Task]) -> None:
    """What was acknowledged is there under its id, once; what was not, once or never."""
    acked = acknowledged(place)
    assert len(set(acked.values())) == len(acked), "one id was given twice"
    for n, task_id in acked.items():
        assert task_id in tasks, f"task {task_id} was acknowledged and is lost"
        assert number_of(tasks[task_id]) == n, f"task {task_id} is another than the one that was acknowledged"
    numbers = Counter((number_of(task), task.batch) for task in tasks.values())
    assert not [n for n, times in numbers.items() if times > 1], "something is stored twice"
    assert len({task.uid for task in tasks.values()}) == len(tasks)


_OPEN_OUTCOMES = {"returned", "retrying", "snoozed", "interrupted", "stopped"}  # after which there may be another attempt


def _check_attempts(task: Task, attempts: list[Attempt]) -> None:
    """The rows of attempts tell how the task came to where it stands, by legal moves."""
    what = f"task {task.id} ({task.status}, {[attempt.outcome for attempt in attempts]})"
    assert str(task.status) in MOVES, what
    expected = task.attempt - 1 if task.status == RUNNING else task.attempt
    assert [attempt.attempt for attempt in attempts] == list(range(1, expected + 1)), what
    if task.round == 0:
        assert all(attempt.outcome in _OPEN_OUTCOMES for attempt in attempts[:-1]), what
        assert task.charged == sum(attempt.outcome in ("succeeded", "failed", "retrying") for attempt in attempts), what
    succeeded = [attempt.attempt for attempt in attempts if attempt.outcome == "succeeded"]
    assert len(succeeded) <= 1, what
    assert bool(succeeded) == (task.status == SUCCEEDED), what
    if succeeded:
        assert succeeded == [task.attempt], what
    limit = task.options.max_attempts or 1
    assert task.charged <= max(1, limit), what
    if task.options.at_most_once:
        assert sum(attempt.outcome != "returned" for attempt in attempts) <= 1, what


def _check_evidence(lines: list[Line], tasks: dict[int, Task], attempts: dict[int, list[Attempt]]) -> None:
    begins = Counter((line.task_id, line.attempt) for line in lines if line.kind == "begin")
    ends = Counter((line.task_id, line.attempt) for line in lines if line.kind == "end")
    assert all(times == 1 for times in begins.values()), "an attempt began twice"
    assert not ends.keys() - begins.keys()
    begun_of = Counter(task_id for task_id, _ in begins)
    known = {task_id for task_id, _ in begins}
    assert known <= tasks.keys(), "a body ran of a task that is not there"
    for task_id, attempt in begins:
        task = tasks[task_id]
        assert attempt <= task.attempt, f"attempt {attempt} of task {task_id} began and is not recorded"
        row = next((row for row in attempts[task_id] if row.attempt == attempt), None)
        assert row is None or row.outcome != "returned", f"attempt {attempt} of task {task_id} began and is said to be returned"
    for task in tasks.values():
        if task.options.at_most_once:
            assert begun_of[task.id] <= 1, f"task {task.id} may run at most once"
        if task.status == SUCCEEDED:
            assert (task.id, task.attempt) in ends, f"task {task.id} succeeded without an end"
            assert task.result is not None
            assert pickle.loads(task.result) == (number_of(task), task.attempt), "another attempt's result"


def _all() -> Any:
    from taskpool.model import Filter

    return Filter()


_ALL = _all()


def stopped(*futures: Future[Any]) -> Iterator[str]:
    """Yield what each future says of the end of its pool; each must have one."""
    for future in futures:
        try:
            future.result(WAIT_S)
        except PoolStopped as error:
            yield str(error)
