"""When the loop waits a moment for clients: after a submit was found waiting behind a turn that was for workers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from taskpool.supervisor.linger import Linger
from taskpool.wire.poller import Poller


class Bell:
    """A descriptor in the poller that counts how often it was read."""

    def __init__(self, poller: Poller) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.rang = 0
        poller.add(self._fd, self._hear)

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

    def _hear(self, events: int) -> None:
        self.rang += os.eventfd_read(self._fd)


class Rig:
    def __init__(self) -> None:
        self.poller = Poller()
        self.client = Bell(self.poller)
        self.worker = Bell(self.poller)
        self.taken = 0
        self.linger = Linger(self.poller, self.asked)

    def asked(self) -> bool:
        return self.client.rang > self.taken

    def wait(self, *, alone: bool = False, timeout_s: float | None = 0.0) -> None:
        """Wait, then do as the turn does that follows: take what clients asked."""
        self.linger.wait(lambda: timeout_s, alone=alone)
        self.taken = self.client.rang


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.poller.close()


def test_a_client_that_was_found_behind_a_lone_turn_is_waited_for_at_the_next(rig: Rig) -> None:
    rig.client.ring()
    rig.wait(alone=True)
    assert rig.linger.on
    rig.worker.ring()
    rung = []
    wait = rig.poller.wait

    def once(timeout_s: float | None) -> bool:
        if rig.worker.rang and not rung:
            rung.append(rig.client.ring())  # it comes while the worker's news are held back
        return wait(timeout_s)

    rig.poller.wait = once  # type: ignore[method-assign]
    rig.wait()
    assert (rig.worker.rang, rig.client.rang) == (1, 2)
    assert rig.linger.on


def test_where_none_comes_that_was_all(rig: Rig) -> None:
    rig.client.ring()
    rig.wait(alone=True)
    rig.worker.ring()
    rig.wait()  # returns, though nobody asks for anything
    assert not rig.linger.on


def test_a_client_that_comes_after_another_turn_was_not_kept_waiting(rig: Rig) -> None:
    rig.client.ring()
    rig.wait(alone=False)
    assert not rig.linger.on


def test_after_a_lone_turn_with_nothing_behind_it_the_wait_is_as_long_as_it_is_said_to_be(rig: Rig) -> None:
    timeouts: list[float | None] = []
    wait = rig.poller.wait

    def noted(timeout_s: float | None) -> bool:
        timeouts.append(timeout_s)
        return wait(timeout_s)

    rig.poller.wait = noted  # type: ignore[method-assign]
    rig.wait(alone=True, timeout_s=0.001)
    assert timeouts == [0.0, 0.001]


def test_what_came_behind_a_lone_turn_is_not_waited_for_again(rig: Rig) -> None:
    rig.worker.ring()
    rig.wait(alone=True, timeout_s=None)  # would wait for ever
    assert rig.worker.rang == 1
    assert not rig.linger.on


def found_until_waited_for(rig: Rig) -> int:
    """Let a client be found behind lone turns until it would be waited for; return how often that was."""
    times = 0
    while not rig.linger.on:
        times += 1
        rig.client.ring()
        rig.wait(alone=True)
    return times


def waited_in_vain(rig: Rig) -> None:
    rig.worker.ring()
    rig.wait()
    assert not rig.linger.on


def waited_well(rig: Rig) -> None:
    rig.worker.ring()
    wait = rig.poller.wait

    def comes(timeout_s: float | None) -> bool:
        if rig.worker.rang:
            rig.client.ring()
        return wait(timeout_s)

    rig.worker.rang = 0
    rig.poller.wait = comes  # type: ignore[method-assign]
    rig.wait()
    rig.poller.wait = wait  # type: ignore[method-assign]
    assert rig.linger.on


def test_each_further_vain_wait_doubles_how_often_a_client_must_be_found(rig: Rig) -> None:
    counts = []
    for _ in range(11):
        counts.append(found_until_waited_for(rig))
        waited_in_vain(rig)
    assert counts == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256]


def test_one_that_came_makes_up_for_all_that_did_not(rig: Rig) -> None:
    for _ in range(3):
        found_until_waited_for(rig)
        waited_in_vain(rig)
    assert found_until_waited_for(rig) == 4
    waited_well(rig)
    waited_in_vain(rig)
    assert found_until_waited_for(rig) == 1
