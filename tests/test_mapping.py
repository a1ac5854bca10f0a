"""`map`: lazy, in order or as they come, over a window, with or without a batch."""

from __future__ import annotations

import errno
import io
import itertools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from peer import Peer, echo, succeeded

from taskpool import errors
from taskpool.model import TaskError
from taskpool.wire import messages as wire

WAIT_S = 10


def work(*args: Any) -> Any:
    return args


def counting(stored: int = 0) -> Any:
    """Answer counts, and let every task succeed with its item's number, or its id."""

    def script(peer: Peer, request: wire.Request) -> None:
        if isinstance(request, wire.Count):
            peer.send(wire.Reply(request.seq, next=stored))
        else:
            echo(peer, request)

    return script


def test_results_in_the_order_of_the_items(connected: Any) -> None:
    def backwards(peer: Peer, request: wire.Request) -> None:
        first = peer._next_id
        peer.accept(request)
        if isinstance(request, wire.Submit):
            ids = range(first, first + len(request.specs))
            for task_id in reversed(ids):
                peer.succeed(task_id, task_id)

    client, _ = connected(backwards)
    assert list(client.map(work, range(1000))) == list(range(1, 1001))
    assert list(client.map(work, "abc", itertools.count())) == [1001, 1002, 1003]
    assert list(client.map(work, [])) == []


def test_unordered_results_as_they_come(connected: Any) -> None:
    client, peer = connected()
    results = client.map(work, range(3), ordered=False)
    peer.wait_specs(3)
    got = []
    for task_id in (2, 3, 1):
        peer.succeed(task_id, task_id)
        got.append(next(results))
    assert got == [2, 3, 1]
    assert list(results) == []


def test_endless_input_is_welcome(connected: Any) -> None:
    """No more than buffersize items are pulled ahead of the consumer."""
    client, peer = connected(echo)
    pulled = itertools.count()
    results = client.map(work, iter(lambda: next(pulled), None), buffersize=10)
    assert [next(results) for _ in range(100)] == list(range(1, 101))
    assert next(pulled) <= 110
    results.close()
    assert len(peer.specs) <= 110


def test_the_first_items_are_handed_in_at_the_call(connected: Any) -> None:
    client, peer = connected()
    results = client.map(work, range(5))
    peer.wait_specs(5)
    del results


def test_a_failure_is_raised_in_its_place(connected: Any) -> None:
    def second_fails(peer: Peer, request: wire.Request) -> None:
        peer.accept(request)
        if isinstance(request, wire.Submit):
            peer.succeed(1, "a")
            peer.fail(2, TaskError("panic", "boom"))
            peer.succeed(3, "c")

    client, _ = connected(second_fails)
    results = client.map(work, range(3))
    assert next(results) == "a"
    with pytest.raises(errors.TaskPanicked, match="boom"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_failures_as_results(connected: Any) -> None:
    def odd_fail(peer: Peer, request: wire.Request) -> None:
        peer.accept(request)
        if isinstance(request, wire.Submit):
            for task_id in range(1, 5):
                if task_id % 2:
                    peer.fail(task_id, TaskError("timeout"))
                else:
                    peer.succeed(task_id, task_id)

    client, _ = connected(odd_fail)
    got = list(client.map(work, range(4), return_exceptions=True))
    assert [type(each) for each in got] == [errors.TaskTimeout, int, errors.TaskTimeout, int]


def test_an_item_that_cannot_be_sent_fails_in_its_place(connected: Any) -> None:
    client, _ = connected(echo)
    results = client.map(work, [1, (n for n in ()), 3])
    assert next(results) == 1
    with pytest.raises(errors.InvalidPayload):
        next(results)
    got = list(client.map(work, [1, (n for n in ()), 3], return_exceptions=True))
    assert isinstance(got[1], errors.InvalidPayload)
    assert len(got) == 3


def test_an_input_that_raises(connected: Any) -> None:
    """Its error reaches the consumer; what came before it was handed in."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    client, peer = connected()
    with pytest.raises(KeyError):
        client.map(work, items())
    peer.wait_specs(1)


def test_timeout_counts_from_the_call(connected: Any) -> None:
    client, peer = connected()
    for ordered in (True, False):
        results = client.map(work, [1], timeout=0.01, ordered=ordered)
        with pytest.raises(TimeoutError, match="the map did not end in time"):
            next(results)
    peer.wait_specs(2)


def test_the_end_of_the_pool_is_raised_even_with_return_exceptions(connected: Any) -> None:
    client, peer = connected()
    results = client.map(work, [1, 2], return_exceptions=True)
    peer.wait_specs(2)
    peer.send(wire.Goodbye("gone"))
    with pytest.raises(errors.PoolStopped, match="gone"):
        list(results)


def test_what_nobody_takes_is_cancelled(connected: Any) -> None:
    client, peer = connected()
    results = client.map(work, range(4))
    peer.wait_specs(4)
    peer.succeed(1)
    next(results)
    results.close()
    (request,) = peer.wait_for(wire.Cancel)
    assert request.filter.ids == (2, 3, 4)


def test_batches_name_their_items(connected: Any) -> None:
    client, peer = connected(counting())
    assert list(client.map(work, "abc", batch="letters")) == [0, 1, 2]
    assert [(spec.batch, spec.item) for spec in peer.specs.values()] == [("letters", 0), ("letters", 1), ("letters", 2)]
    assert [request.fresh for request in peer.wait_for(wire.Submit)] == [False]
    assert list(client.map(work, range(600), batch="many", fresh=True)) == list(range(600))
    fresh = [request.fresh for request in peer.wait_for(wire.Submit)]
    assert fresh[1] is True
    assert not any(fresh[2:])


def test_a_batch_of_another_length_is_a_conflict(connected: Any) -> None:
    client, peer = connected(counting(stored=5))
    with pytest.raises(errors.BatchConflict, match=r"fresh=True"):
        client.map(work, range(3), batch="b")
    assert not peer.specs
    with pytest.raises(errors.BatchConflict):
        list(client.map(work, iter(range(3)), batch="b"))
    assert list(client.map(work, range(5), batch="b")) == [0, 1, 2, 3, 4]
    assert list(client.map(work, range(3), batch="b", fresh=True)) == [0, 1, 2]


def test_a_batch_of_other_work_is_a_conflict_at_once(connected: Any) -> None:
    def conflict(peer: Peer, request: wire.Request) -> None:
        if isinstance(request, wire.Count):
            peer.send(wire.Reply(request.seq, next=0))
        else:
            peer.send(wire.Refused(request.seq, "batch_conflict", "begun with m:other"))

    client, _ = connected(conflict)
    with pytest.raises(errors.BatchConflict, match="m:other"):
        client.map(work, range(3), batch="b")


def test_items_of_a_batch_that_are_awaited_twice(connected: Any) -> None:
    """The same ids come back to two maps of one client: both get the result."""

    def attached(peer: Peer, request: wire.Request) -> None:
        if isinstance(request, wire.Submit):
            peer.send(wire.Accepted(request.seq, [1, 2]))
            peer.specs[len(peer.specs)] = request.specs[0]
        elif isinstance(request, wire.Count):
            peer.send(wire.Reply(request.seq, next=2))

    client, peer = connected(attached)
    first = client.map(work, [1, 2], batch="b")
    second = client.map(work, [1, 2], batch="b")
    peer.wait_specs(2)
    peer.send(wire.Settled([succeeded(1, "x"), succeeded(2, "y")]), wire.Settled([succeeded(1, "x")]))
    assert list(first) == list(second) == ["x", "y"]
    assert client._link.join(WAIT_S)


@pytest.mark.parametrize("wrong", [{"buffersize": 0}, {"buffersize": True}, {"batch": ""}, {"batch": 3}, {"fresh": True}])
def test_nonsense_is_refused(connected: Any, wrong: dict[str, Any]) -> None:
    client, _ = connected()
    with pytest.raises(errors.InvalidTask):
        client.map(work, [1], **wrong)
    with pytest.raises(errors.InvalidTask, match="at least one iterable"):
        client.map(work)


def test_a_slow_input_does_not_hold_back_what_came(connected: Any) -> None:
    """Items are handed in as they come: the first is stored while the second is not there yet."""
    client, peer = connected(echo)
    first_is_stored = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        threading.Event().wait(0.005)
        yield 2
        peer.wait_specs(1)
        first_is_stored.set()

    assert list(client.map(work, items())) == [1, 2]
    assert first_is_stored.is_set()


class Broken(io.StringIO):
    """A stderr whose reader is gone, whose disk is full, or that somebody closed."""

    def __init__(self, error: Exception, terminal: bool) -> None:
        super().__init__()
        self._error, self._terminal = error, terminal
        self.tried = threading.Event()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.tried.set()
        raise self._error


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")])
def test_progress_that_cannot_be_written_costs_nothing(
    connected: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool, error: Exception
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("taskpool.doors.progress._Lines.every_s", 0.01)
    client, peer = connected()
    stderr = Broken(error, terminal)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        results = client.map(work, range(2), progress=True)
        peer.wait_specs(2)
        peer.succeed(1, "a")
        assert next(results) == "a"
        assert stderr.tried.wait(WAIT_S)  # by the io thread, off a terminal
        peer.succeed(2, "b")
        assert list(results) == ["b"]
        assert sys.stderr is stderr  # what rich took it has given back
    assert not client._link.stopped


def test_progress_without_any_stderr(connected: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    client, _ = connected(counting())
    monkeypatch.setattr(sys, "stderr", None)
    assert len(list(client.map(work, range(20), progress=True))) == 20
    assert capsys.readouterr().out == ""


def test_progress_is_told_in_lines_off_a_terminal(connected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client, _ = connected(counting())
    assert len(list(client.map(work, range(20), progress=True))) == 20
    assert capsys.readouterr().err.startswith("work: 20/20 done (100 %), ")
    assert len(list(client.map(work, iter(range(20)), progress="pricing"))) == 20
    assert capsys.readouterr().err.startswith("pricing: 20/20 done (100 %), ")
