"""Moments that come once in a million: made to come, by holding one side still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskpool.core import events as ev
from taskpool.engines import intake as intake_module
from taskpool.engines import link as link_module
from taskpool.engines.preparation import describe_main
from taskpool.wire import barrier
from taskpool.wire.page import CURRENT, LIMIT, NO_LIMIT, RingReader
from taskpool.wire.zygote import Prepare
from tests import engine_bodies as bodies
from tests.engine_rig import Rig
from tests.waiting import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def hold(monkeypatch: pytest.MonkeyPatch, module: object, wait: Callable[[], object]) -> None:
    """Have the next barrier of that module wait for something first."""
    real = barrier.everywhere
    waits = [wait]

    class Held:
        available = staticmethod(barrier.available)

        @staticmethod
        def everywhere() -> None:
            if waits:
                waits.pop()()
            real()

    monkeypatch.setattr(module, "barrier", Held)


def until_word(rig: Rig, worker: int, index: int, value: int) -> Callable[[], None]:
    words = rig.node._links[worker].page.words

    return lambda: wait_until(lambda: words[index] == value, f"word {index} to become {value}")


def test_a_kill_that_comes_as_its_job_ends_kills_nobody_and_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The killer has forbidden what comes next, and then finds that the job has ended: what it forbade is given back."""
    worker = rig.ready(1)
    first, second, third = rig.send(
        worker, (bodies.nap, 0.1), (bodies.write, str(tmp_path / "two")), (bodies.write, str(tmp_path / "three"))
    )
    rig.begun(worker, first)
    hold(monkeypatch, link_module, until_word(rig, worker, CURRENT, 0))
    rig.engine.kill(worker, first, "timeout")
    assert rig.report(worker, first).outcome == 0
    taken = rig.wait(ev.TakenBack)
    assert taken.above == first
    assert rig.wait(ev.Passed).n == third
    assert not (tmp_path / "two").exists()
    assert rig.node._links[worker].page.words[LIMIT] == NO_LIMIT
    assert rig.call(worker, bodies.double, 2) == 4
    assert not [event for event in rig.events if isinstance(event, ev.WorkerDied)]
    assert second not in [report.n for event in rig.events if isinstance(event, ev.Reported) for report in event.reports]


def test_a_take_back_while_the_worker_passes_over_all_of_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that was forbidden is passed over before the supervisor looks."""
    worker = rig.ready(1)
    first, *_, last = rig.send(worker, (bodies.nap, 0.1), (bodies.double, 1), (bodies.double, 2))
    rig.begun(worker, first)
    ring, records = RingReader(rig.node._links[worker].page), []

    def wait() -> None:
        while len(records) < 3:  # a report and two records of what was passed over
            records.extend(wait_until(ring.read, "another record"))

    hold(monkeypatch, intake_module, wait)
    rig.engine.take_back(worker, first)
    assert rig.wait(ev.TakenBack).above == first
    assert rig.wait(ev.Passed).n == last
    assert rig.node._links[worker].page.words[LIMIT] == NO_LIMIT
    assert rig.call(worker, bodies.double, 2) == 4


def test_two_take_backs_give_nothing_back_twice_and_lose_nothing(rig: Rig) -> None:
    worker = rig.ready(1)
    first, second, *_, last = rig.send(worker, (bodies.nap, 0.2), *((bodies.double, x) for x in range(4)))
    rig.begun(worker, first)
    rig.engine.take_back(worker, first)
    rig.engine.take_back(worker, last)
    rig.engine.take_back(worker, second)
    assert [event.above for event in rig.events if isinstance(event, ev.TakenBack)] == [first] * 3
    assert rig.wait(ev.Passed).n == last
    assert rig.call(worker, bodies.double, 2) == 4


def test_a_take_back_of_what_was_passed_over_meanwhile_forbids_nothing_that_is_sent_later(rig: Rig) -> None:
    """It was decided before that was heard, and must not stay in force: the next job would be passed over, and nobody told."""
    worker = rig.ready(1)
    first, second, third = rig.send(worker, (bodies.nap, 0.1), (bodies.double, 1), (bodies.double, 2))
    rig.begun(worker, first)
    rig.engine.take_back(worker, first)
    assert rig.wait(ev.Passed).n == third
    rig.engine.take_back(worker, second)
    assert rig.node._links[worker].page.words[LIMIT] == NO_LIMIT
    assert rig.call(worker, bodies.double, 2) == 4


def test_without_membarrier_a_mailbox_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "available", lambda: False)
    monkeypatch.setattr(barrier, "everywhere", lambda: pytest.fail("there is no barrier"))
    rig = Rig(tmp_path)
    worker = rig.ready(1)
    assert rig.engine.mailbox_limit == 1
    (n,) = rig.send(worker, (bodies.spin_in_c,))
    rig.begun(worker, n)
    rig.engine.take_back(worker, 0)
    assert rig.wait(ev.TakenBack).above == n
    rig.engine.kill(worker, n, "cancel")
    assert rig.death(worker).begun == n
    rig.close()


def test_a_machine_that_cannot_fork_is_asked_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fork() fails twice, in the zygote and in the process between, as it does when there are too many processes."""
    (tmp_path / "no_fork.py").write_text(
        "import os\n"
        "real, calls, zygote = os.fork, [], os.getpid()\n"
        "def fork():\n"
        "    calls.append(1)\n"
        "    if len(calls) == (1 if os.getpid() == zygote else 3):\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return real()\n"
        "os.fork = fork\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rig = Rig(tmp_path / "run", prepare=Prepare(main=describe_main(), preload=("no_fork",)))
    for worker in (1, 2):
        rig.engine.spawn(worker)
        failed = rig.wait(ev.WorkerFailed)
        assert (failed.worker, "cannot fork" in failed.error) == (worker, True)
    rig.ready(3)
    assert rig.call(3, bodies.double, 2) == 4
    rig.close()
