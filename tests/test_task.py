"""`@task`: still the function, and a handler with options."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peer import Peer, echo

from taskpool import errors
from taskpool.core.registry import Registry
from taskpool.doors.client import Client
from taskpool.doors.link import Link
from taskpool.doors.task import TaskFunction, task
from taskpool.model import Controller, Options


@task(queue="cpu", max_attempts=3, timeout=60)
def price(seed: int, paths: int = 10) -> float:
    """Price something."""
    return seed * paths / 2


@task
def follow(ctl: Controller, n: int) -> int:
    ctl.progress(n, n)
    return ctl.attempt + n


@task(name="test.aliased", aliases=["test.old"])
def aliased() -> None: ...


@pytest.fixture
def pool() -> Iterator[tuple[Client, Peer]]:
    peer = Peer(echo)
    with Client(Link(peer.ours)) as client:
        yield client, peer
    peer.close()


def test_called_directly_it_just_runs() -> None:
    assert price(3) == 15.0
    assert price(3, paths=4) == 6.0
    assert price.__name__ == "price"
    assert price.__doc__ == "Price something."
    assert follow(5) == 5


def test_submitting_uses_the_pool_that_was_entered(pool: tuple[Client, Peer]) -> None:
    client, peer = pool
    assert price.submit(7).result(10) == 1
    assert price.submit_nowait(seed=7).result(10) == 2
    assert client.submit(price, 7).result(10) == 3
    assert [future.result(10) for future in price.submit_many([1, 2])] == [4, 5]
    assert list(price.map([1, 2])) == [6, 7]
    assert follow.submit(3).result(10) == 8
    for spec in list(peer.specs.values())[:7]:
        assert spec.name == f"{__name__}:price"
        assert spec.queue == "cpu"
        assert msgspec.msgpack.decode(spec.options, type=Options) == Options(max_attempts=3, timeout_s=60.0)


def test_without_a_pool_it_says_so() -> None:
    with pytest.raises(errors.PoolStopped, match="no pool is open"):
        price.submit(7)


def test_options_are_over_the_decorators(pool: tuple[Client, Peer]) -> None:
    client, peer = pool
    urgent = price.options(priority=9, timeout=5)
    urgent.submit(7)
    client.options(queue="gpu").submit(urgent, 7)
    assert (peer.specs[1].priority, peer.specs[1].queue) == (9, "cpu")
    assert (peer.specs[2].priority, peer.specs[2].queue) == (9, "gpu")
    client.options(queue="gpu", priority=1).submit(urgent, 7)  # what is said of the single task is the strongest
    assert (peer.specs[3].priority, peer.specs[3].queue) == (9, "gpu")
    assert msgspec.msgpack.decode(peer.specs[1].options, type=Options) == Options(max_attempts=3, timeout_s=5.0)
    assert price(3) == urgent(3)
    with pytest.raises(errors.InvalidTask, match="timeout"):
        price.options(timeout=-1)


def test_arguments_are_checked_before_anything_is_sent(pool: tuple[Client, Peer]) -> None:
    _, peer = pool
    with pytest.raises(errors.ArgCountError):
        price.submit()  # type: ignore[call-arg]
    with pytest.raises(errors.ArgTypeError, match="seed"):
        price.submit("seven")  # type: ignore[arg-type]
    assert not peer.specs


def test_a_bad_option_is_refused_at_the_decorator() -> None:
    with pytest.raises(errors.InvalidTask, match="did you mean queue"):
        task(queu="cpu")  # type: ignore[call-overload]


def test_a_name_belongs_to_one_function() -> None:
    registry = Registry()

    def one() -> None: ...

    def two() -> None: ...

    task(name="same", registry=registry)(one)
    with pytest.raises(errors.DuplicateHandler):
        task(name="same", registry=registry)(two)
    assert aliased.name == "test.aliased"


def test_handlers_are_pickled_by_name_with_their_options() -> None:
    """So that one can be an argument of another."""
    assert pickle.loads(pickle.dumps(price)) is price
    urgent: TaskFunction[Any, Any] = pickle.loads(pickle.dumps(price.options(priority=9)))
    assert urgent.name == price.name
    assert urgent._said.priority == 9
    assert urgent._said.queue == "cpu"


class Desk:
    """A class with a handler among its methods."""

    @task
    def sell(self, n: int) -> int:
        return n + 1


def test_it_can_be_a_method() -> None:
    assert Desk().sell(2) == 3


SESSION = """\
from taskpool import Controller, Pool, task

scale = 10

@task
def part(n: int) -> int:
    return n * scale

@task(max_attempts=2, queue="sums")
def total(ctl: Controller, n: int) -> int:
    return 0 if n == 0 else part(n) + total(n - 1) + ctl.attempt - 1

with Pool(workers=1) as pool:
    future = pool.submit(total, 3)
    print(future.result(), future.task().queue, future.task().max_attempts, total.options(queue="q").submit(2).result())
    try:
        pool.submit(total, "three")
    except TypeError as error:
        print(error)
"""


@pytest.mark.parametrize("words", [["-c", SESSION], ["-"]], ids=["command", "stdin"])
def test_handlers_of_a_session_travel_with_their_code(words: list[str], tmp_path: Path) -> None:
    """Workers cannot import what was typed: the function travels, and all handlers that it calls."""
    done = subprocess.run(
        [sys.executable, *words],
        input=SESSION,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["60 sums 2 30", "argument 'n' of __main__:total must be int, but is str: 'three'"], (
        done.stderr
    )
