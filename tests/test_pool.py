"""The pool as its users have it: a supervisor, workers and a store, from `with Pool(…)` to the last result."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import dataclasses
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import (
    ArgCountError,
    Controller,
    InvalidHandler,
    InvalidSettings,
    Pool,
    PoolStopped,
    RetryableError,
    Snooze,
    SoftTimeout,
    StoreLocked,
    TaskCancelled,
    TaskFailed,
    TaskPanicked,
    TaskpoolError,
    TaskTimeout,
    connect,
    controller,
    task,
)
from tests.waiting import wait_file, wait_until

WAIT_S = 30


# ---- bodies -------------------------------------------------------------------------------------------------------------


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


def spin(flag: str = "") -> None:
    if flag:
        Path(flag).touch()
    while True:
        pass


def begin_and_nap(flag: str) -> None:
    Path(flag).touch()
    time.sleep(WAIT_S)


def die(how: str) -> None:
    print("last words", flush=True)
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return OwnError, (self.code,)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a generator")
        self.generator = (n for n in ())


def fail(kind: str) -> None:
    if kind == "own":
        raise OwnError(7)
    if kind == "unpicklable":
        raise Unpicklable
    if kind == "chained":
        try:
            raise OSError("disk")
        except OSError as error:
            raise KeyError("k") from error
    sys.exit(5)


def generator_result() -> Any:
    return (n for n in range(3))


def third_time(counter: str, how: str) -> int:
    """Fail twice, noting each time in a file."""
    path = Path(counter)
    times = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (times + 1))
    if times < 2:
        if how == "retry":
            raise RetryableError("not yet", backoff=0.001)
        raise Snooze(0.001)
    return times + 1


def clean_up(flag: str) -> str:
    """Take a soft timeout, or a cancel, as a reason to end in order."""
    Path(flag).touch()
    try:
        time.sleep(WAIT_S)
    except SoftTimeout:
        return "ended in order"
    return "slept"


@dataclasses.dataclass
class Point:
    x: int
    y: float


@task(tags="typed")
def mirror(point: Point, *, by: float = 1.0) -> Point:
    return Point(-point.x, point.y * by)


@task
def report(ctl: Controller, text: str) -> int:
    ctl.progress(3, 4, text)
    ctl.log(f"logged {text}")
    print("printed", text)
    return ctl.attempt


def deep() -> str:
    return controller().task.name


# ---- one pool for many tests --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    store = tmp_path_factory.mktemp("pool") / "x.db"
    with Pool(store, workers=2, durability="process", cancel_grace=0.5) as pool:
        yield pool


def test_functions_of_all_sorts(pool: Pool) -> None:
    """By name, by value, builtin, partial, method; arguments of any type."""
    offset = 10
    assert pool.submit(add, 1, b=2).result(WAIT_S) == 3
    assert pool.submit(lambda n: n + offset, 1).result(WAIT_S) == 11
    assert pool.submit(functools.partial(add, b=5), 1).result(WAIT_S) == 6
    assert pool.submit(pow, 2, 10).result(WAIT_S) == 1024
    assert pool.submit("abc".upper).result(WAIT_S) == "ABC"
    assert pool.submit(add, [1], b=[None]).result(WAIT_S) == [1, None]
    assert pool.submit(deep).result(WAIT_S).endswith(":deep")


def test_typed_handlers(pool: Pool) -> None:
    """Arguments and results keep their types; a controller is filled in."""
    assert pool.submit(mirror, Point(1, 2.0), by=3.0).result(WAIT_S) == Point(-1, 6.0)
    assert mirror.options(priority=1).submit(Point(1, 2.0)).result(WAIT_S) == Point(-1, 2.0)
    future = report.submit("half way")
    assert future.result(WAIT_S) == 1
    assert "printed half way" in future.logs()
    assert "logged half way" in future.logs()
    progress = future.progress
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (3, 4, "half way")
    assert pool.future(future.id).result(WAIT_S) == 1
    listed = pool.list(tag="typed")
    assert {each.name for each in listed} == {mirror.name}


def test_arguments_that_do_not_fit_never_leave(pool: Pool) -> None:
    with pytest.raises(ArgCountError):
        pool.submit(nap)  # type: ignore[call-arg]
    with pytest.raises(InvalidHandler):
        pool.submit(3)  # type: ignore[arg-type]


def test_exceptions_of_handlers(pool: Pool) -> None:
    with pytest.raises(OwnError, match="code 7") as caught:
        pool.submit(fail, "own").result(WAIT_S)
    assert caught.value.code == 7
    assert "in fail\n    raise OwnError(7)" in str(caught.value.__cause__)
    with pytest.raises(KeyError) as chained:
        pool.submit(fail, "chained").result(WAIT_S)
    assert "OSError: disk" in str(chained.value.__cause__)
    with pytest.raises(TaskFailed, match="Unpicklable: holds a generator"):
        pool.submit(fail, "unpicklable").result(WAIT_S)
    with pytest.raises(SystemExit) as left:
        pool.submit(fail, "exit").result(WAIT_S)
    assert left.value.code == 5
    with pytest.raises(TaskFailed) as unsendable:
        pool.submit(generator_result).result(WAIT_S)
    assert unsendable.value.error is not None
    assert unsendable.value.error.kind == "result"


@pytest.mark.parametrize(("how", "word"), [("exit", "3"), ("crash", "SEGV")])
def test_a_dying_process_costs_its_own_task_alone(pool: Pool, how: str, word: str) -> None:
    good = [pool.submit_nowait(add, n) for n in range(50)]
    bad = pool.submit_nowait(die, how)
    good += [pool.submit_nowait(add, n) for n in range(50)]
    with pytest.raises(TaskPanicked) as caught:
        bad.result(WAIT_S)
    assert word in str(caught.value)
    assert caught.value.error is not None
    assert caught.value.error.kind == "panic"
    assert "last words" in caught.value.error.output_tail + bad.logs()
    assert [future.result(WAIT_S) for future in good] == [*range(50)] * 2
    outcomes = {attempt.outcome for future in good for attempt in future.attempts}
    assert outcomes <= {"succeeded", "returned"}  # what was sent to the dead worker and not begun came back
    assert {pool.get(future.id).crashes for future in good} == {0}


def test_timeouts(pool: Pool, tmp_path: Path) -> None:
    """The hard one kills whatever runs; the soft one lets a handler end in order."""
    with pytest.raises(TaskTimeout):
        pool.options(timeout=0.1).submit(spin).result(WAIT_S)
    soft = pool.options(soft_timeout=0.1, timeout=WAIT_S).submit(clean_up, str(tmp_path / "flag"))
    assert soft.result(WAIT_S) == "ended in order"
    with pytest.raises(TaskTimeout) as caught:
        pool.options(deadline=0.2).submit(nap, WAIT_S).result(WAIT_S)
    assert caught.value.error is not None
    assert caught.value.error.kind == "deadline"
    with pytest.raises(TaskCancelled) as expired:
        pool.options(expires=0.05, delay=60).submit(add, 1).result(WAIT_S)
    assert expired.value.error is None or expired.value.error.kind == "expired"


def test_cancelling_what_waits_and_what_runs(pool: Pool, tmp_path: Path) -> None:
    waiting = pool.options(delay=3600).submit(add, 1)
    assert waiting.status == "pending"
    assert waiting.cancel(reason="changed my mind")
    with pytest.raises(TaskCancelled):
        waiting.result(WAIT_S)
    assert waiting.cancelled()
    running = pool.submit(begin_and_nap, str(tmp_path / "a"))
    wait_file(tmp_path / "a")
    assert running.running()
    assert running.cancel()
    with pytest.raises(cf.CancelledError):
        running.result(WAIT_S)
    stubborn = pool.submit(spin, str(tmp_path / "b"))
    wait_file(tmp_path / "b")
    assert stubborn.cancel(force=True)
    with pytest.raises(TaskCancelled):
        stubborn.result(WAIT_S)
    error = pool.attempts(stubborn.id)[0].error
    assert error is not None
    assert error.message.startswith("cancelled: killed ")  # nobody waited for it to stop by itself
    done = pool.submit(add, 1)
    done.result(WAIT_S)
    assert not done.cancel()
    assert pool.get(waiting.id).status == "cancelled"


def test_bulk_cancel_and_retry(pool: Pool) -> None:
    futures = pool.options(delay=3600, queue="bulk").submit_many(add, range(5))
    assert pool.count(queue="bulk") == 5
    assert len(pool.cancel(queue="bulk", dry_run=True).ids) == 5
    assert sorted(pool.cancel(queue="bulk").ids) == [future.id for future in futures]
    for future in futures:
        with pytest.raises(TaskCancelled):
            future.result(WAIT_S)
    again = futures[0].retry()
    assert pool.count(queue="bulk", status="cancelled") == 4
    assert again.id == futures[0].id
    assert again.result(WAIT_S) == 0
    mixed = [futures[1].id, again.id, 10**9]
    assert pool.retry(mixed) == ([futures[1].id], [10**9, again.id])
    assert pool.cancel([10**9]) == ([], [10**9])


def test_retries_and_snoozes(pool: Pool, tmp_path: Path) -> None:
    retried = pool.options(max_attempts=3).submit(third_time, str(tmp_path / "retry"), "retry")
    assert retried.result(WAIT_S) == 3
    assert [attempt.outcome for attempt in retried.attempts] == ["retrying", "retrying", "succeeded"]
    snoozed = pool.submit(third_time, str(tmp_path / "snooze"), "snooze")
    assert snoozed.result(WAIT_S) == 3
    assert pool.get(snoozed.id).charged == 1
    given_up = pool.options(max_attempts=2).submit(third_time, str(tmp_path / "two"), "retry")
    with pytest.raises(Exception, match="not yet"):
        given_up.result(WAIT_S)


def test_looking_around(pool: Pool) -> None:
    futures = pool.submit_many(add, range(30))
    task_ = pool.wait(futures[-1].id, WAIT_S)
    assert task_.status == "succeeded"
    newest = pool.list(limit=3)
    assert [each.id for each in newest] == sorted((each.id for each in newest), reverse=True)
    page = pool.list(limit=2, before=newest[-1].id)
    assert page[0].id < newest[-1].id
    stats = pool.stats()
    assert stats.store == pool.store
    assert stats.pid == pool.pid
    assert len(stats.workers) >= 2
    *returned, attempt = pool.attempts(futures[-1].id)
    assert all(each.outcome == "returned" for each in returned)  # a busy machine: it was given to another worker
    assert attempt.outcome == "succeeded"
    assert attempt.pid not in (0, os.getpid())
    with pytest.raises(TimeoutError):
        pool.wait(pool.options(delay=3600).submit(add, 1).id, 0.01)
    pool.cancel(status="pending")


def test_threads_submit_together(pool: Pool) -> None:
    wrong: list[Any] = []

    def go(base: int) -> None:
        for n in range(20):
            value = pool.submit(add, base, n).result(WAIT_S)
            if value != base + n:
                wrong.append(value)

    threads = [threading.Thread(target=go, args=[1000 * k]) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong


def test_many_at_once_and_the_standard_waits(pool: Pool) -> None:
    futures = [pool.submit_nowait(add, n) for n in range(2000)]
    assert sum(future.result(WAIT_S) for future in futures) == sum(range(2000))
    more = [pool.submit_nowait(add, n) for n in range(200)]
    done, rest = cf.wait(more, timeout=WAIT_S)
    assert (len(done), len(rest)) == (200, 0)
    assert {future.result() for future in pool.as_completed([pool.submit_nowait(add, n) for n in range(50)])} == set(range(50))


def test_map(pool: Pool) -> None:
    assert list(pool.map(add, range(500), range(500))) == list(range(0, 1000, 2))
    assert sorted(pool.map(add, range(100), ordered=False)) == list(range(100))
    mixed = list(pool.map(divmod, [7, 8, 9], [2, 0, 4], return_exceptions=True))
    assert mixed[0] == (3, 1)
    assert isinstance(mixed[1], ZeroDivisionError)
    assert mixed[2] == (2, 1)


def test_await_and_cancelled_scopes(pool: Pool, tmp_path: Path) -> None:
    async def main() -> None:
        assert await pool.submit(add, 1, 2) == 3
        assert await asyncio.wrap_future(pool.submit(add, 1, 2)) == 3
        future = pool.submit(begin_and_nap, str(tmp_path / "flag"))
        await asyncio.to_thread(wait_file, tmp_path / "flag")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_awaited(future), 0.05)
        assert future.cancelled()

    asyncio.run(main())


async def _awaited(future: Any) -> Any:
    return await future


def test_callbacks_chain(pool: Pool) -> None:
    ended = threading.Event()
    values: list[int] = []

    def go_on(future: Any) -> None:
        values.append(future.result())
        if len(values) == 20:
            ended.set()
        else:
            pool.submit(add, values[-1], 1).add_done_callback(go_on)

    pool.submit(nap, 0.01).add_done_callback(lambda f: pool.submit(add, 1).add_done_callback(go_on))
    assert ended.wait(WAIT_S)
    assert values == list(range(1, 21))


def test_other_clients_of_the_same_store(pool: Pool) -> None:
    with connect(pool.store) as client:
        future = client.submit(add, 20, 3)
        assert future.result(WAIT_S) == 23
        assert client.pid == pool.pid
        assert pool.get(future.id).status == "succeeded"
        left = client.submit(nap, 0.05)
    assert pool.future(left.id).result(WAIT_S) == "rested"


def test_following(pool: Pool) -> None:
    news: list[Any] = []
    told = threading.Event()

    def tell(each: Any) -> None:
        news.append(each)
        if any(progress.text == "watched" for progress in each.progress.values()):
            told.set()

    unfollow = pool.follow(tell)
    slow = pool.submit(_tell_and_wait, "watched")
    assert told.wait(WAIT_S)
    unfollow()
    slow.cancel()


def _tell_and_wait(text: str) -> None:
    controller().progress(1, 2, text)
    time.sleep(WAIT_S)


def test_a_store_has_one_owner(pool: Pool) -> None:
    with pytest.raises(StoreLocked, match=str(pool.pid)):
        Pool(pool.store)


def test_a_forked_child_leaves_the_pool_alone(pool: Pool) -> None:
    """Its use is refused in words, and its end is not the owner's end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            pool.submit(add, 1)
        except PoolStopped as error:
            code = 0 if "forked child" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.submit(add, 1, 2).result(WAIT_S) == 3
    left = os.fork()
    if left == 0:
        try:
            with pool:
                pass
        finally:
            os._exit(0)
    os.waitpid(left, 0)
    assert pool.submit(add, 1, 2).result(WAIT_S) == 3


# ---- pools of their own -------------------------------------------------------------------------------------------------


def test_a_private_store_is_thrown_away() -> None:
    with Pool(workers=1) as pool:
        store = Path(pool.store)
        late = pool.submit_nowait(nap, 0.05)
        assert store.exists()
    assert late.result() == "rested"
    assert not store.parent.exists()
    for call in (lambda: pool.submit(add, 1), pool.stats):
        with pytest.raises(PoolStopped, match=r"closed|stopped"):
            call()
    pool.close()
    pool.stop()
    with pytest.raises(PoolStopped), pool:
        pass


def test_what_waits_and_what_runs_survives_an_exception(tmp_path: Path) -> None:
    """Leaving by an exception stops at once: nothing is lost, and the next pool does it."""
    store = tmp_path / "x.db"
    with pytest.raises(KeyError), Pool(store, workers=1) as pool:
        running = pool.submit(begin_and_nap, str(tmp_path / "a"))
        waiting = pool.submit(add, 2, 3)
        wait_file(tmp_path / "a")
        raise KeyError
    for future in (running, waiting):
        with pytest.raises(PoolStopped):
            future.result(WAIT_S)
    with Pool(store, workers=2) as pool:
        assert pool.wait(waiting.id, WAIT_S).status == "succeeded"
        again = pool.future(running.id)
        assert pool.get(running.id).charged == 0
        assert again.cancel(force=True)


# How it died is not waited for longer than 30 ms: on a busy machine the kernel may take more to have it ready.
DIED = r"the supervisor \(pid \d+\) (was killed by SIGKILL|closed the connection)"


def test_kill_9_of_the_supervisor_is_told_at_once(tmp_path: Path) -> None:
    """Every open future and later call raises PoolStopped that says how it died; the store goes on in the next pool."""
    store = tmp_path / "x.db"
    with pytest.raises(PoolStopped, match=DIED), Pool(store, workers=1) as pool:
        done = pool.submit(add, 1, 2)
        assert done.result(WAIT_S) == 3
        futures = [pool.submit(begin_and_nap, str(tmp_path / "a")), *pool.submit_many(add, range(5))]
        wait_file(tmp_path / "a")
        os.kill(pool.pid, signal.SIGKILL)
        for future in futures:
            with pytest.raises(PoolStopped, match=DIED):
                future.result(WAIT_S)
        assert done.result() == 3
        pool.submit(add, 1)
    with Pool(store, workers=2) as pool:
        assert [pool.wait(future.id, WAIT_S).status for future in futures[1:]] == ["succeeded"] * 5
        assert pool.get(futures[0].id).interruptions == 1
        pool.cancel(futures[0].id, force=True)


def test_leaving_a_pool_whose_supervisor_dies_is_no_success(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody asks the futures: leaving the block must tell that they did not end. What may be known already is only written."""
    told = DIED + r": 1 of its tasks had not ended; .*x\.db goes on"
    with pytest.raises(PoolStopped, match=told), Pool(tmp_path / "x.db", workers=1) as pool:
        pool.submit(begin_and_nap, str(tmp_path / "a"))
        wait_file(tmp_path / "a")
        threading.Timer(0.2, os.kill, (pool.pid, signal.SIGKILL)).start()
    with Pool(workers=1) as pool:
        future = pool.submit(begin_and_nap, str(tmp_path / "b"))
        wait_file(tmp_path / "b")
        os.kill(pool.pid, signal.SIGKILL)
        assert isinstance(future.exception(WAIT_S), PoolStopped)
    assert re.search(DIED + ": 1 of its tasks had not ended\n", capfd.readouterr().err)


def test_a_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    """The same map finds what is done, and does the rest; other work under its name is refused."""
    store, log = tmp_path / "x.db", tmp_path / "log"
    with Pool(store, workers=2) as pool:
        results = pool.map(_note, [(str(log), n) for n in range(10)], batch="notes", buffersize=4)
        assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    with Pool(store, workers=2) as pool:
        items = [(str(log), n) for n in range(10)]
        assert list(pool.map(_note, items, batch="notes")) == [n * n for n in range(10)]
        assert sorted(log.read_text().split()) == [str(n) for n in range(10)]
        assert list(pool.map(_note, items, batch="notes")) == [n * n for n in range(10)]
        assert len(log.read_text().split()) == 10
        with pytest.raises(TaskpoolError, match="fresh"):
            list(pool.map(add, range(10), batch="notes"))
        with pytest.raises(TaskpoolError, match="fresh"):
            list(pool.map(_note, items[:3], batch="notes"))
        assert list(pool.map(_note, items[:3], batch="notes", fresh=True)) == [0, 1, 4]
        assert len(log.read_text().split()) == 13


def _note(item: tuple[str, int]) -> int:
    path, n = item
    with open(path, "a") as log:
        log.write(f"{n}\n")
    return n * n


def test_a_callback_may_end_its_pool() -> None:
    pool = Pool(workers=1)
    ended = threading.Event()
    pool.submit(add, 1).add_done_callback(lambda future: (pool.close(), ended.set()))
    assert ended.wait(WAIT_S)
    assert not Path(pool.store).parent.exists()
    with pytest.raises(PoolStopped):
        pool.submit(add, 1)


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for wrong in ({"workers": 0}, {"durability": "eternal"}, {"cancel_grace": -1}, {"preload": [3]}):
        with pytest.raises(InvalidSettings):
            Pool(tmp_path / "x.db", **wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(TaskpoolError):
        Pool(tmp_path / "absent" / "x.db")


def test_a_handler_module_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaskpoolError, match="no_such_module_anywhere"):
        Pool(tmp_path / "x.db", preload=["no_such_module_anywhere"])


def test_durability_is_what_was_asked_for(tmp_path: Path) -> None:
    for durability in ("power", "process"):
        with Pool(tmp_path / f"{durability}.db", workers=1, durability=durability) as pool:
            assert pool.settings.durability == durability
            assert pool.submit(add, 1).result(WAIT_S) == 1
        with sqlite3.connect(tmp_path / f"{durability}.db") as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        connection.close()


# ---- scripts ------------------------------------------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> list[str]:
    """Write a script and return how to run it."""
    path = tmp_path / "job.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def processes_of(store: Path) -> list[str]:
    """Return the command lines of live processes that hold something of a store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if any(str(store) in os.readlink(fd) for fd in (entry / "fd").iterdir()):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


def gone(store: Path) -> None:
    """Wait until no process holds anything of a store."""
    wait_until(lambda: not processes_of(store), "the end of all that hold it")


SLOW_SCRIPT = """
    import sys, time
    from pathlib import Path
    from taskpool import Pool

    def square(n):
        Path(sys.argv[1], f"begun-{n}").touch()
        time.sleep(60 if n == 3 and not Path(sys.argv[1], "hurry").exists() else 0)
        with open(Path(sys.argv[1], "done"), "a") as log:
            log.write(f"{n}\\n")
        return n * n

    if __name__ == "__main__":
        with Pool(Path(sys.argv[1], "x.db"), workers=1) as pool:
            print(sum(pool.map(square, range(6), batch="squares")))
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_script_is_ended_and_run_again(tmp_path: Path, end: signal.Signals) -> None:
    """Nothing outlives it, nothing finished is done again, and the second run has the whole result."""
    command = [*script(tmp_path, SLOW_SCRIPT), str(tmp_path)]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_file(tmp_path / "begun-3")
    first.send_signal(end)
    _, errors = first.communicate(timeout=WAIT_S)
    assert first.returncode == -end
    if end == signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")
    gone(tmp_path / "x.db")
    (tmp_path / "hurry").touch()
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (second.stdout, second.returncode) == ("55\n", 0), second.stderr
    assert (tmp_path / "done").read_text().split() == ["0", "1", "2", "3", "4", "5"]
    gone(tmp_path / "x.db")


def test_a_script_may_let_its_tasks_drain(tmp_path: Path) -> None:
    """With on_owner_death="drain" what runs ends and is recorded, though nobody is left to ask for it."""
    command = script(
        tmp_path,
        """
        import sys, time
        from pathlib import Path
        from taskpool import Pool

        def slow(place):
            Path(place, "begun").touch()
            while not Path(place, "go").exists():
                time.sleep(0.005)
            return "drained"

        if __name__ == "__main__":
            with Pool(Path(sys.argv[1], "x.db"), workers=1, on_owner_death="drain") as pool:
                pool.submit(slow, sys.argv[1])
        """,
    )
    first = subprocess.Popen([*command, str(tmp_path)], env=environment())
    wait_file(tmp_path / "begun")
    first.kill()
    first.wait(WAIT_S)
    (tmp_path / "go").touch()
    gone(tmp_path / "x.db")
    with Pool(tmp_path / "x.db", workers=1) as pool:
        (drained,) = pool.list()
        assert (drained.status, drained.attempt) == ("succeeded", 1)
        assert pool.future(drained.id).result(WAIT_S) == "drained"


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """It shows all tasks together, and what each running one says of itself."""
    command = script(
        tmp_path,
        """
        import time
        from taskpool import Pool, track

        def slow(n):
            for _ in track(range(4)):
                time.sleep(0.1)
            return n

        if __name__ == "__main__":
            with Pool(workers=1) as pool:
                print(sum(pool.map(abs, range(-20, 0), progress="pricing")))
                print(sum(pool.map(slow, range(2), progress=True)))
        """,
    )
    ours, theirs = os.openpty()
    environ = {**environment(), "TERM": "xterm", "COLUMNS": "100"}
    shown = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other side of a terminal was closed
            break
        drawn += data
    os.close(ours)
    assert shown.communicate(timeout=WAIT_S)[0] == "210\n1\n"
    assert shown.returncode == 0
    for words in (b"pricing", b"20/20", b"slow", b"  task 2", b"2/2"):
        assert words in drawn, drawn.decode()


def test_a_pool_inside_a_task(pool: Pool) -> None:
    assert pool.submit(_nested).result(WAIT_S) == [0, 1, 2]


def _nested() -> list[int]:
    with Pool(workers=1) as inner:
        return list(inner.map(abs, range(3)))


def test_a_pool_that_is_never_left_ends_with_its_script(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        from taskpool import Pool

        if __name__ == "__main__":
            pool = Pool(workers=1)
            print(pool.store, pool.submit(abs, -3).result())
        """,
    )
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    store, value = done.stdout.split()
    assert (value, done.returncode, done.stderr) == ("3", 0, "")
    assert not Path(store).parent.exists()
    assert not processes_of(Path(store))


def test_a_private_store_does_not_outlive_a_script_that_is_killed(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import os, signal, time
        from taskpool import Pool

        if __name__ == "__main__":
            pool = Pool(workers=1)
            pool.submit(abs, -3).result()
            pool.submit(time.sleep, 600)
            print(pool.store, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == -signal.SIGKILL
    place = Path(done.stdout.strip()).parent
    assert place.name.startswith("taskpool-")
    wait_until(lambda: not place.exists(), "the end of its supervisor")


@pytest.mark.parametrize(("store", "rest"), [("'x.db'", "x.db goes on with them"), ("None", "gone with its private store")])
@pytest.mark.parametrize("drop", ["", "pool = None"])
def test_a_pool_that_is_never_left_says_which_tasks_it_had_to_do(tmp_path: Path, store: str, rest: str, drop: str) -> None:
    command = script(
        tmp_path,
        f"""
        import time
        from taskpool import Pool

        if __name__ == "__main__":
            pool = Pool({store}, workers=1)
            done = pool.submit(abs, -3).result()
            futures = [pool.submit(time.sleep, 600) for _ in range(2)]
            {drop}
        """,
    )
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0
    (said,) = done.stderr.splitlines()
    assert "2 of its tasks had not ended" in said
    assert rest in said


def test_a_script_without_the_guard_is_told_so(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        from taskpool import Pool

        with Pool(workers=1) as pool:
            pool.submit(abs, -3)
        """,
    )
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr
    assert "MissingGuard: a module" in done.stderr
    assert "tried again" not in done.stderr


def test_functions_and_errors_of_a_script(tmp_path: Path) -> None:
    """They are found by name in the workers, classes of the script included; also from the command line."""
    text = """
        from taskpool import Pool, task

        class Sold(Exception):
            pass

        class Ware:
            def __init__(self, name):
                self.name = name

        @task(retry_on=Sold, max_attempts=2)
        def sell(name: str) -> str:
            raise Sold(name)

        def make(name):
            return Ware(name)

        def main():
            with Pool(workers=1) as pool:
                ware = pool.submit(make, "w").result()
                assert type(ware) is Ware and ware.name == "w"
                future = pool.options(retry=None).submit(sell, "w")
                assert pool.get(future.id).name == {name!r}, pool.get(future.id).name
                try:
                    future.cancel() or future.result()
                except (Sold, Exception) as error:
                    print(type(error).__name__)
                try:
                    pool.options(max_attempts=1).submit(sell, "w").result()
                except Sold as error:
                    print(error)

        if __name__ == "__main__":
            main()
        """
    done = subprocess.run(
        script(tmp_path, text.replace("{name!r}", '"job:sell"')),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stdout.split()[-1] == "w", done.stderr
    inline = (
        "from taskpool import Pool\ndef double(n): return 2 * n\nwith Pool(workers=1) as p: print(list(p.map(double, range(3))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", inline], env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.stdout == "[0, 2, 4]\n", done.stderr


STUBBORN_SCRIPT = """
    import sys, time
    from pathlib import Path
    from taskpool import Pool, Cancelled

    def body(stubborn):
        try:
            Path(sys.argv[1], "begun").touch()
            time.sleep(60)
        finally:
            Path(sys.argv[1], "told").touch()
            if stubborn:
                time.sleep(60)

    if __name__ == "__main__":
        with Pool(Path(sys.argv[1], "x.db"), workers=1, cancel_grace=30) as pool:
            future = pool.submit(body, sys.argv[2] == "stubborn")
            if sys.argv[3] == "result":
                future.result()
            if sys.argv[3] == "raise":
                while not Path(sys.argv[1], "begun").exists():
                    time.sleep(0.01)
                raise ValueError("of the script")
"""


@pytest.mark.parametrize("place", ["result", "exit"])
def test_ctrl_c_tells_what_runs_to_stop_and_another_kills_it(tmp_path: Path, place: str) -> None:
    """Whether the script waits for a result or leaves its block: a body hears of it, may clean up, and is not charged."""
    command = script(tmp_path, STUBBORN_SCRIPT)
    for manners in ("polite", "stubborn"):
        store = tmp_path / manners
        store.mkdir()
        process = subprocess.Popen(
            [*command, str(store), manners, place], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_file(store / "begun")
        process.send_signal(signal.SIGINT)
        wait_file(store / "told")
        if manners == "stubborn":
            assert process.stderr is not None
            while "Ctrl-C kills them" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)
        assert process.returncode == -signal.SIGINT
        gone(store / "x.db")
        told = subprocess.check_output(
            [sys.executable, "-m", "taskpool", "-C", str(store / "x.db"), "--json", "show", "1"], env=environment()
        )
        shown = json.loads(told)
        assert [attempt["outcome"] for attempt in shown["attempts"]] == ["stopped"]
        assert (shown["task"]["status"], shown["task"]["charged"]) == ("pending", 0)


def test_an_exception_in_the_block_tells_what_runs_to_stop(tmp_path: Path) -> None:
    command = [*script(tmp_path, STUBBORN_SCRIPT), str(tmp_path), "polite", "raise"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stderr.rstrip().endswith("ValueError: of the script")
    assert (tmp_path / "told").exists()
    gone(tmp_path / "x.db")
