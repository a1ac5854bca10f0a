"""A pool with room to grow: as many workers as there is work for, up to the maximum; those that are not needed leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpool import InvalidSettings, Pool, config
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from tests.scheduler_rig import Rig, of
from tests.waiting import wait_until

IDLE_NS = 1_000_000_000


def grown(rig: Rig, *events: ev.Event) -> list[cmd.Command]:
    """Take events through a turn, and let the workers that it asks for come."""
    commands = rig.turn(*events)
    ready = [ev.WorkerReady(spawn.worker, 100 + spawn.worker) for spawn in of(commands, cmd.Spawn)]
    return commands + (grown(rig, *ready) if ready else [])


def rig_of(size: int, size_max: int, *, spares: int = 0) -> Rig:
    rig = Rig(size, spares=spares, size_max=size_max, idle_ns=IDLE_NS, ready=False)
    grown(rig, *(ev.WorkerReady(worker, 100 + worker) for worker in rig.scheduler.workers))
    return rig


def test_work_that_finds_no_worker_brings_one_up_to_the_maximum() -> None:
    rig = rig_of(1, 3)
    commands = grown(rig, rig.submitted(5))
    assert len(of(commands, cmd.Spawn)) == 2
    assert len(of(commands, cmd.Start)) == 3
    assert rig.scheduler.fleet.size == 3


def test_without_room_to_grow_nothing_changes() -> None:
    rig = rig_of(2, 0)
    assert not of(grown(rig, rig.submitted(5)), cmd.Spawn)
    assert rig.scheduler.fleet.next_shrink is None


def test_what_may_not_start_brings_nobody() -> None:
    rig = rig_of(1, 3)
    from taskpool.model import Queue

    commands = grown(rig, ev.QueueSet(Queue("q", paused=True)), rig.submitted(5, queue="q"))
    assert not of(commands, cmd.Spawn)


@pytest.mark.parametrize("spares", [0, 1])
def test_workers_leave_when_they_were_not_needed_for_so_long(spares: int) -> None:
    rig = rig_of(1, 3, spares=spares)
    grown(rig, rig.submitted(3))
    assert not of(rig.turn(rig.report(1), rig.report(2), rig.report(3)), cmd.Kill)
    assert rig.scheduler.next_timer(rig.clock.now()) == pytest.approx(1.0)
    rig.clock.advance(0.9)
    assert not of(rig.turn(), cmd.Kill)
    rig.clock.advance(0.2)
    kills = of(rig.turn(), cmd.Kill)
    assert len(kills) == 2
    assert all((kill.n, kill.why) == (0, "retire") for kill in kills)
    assert rig.scheduler.fleet.size == 1
    assert sum(not box.leaving for box in rig.scheduler.workers.values()) == 1 + spares
    assert rig.scheduler.fleet.next_shrink is None, "nothing more to wait for"


def test_what_was_needed_meanwhile_stays() -> None:
    rig = rig_of(1, 3)
    grown(rig, rig.submitted(3))
    rig.turn(rig.report(1), rig.report(2), rig.report(3))
    rig.clock.advance(0.5)
    rig.turn(rig.submitted(2))
    rig.turn(rig.report(4), rig.report(5))
    rig.clock.advance(0.6)
    assert len(of(rig.turn(), cmd.Kill)) == 1
    assert rig.scheduler.fleet.size == 2


def test_a_busy_worker_never_leaves() -> None:
    rig = rig_of(1, 3)
    grown(rig, rig.submitted(3))
    rig.turn(rig.report(1))
    rig.clock.advance(1.1)
    rig.turn()
    rig.clock.advance(1.1)
    (kill,) = of(rig.turn(), cmd.Kill) or of(rig.turn(), cmd.Kill) or [None]
    assert kill is None or kill.worker not in {rig.jobs[2][0], rig.jobs[3][0]}
    assert rig.scheduler.fleet.size == 2


def test_a_worker_that_is_yet_to_pass_over_tasks_counts_as_needed() -> None:
    rig = rig_of(1, 2)
    grown(rig, rig.submitted(2))
    rig.turn(rig.report(1), rig.report(2))
    rig.learn()
    rig.turn(rig.submitted(6))
    (box, *_) = [box for box in rig.scheduler.workers.values() if len(box.sent) > 1]
    first, *others = box.sent
    task = box.sent[first].id
    rig.turn(ev.TakenBack(box.worker, first), rig.cancel(*(row.id for row in rig.scheduler.tasks.values() if row.id != task)))
    rig.turn(rig.report(task))
    assert box.taking_back == others[-1]
    for _ in range(2):
        rig.clock.advance(1.1)
        rig.turn()  # which checks that no more take part than the pool has


def test_sizes_that_make_no_sense_are_refused() -> None:
    for wrong in ({"workers": 4, "max_workers": 2}, {"max_workers": 0}, {"worker_idle": -1}):
        with pytest.raises(InvalidSettings):
            config.settings("/x.db", **wrong)  # type: ignore[arg-type]
    assert config.settings("/x.db", workers=2).workers_max == 2
    assert config.settings("/x.db", max_workers=1).workers == 1


def meet(directory: str, me: int, others: int) -> int:
    """Return when so many bodies run at the same time."""
    Path(directory, str(me)).touch()
    wait_until(lambda: len(list(Path(directory).iterdir())) >= others, "the others")
    return me


def test_a_pool_grows_with_its_work_and_shrinks_again(tmp_path: Path) -> None:
    with Pool(workers=1, max_workers=3, worker_idle=0.1) as pool:
        futures = [pool.submit(meet, str(tmp_path), number, 3) for number in range(3)]
        assert [future.result(60) for future in futures] == [0, 1, 2], "three bodies that wait for each other need three workers"
        wait_until(lambda: sum(worker.state != "spare" for worker in pool.stats().workers) == 1, "the workers to leave")
