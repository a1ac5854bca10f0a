"""How attempts end, in a real worker: every outcome is a report, and nothing a body raises or returns ends the worker."""

from __future__ import annotations

import gc
import math
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from worker_rig import Rig

from taskpool.core.registry import default_registry
from taskpool.errors import Cancelled, NonRetryableError, RetryableError, Snooze, SoftTimeout
from taskpool.model import Codec, Options
from taskpool.wire.codec import decode_result
from taskpool.wire.jobs import CANCELLED, ERROR, OK, SNOOZED, SOFT_TIMEOUT, Checkpointed, Job, Report, Skipped
from taskpool.wire.limits import MESSAGE_BYTES_MAX, TRACEBACK_BYTES_MAX
from taskpool.wire.page import HEAD, RING_BYTES, TAIL, Page
from taskpool.worker.attempt import Surroundings, run_attempt
from tests.waiting import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


# ---- bodies ---------------------------------------------------------------------------------------------------------


def noop() -> None: ...


def identity(value: Any) -> Any:
    return value


def raise_it(error: BaseException) -> None:
    raise error


def call(fn: Any, *args: Any) -> Any:
    return fn(*args)


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def typed(a: int) -> int:
    return a


default_registry.register(typed)


# ---- ordinary ends --------------------------------------------------------------------------------------------------


def test_results_come_back(rig: Rig) -> None:
    for value in (None, 5, "ä", [1, (2, {3})], {"a": b"x"}, math.inf, 2**100, print):
        assert rig.value(identity, value) == value
    assert math.isnan(rig.value(identity, math.nan))
    assert rig.value(lambda x: x * 2, 4) == 8
    assert rig.value(lambda: lambda x: x + 1)(4) == 5
    report = rig.run(typed, 7)
    assert (report.codec, report.value) == (Codec.MSGPACK, msgspec.msgpack.encode(7))


def test_a_report_says_what_it_is_of_and_what_was_used(rig: Rig) -> None:
    before = time.monotonic_ns()
    report = rig.run(spin, 0.05)
    assert (report.n, report.task_id, report.attempt, report.outcome) == (1, 101, 1, OK)
    assert before < report.began_ns < report.began_ns + report.duration_ns < time.monotonic_ns()
    assert report.duration_ns >= 50_000_000
    assert 0 < report.cpu_user_us + report.cpu_system_us < 5_000_000
    assert report.peak_rss_kib > 1000
    assert not report.dirty
    assert rig.page.current() == (0, 0, 0)


def test_a_mailbox_is_worked_off_in_order_with_few_bells(rig: Rig) -> None:
    rig.report(rig.run(noop).n)
    bells = rig.bells
    jobs = [rig.job(identity, i) for i in range(100)]
    rig.send(*jobs)
    rig.report(jobs[-1].n)
    reports = rig.of(Report)
    assert [report.n for report in reports] == list(range(1, 102))
    assert [decode_result(report.codec, report.value) for report in reports[1:]] == list(range(100))
    assert 2 <= rig.bells - bells < 100


def test_a_lone_job_rings_at_once_and_long_jobs_ring_between(rig: Rig) -> None:
    rig.run(noop)
    bells = rig.bells
    jobs = [rig.job(spin, 0.006) for _ in range(4)]
    rig.send(*jobs)
    rig.report(jobs[-1].n)
    rig.pump(0.01)
    assert rig.bells - bells == 4


def test_a_result_that_does_not_fit_the_ring_comes_by_file(rig: Rig) -> None:
    for size in (60_000, 70_000, 5_000_000):
        assert rig.value(bytes, size) == bytes(size)
    assert os.listdir(rig.page.run_dir) == ["w1.page"]


def test_a_full_ring_is_waited_for(rig: Rig) -> None:
    jobs = [rig.job(bytes, 50_000) for _ in range(30)]
    rig.send(*jobs)
    got = rig.ring.read()
    while len(got) < 5:  # so many fit; they are read, and not released
        got += wait_until(rig.ring.read, "another record")
    assert rig.page.words[HEAD] - rig.page.words[TAIL] <= RING_BYTES
    rig.ring.release()
    rig.report(jobs[-1].n)
    assert len(rig.of(Report)) == 25


def test_a_spill_that_cannot_be_written_fails_that_attempt_only(rig: Rig) -> None:
    rig.run(noop)
    os.rename(rig.page.run_dir, rig.page.run_dir + "-gone")
    report = rig.run(bytes, 100_000)
    assert report.outcome == ERROR
    assert report.error.kind == "result"
    assert "No such file" in report.error.message
    assert rig.value(identity, 1) == 1


# ---- what cannot be called ------------------------------------------------------------------------------------------


def test_what_cannot_be_called_is_an_error_without_retry(rig: Rig) -> None:
    jobs = [
        (Job(1, 1, 1, "no.such:function", 1, b""), "unknown_handler"),
        (Job(2, 1, 1, "test_worker:nothing_here", 1, b""), "unknown_handler"),
        (Job(3, 1, 1, "test_worker:identity", 1, b"garbage"), "decode"),
        (Job(4, 1, 1, "test_worker:identity", 77, b"garbage"), "decode"),
        (Job(5, 1, 1, "test_worker:identity", 1, b""), "arg_count"),
        (Job(6, 1, 1, "test_worker:noop", 1, pickle.dumps(((1,), {}))), "arg_count"),
        (Job(7, 1, 1, "test_worker:typed", 1, pickle.dumps((("a",), {}))), "arg_type"),
        (Job(8, 1, 1, "test_worker:typed", 0, msgspec.msgpack.encode((["a"], {}))), "arg_type"),
        (Job(9, 1, 1, "os:system", 3, b'{"args": ["true"]}'), "unknown_handler"),
        (Job(10, 1, 1, "x:y", 2, pickle.dumps(5)), "decode"),
    ]
    rig.send(*(job for job, _ in jobs))
    for job, kind in jobs:
        report = rig.report(job.n)
        assert (report.outcome, report.error.kind, report.error.retryable) == (ERROR, kind, False), report
        assert report.error.message
    rig.n = 10
    assert rig.value(identity, 1) == 1


# ---- what is raised -------------------------------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Base(Exception): ...


class Derived(Base): ...


@pytest.mark.parametrize(
    ("error", "outcome", "facts"),
    [
        (ValueError("bad"), ERROR, {"kind": "handler", "message": "bad", "retryable": True, "type_name": "ValueError"}),
        (Derived("x"), ERROR, {"type_name": "test_worker.Derived"}),
        (SystemExit(3), ERROR, {"kind": "handler", "message": "3", "type_name": "SystemExit"}),
        (KeyboardInterrupt(), ERROR, {"kind": "handler", "type_name": "KeyboardInterrupt"}),
        (GeneratorExit(), ERROR, {"kind": "handler"}),
        (StopIteration(1), ERROR, {"kind": "handler"}),
        (MemoryError("no"), ERROR, {"kind": "handler"}),
        (RetryableError("again", backoff=2.5), ERROR, {"retryable": True, "backoff_s": 2.5, "message": "again"}),
        (NonRetryableError("never"), ERROR, {"retryable": False, "backoff_s": None}),
        (Cancelled("enough"), CANCELLED, {"kind": "cancelled", "message": "enough", "retryable": False}),
        (SoftTimeout("late"), SOFT_TIMEOUT, {"kind": "timeout", "message": "late", "retryable": True}),
    ],
)
def test_what_is_raised_decides_the_outcome(rig: Rig, error: BaseException, outcome: int, facts: dict[str, Any]) -> None:
    report = rig.run(raise_it, error)
    assert report.outcome == outcome
    assert facts == {name: getattr(report.error, name) for name in facts}
    assert rig.value(identity, 1) == 1


def test_a_snooze_is_no_failure(rig: Rig) -> None:
    report = rig.run(lambda: raise_it(Snooze(3.5)))
    assert (report.outcome, report.snooze_s, report.error) == (SNOOZED, 3.5, None)
    for seconds in (-1.0, math.nan, math.inf):
        assert rig.run(lambda s: raise_it(Snooze(s)), seconds).outcome == ERROR


def test_a_traceback_shows_the_handlers_frames_and_no_others(rig: Rig) -> None:
    def outer() -> None:
        secret = "hunter" + "2"  # noqa: F841
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise Odd(1, 2) from error

    report = rig.run(outer)
    text = report.error.traceback
    assert text.index("KeyError: 'inner'") < text.index("direct cause") < text.index("test_worker.Odd: 1 and 2")
    assert text.count("Traceback (most recent call last)") == 2
    assert "in outer" in text
    assert "taskpool" not in text
    assert "hunter2" not in text
    assert report.error.cause.type_name == "KeyError"
    assert report.error.exception is None, "a class with another signature than its args cannot be rebuilt"


def test_an_exception_that_can_be_rebuilt_is_sent(rig: Rig) -> None:
    error = pickle.loads(rig.run(raise_it, Derived("x", 5)).error.exception)
    assert (type(error), error.args) == (Derived, ("x", 5))


@pytest.mark.parametrize(
    ("options", "error", "retryable"),
    [
        ({"retry_on": ("test_worker.Base",)}, Derived(), True),
        ({"retry_on": ("Base",)}, Derived(), True),
        ({"retry_on": ("OSError",)}, FileNotFoundError(), True),
        ({"retry_on": ("builtins.OSError",)}, FileNotFoundError(), True),
        ({"retry_on": ("OSError",)}, ValueError(), False),
        ({"no_retry_on": ("ValueError",)}, ValueError(), False),
        ({"no_retry_on": ("ValueError",)}, KeyError(), True),
        ({"retry_on": ("Exception",), "no_retry_on": ("Base",)}, Derived(), False),
        ({"no_retry_on": ("RetryableError",)}, RetryableError(), True),
    ],
)
def test_options_decide_which_exceptions_are_retried(rig: Rig, options: Any, error: Exception, retryable: bool) -> None:
    assert rig.run(raise_it, error, options=Options(**options)).error.retryable is retryable


# ---- hostile exceptions and results ---------------------------------------------------------------------------------


class StrRaises(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class StrExits(Exception):
    def __str__(self) -> str:  # noqa: PLE0307
        sys.exit(3)


class StrIsNoStr(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class SubStr(str):
    def encode(self, *_: Any) -> bytes:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError

    def __len__(self) -> int:
        return -1  # noqa: PLE0303


class StrIsASubclass(Exception):
    def __str__(self) -> str:
        return SubStr("sub")


class ReduceExits(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit


class RebuildExits(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (1,)


class Lies(Exception):
    """All that a class can lie about."""

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    @property
    def __context__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    @property
    def __notes__(self) -> Any:
        raise SystemExit

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise SystemExit


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__name__"):
            raise RuntimeError("a class without a name")
        return super().__getattribute__(name)


class BadSnooze(Snooze):
    def __init__(self) -> None:
        Exception.__init__(self, "no seconds")


def circle() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    raise a


def long_chain() -> None:
    error: Exception | None = None
    for i in range(10_000):
        after = ValueError(f"link {i}")
        after.__cause__ = error
        error = after
    assert error is not None
    raise error


def huge() -> None:
    raise ValueError("x" * 100_000_000)


def huge_unicode() -> None:
    raise ValueError("\ud800ä" * 20_000_000)


def huge_notes() -> None:
    error = ValueError("noted")
    for _ in range(50):
        error.add_note("n" * 1_000_000)
    raise error


def group() -> None:
    raise ExceptionGroup("several", [StrRaises(), ValueError("two"), ExceptionGroup("inner", [KeyError(3)])])


def recurse() -> None:
    recurse()


def bad_class() -> None:
    raise Meta("Bad", (Exception,), {})("hidden name")


@pytest.mark.parametrize(
    ("fn", "args", "words"),
    [
        (raise_it, (StrRaises(),), "__str__ raised ValueError"),
        (raise_it, (StrExits(),), "__str__ raised SystemExit"),
        (raise_it, (StrIsNoStr(),), "__str__ raised TypeError"),
        (raise_it, (StrIsASubclass(),), "sub"),
        (call, (lambda: raise_it(BadSnooze()),), "no seconds"),
        (call, (lambda: raise_it(ReduceExits("r")),), "r"),
        (call, (lambda: raise_it(RebuildExits("r")),), "r"),
        (call, (lambda: raise_it(Lies("l")),), ""),
        (circle, (), "a"),
        (long_chain, (), "link 9999"),
        (huge, (), "xxx"),
        (huge_unicode, (), "ä"),
        (huge_notes, (), "noted"),
        (group, (), "several"),
        (recurse, (), "recursion"),
        (bad_class, (), ""),
    ],
)
def test_hostile_exceptions_become_plain_words(rig: Rig, fn: Any, args: Any, words: str) -> None:
    report = rig.run(fn, *args)
    assert report.outcome == ERROR
    assert report.error.kind == "handler"
    assert words in report.error.message
    assert len(report.error.message.encode()) <= MESSAGE_BYTES_MAX
    assert len(report.error.traceback.encode()) <= TRACEBACK_BYTES_MAX
    assert rig.value(identity, 1) == 1


class ReduceRaises:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("from __reduce__")


def deep(levels: int) -> Any:
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


class ReprRaises:
    def __repr__(self) -> str:
        raise ValueError

    def __reduce__(self) -> Any:
        raise TypeError("cannot")


@pytest.mark.parametrize(
    ("fn", "args", "words"),
    [
        (lambda: (i for i in range(3)), (), "generator"),
        (identity, ([1, {"k": sys._getframe}],), None),
        (lambda: [1, {"k": sys._getframe()}], (), "frame at [1]['k']"),
        (lambda: deep(100_000), (), "deep"),
        (lambda: bytes(17 << 20), (), "17.0 MiB, the limit is 16.0 MiB"),
        (lambda: ReduceRaises(SystemExit), (), "from __reduce__"),
        (lambda: ReduceRaises(KeyboardInterrupt), (), "from __reduce__"),
        (lambda: ReduceRaises(RuntimeError), (), "from __reduce__"),
        (lambda: [ReprRaises()], (), "ReprRaises at [0]"),
        (lambda: "\ud800", (), None),
    ],
)
def test_hostile_results_are_errors_that_name_them(rig: Rig, fn: Any, args: Any, words: str | None) -> None:
    report = rig.run(fn, *args)
    if words is None:
        assert report.outcome == OK
    else:
        assert (report.outcome, report.error.kind, report.error.retryable) == (ERROR, "result", False), report
        assert words in report.error.message
    assert rig.value(identity, 1) == 1


# ---- taking back ----------------------------------------------------------------------------------------------------


def test_what_is_taken_back_is_passed_over_and_the_rest_runs(rig: Rig) -> None:
    """Random take-backs of a real worker's mailbox: each number is run or passed over, never both, and none above the limit ran."""
    dice = random.Random(7)
    taken: set[int] = set()
    for _ in range(150):
        first = rig.n + 1
        rig.send(*(rig.job(noop) for _ in range(40)))
        while rig.page.words[HEAD] == rig.page.words[TAIL] and dice.random() < 0.9:
            pass
        above = rig.take_back(dice.randrange(first, rig.n + 1))
        rig.collect()  # what had begun and ended by then is in the ring
        above = max([above, *(record.n for record in rig.records[-40:] if isinstance(record, Report))])
        taken |= set(range(above + 1, rig.n + 1))
        rig.until(lambda: bool(rig.records) and rig.records[-1].n == rig.n)
        rig.allow()
    skipped = {record.n for record in rig.of(Skipped)}
    assert skipped == taken
    assert {record.n for record in rig.of(Report)} == set(range(1, rig.n + 1)) - taken
    assert skipped, "some were"


def test_a_job_that_is_cancelled_before_it_begins_does_not_run(rig: Rig) -> None:
    jobs = [rig.job(noop), rig.job(lambda: open("/nowhere/at/all", "w")), rig.job(identity, 3)]
    rig.interrupt(2, times=0)
    rig.send(*jobs)
    assert [rig.report(n).outcome for n in (1, 2, 3)] == [OK, CANCELLED, OK]


# ---- the same function in this process ------------------------------------------------------------------------------


def test_an_attempt_can_be_run_without_a_worker() -> None:
    """`run_attempt` is what every engine calls; all it needs is a page, which nobody else need see."""
    page = Page.anonymous()
    saved: list[Checkpointed] = []
    around = Surroundings(default_registry, page, saved.append)
    report = run_attempt(Job(1, 5, 2, "test_worker:identity", 1, pickle.dumps((("v",), {}))), around, time.monotonic_ns())
    assert (report.task_id, report.attempt, decode_result(report.codec, report.value)) == (5, 2, "v")
    page.close()


def test_nothing_is_kept_of_an_attempt_that_is_over() -> None:
    class Held: ...

    page = Page.anonymous()
    around = Surroundings(default_registry, page, lambda _: None)
    default_registry.register(lambda: [Held(), raise_it(ValueError())], name="test_worker.held")
    run_attempt(Job(1, 5, 2, "test_worker.held", 1, b""), around, 0)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Held]
    page.close()


def test_signals_of_python_are_reset_in_a_worker(rig: Rig) -> None:
    assert rig.value(signal.getsignal, signal.SIGINT) == signal.SIG_DFL
    assert rig.value(signal.getsignal, signal.SIGPIPE) == signal.SIG_IGN
