"""Futures that are no pool's cannot travel: an argument or a result that is one, or holds one, is refused where it is given."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copyreg
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from taskpool import ArgTypeError, Flow, InvalidHandler, InvalidPayload, Pool, marshal_payload, task
from taskpool.doors.named import NamedPlan
from taskpool.doors.options import NOTHING_SAID
from taskpool.wire.arity import Arity, Slot
from taskpool.wire.codec import CallEncoder, decode_call, encode_call, encode_result
from taskpool.wire.description import describe

WORDS = "belongs to its process; wait for its result, and send that"


def anything(value: Any) -> Any:
    return value


@task
def twice(n: int) -> int:
    return 2 * n


@task
def handled(value: Any) -> Any:
    return value


def executors() -> concurrent.futures.Future[int]:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_result(3)
    return future


def of_a_loop() -> Any:
    with closing(asyncio.new_event_loop()) as loop:
        return loop.create_future()


def a_task_of_a_loop() -> Any:
    async def nothing() -> None: ...

    with closing(asyncio.new_event_loop()) as loop:
        made = loop.create_task(nothing())
        loop.run_until_complete(made)
        return made


def of_python() -> Any:
    with closing(asyncio.new_event_loop()) as loop:
        return asyncio.futures._PyFuture(loop=loop)  # type: ignore[attr-defined]  # it has no public name beside the one in C


foreign = pytest.mark.parametrize("make", [executors, of_a_loop, a_task_of_a_loop, of_python])


@foreign
@pytest.mark.parametrize("fn", [anything, handled, lambda value: value])
def test_it_is_no_argument(make: Callable[[], Any], fn: Any) -> None:
    with pytest.raises(InvalidPayload, match=rf"argument 'value' of .* cannot be sent: a \w+: it {WORDS}"):
        encode_call(fn, [make()])


@foreign
def test_at_any_depth_its_place_is_named(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidPayload, match=rf"argument 'value' of .* cannot be sent: a \w+ at \['a'\]\[1\]: it {WORDS}"):
        encode_call(anything, [{"a": [1, make()]}])


@foreign
def test_where_an_annotation_says_otherwise_that_is_said_and_what_to_do(make: Callable[[], Any]) -> None:
    with pytest.raises(ArgTypeError, match=r"argument 'n' of .*twice must be int, but is \w+: .*wait for its result"):
        CallEncoder(twice).encode([make()])


def test_a_function_that_holds_one_cannot_be_sent() -> None:
    held = executors()
    with pytest.raises(InvalidHandler, match=f"it holds a Future, which {WORDS}"):
        encode_call(lambda: held.result())


@foreign
def test_it_is_no_result(make: Callable[[], Any]) -> None:
    for description in (None, describe(anything), describe(handled)):
        with pytest.raises(InvalidPayload, match=rf"the result cannot be sent: a \w+ at \[0\]: it {WORDS}"):
            encode_result([make()], description)


class Ticket(concurrent.futures.Future[Any]):
    """A future that knows how to travel."""

    def __reduce__(self) -> Any:
        return str, ("a ticket",)


class Remote(concurrent.futures.Future[Any]):
    """Another, by the state that it leaves behind."""

    def __getstate__(self) -> Any:
        return {"key": 7}


class Listed(concurrent.futures.Future[Any]):
    """Another, by what somebody has told pickle of it."""


def test_one_that_knows_how_to_travel_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Listed, lambda one: (str, ("listed",)))
    for fn in (anything, lambda value: value):
        name, codec, payload = encode_call(fn, [[Ticket(), Remote(), Listed(), lambda: 1]])
        _, (values,), _ = decode_call(name, codec, payload, lambda name: describe(anything))
        assert (values[0], values[1].key, values[2], values[3]()) == ("a ticket", 7, "listed", 1)


# ---- through a pool -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=1) as pool:
        yield pool


def test_nothing_is_stored(pool: Pool) -> None:
    before = len(pool.list())
    for hand_in in (
        lambda: pool.submit(anything, executors()),
        lambda: pool.submit_nowait(anything, value=executors()),
        lambda: pool.submit_many(anything, [1, executors()]),
        lambda: list(pool.map(anything, [executors()])),
        lambda: Flow("f").submit(anything, executors()),
        lambda: pool.submit(anything, [executors(), pool.submit(anything, 1)]),
    ):
        with pytest.raises(InvalidPayload, match=WORDS):
            hand_in()
    assert len(pool.list()) == before + 1


@foreign
def test_a_call_by_name_names_its_argument_and_place(pool: Pool, make: Callable[[], Any]) -> None:
    future = make()
    name: Any = "tests.test_foreign_futures:handled"
    before = len(pool.list())
    for hand_in, place in (
        (lambda: pool.submit(name, future), ""),
        (lambda: pool.submit(name, value={"a": [1, future]}), r" at \['a'\]\[1\]"),
        (lambda: pool.submit_nowait(name, [future]), r" at \[0\]"),
        (lambda: pool.submit_many(name, [1, future]), ""),
    ):
        with pytest.raises(InvalidPayload, match=rf"argument .* of .*handled cannot be written as JSON: a \w+{place}: it {WORDS}"):
            hand_in()
    with pytest.raises(InvalidPayload, match=rf"argument 'number 1' of .*: a set: it holds a \w+, which {WORDS}"):
        pool.submit(name, {future})
    plan = NamedPlan("handled", NOTHING_SAID, Arity("handled", (Slot("value", True, True, True),)))  # as of one that is registered
    with pytest.raises(InvalidPayload, match=rf"argument 'value' of handled cannot be written as JSON: a \w+: it {WORDS}"):
        plan.encode([future])
    with pytest.raises(InvalidPayload, match=rf"the payload cannot be written as JSON: a \w+ at \['to'\]: it {WORDS}"):
        marshal_payload({"to": future})
    assert len(pool.list()) == before


def test_one_of_the_pool_is_told_what_a_call_by_name_cannot(pool: Pool) -> None:
    mine = pool.submit(anything, 1)
    words = r"cannot be written as JSON: a TaskFuture at \[0\]: .*; submit the function, or wait for the result, and send that"
    with pytest.raises(InvalidPayload, match=rf"argument .* of .*handled {words}"):
        pool.submit("tests.test_foreign_futures:handled", [mine])


def test_what_else_a_call_by_name_cannot_carry_is_named_by_its_place(pool: Pool) -> None:
    with pytest.raises(
        InvalidPayload,
        match=r"argument .* of .*handled cannot be written as JSON: a object at \['a'\]: JSON has nothing for a object",
    ):
        pool.submit("tests.test_foreign_futures:handled", {"a": object()})
