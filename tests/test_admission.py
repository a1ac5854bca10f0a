"""What the machine has room for: sums of processors and memory, who is held on to, and who may pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpool.core import commands as cmd
from taskpool.core.admission import CPUS, MEMORY, Room
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import RUNNING
from taskpool.errors import InvalidTask
from taskpool.memory import parse_size, resident, size_of, usable_memory
from taskpool.model import Options
from tests.scheduler_rig import PLAIN, Rig, of

GB = 10**9


def rig_of(size: int, *, cpus: float = 0, memory: int = 0) -> Rig:
    return Rig(size=size, room=Room(cpus, memory))


def started(commands: list[cmd.Command]) -> list[int]:
    return [start.id for start in of(commands, cmd.Start)]


def running(rig: Rig) -> list[TaskRow]:
    return [row for row in rig.scheduler.tasks.values() if row.status == RUNNING]


def submit(rig: Rig, options: Options = PLAIN, **how: str) -> int:
    (task_id,) = rig.submit(1, options, **how)
    return task_id


def ended(rig: Rig, task_id: int) -> list[int]:
    """Let a task end; return what starts in its place."""
    return started(rig.turn(rig.report(task_id)))


def test_tasks_start_while_their_memory_fits() -> None:
    rig = rig_of(3, memory=10 * GB)
    first, second, third = (submit(rig, Options(memory=4 * GB)) for _ in range(3))
    assert {row.id for row in running(rig)} == {first, second}
    assert ended(rig, first) == [third]


def test_tasks_start_while_their_processors_fit() -> None:
    """Who says nothing counts as one."""
    rig = rig_of(4, cpus=4)
    wide = [submit(rig, Options(cpus=3.0)) for _ in range(2)]
    narrow = submit(rig)
    assert {row.id for row in running(rig)} == {wide[0]}
    assert ended(rig, wide[0]) == [wide[1], narrow]


def test_who_needs_more_than_there_is_runs_alone() -> None:
    """It was stored on a larger machine; a new one is refused."""
    rig = rig_of(2, cpus=2, memory=GB)
    small = submit(rig)
    huge = submit(rig, Options(cpus=64.0, memory=64 * GB))
    after = submit(rig)
    assert {row.id for row in running(rig)} == {small}
    assert ended(rig, small) == [huge]
    assert ended(rig, huge) == [after]
    with pytest.raises(InvalidTask, match="needs 64 cpus; this pool has 2"):
        rig.scheduler.room.check(Options(cpus=64.0))
    with pytest.raises(InvalidTask, match=r"needs 64.0 GB of memory; this machine has 1.0 GB"):
        rig.scheduler.room.check(Options(memory=64 * GB))


def test_who_waits_for_memory_is_passed_only_by_those_that_need_none() -> None:
    rig = rig_of(3, memory=10 * GB)
    first = submit(rig, Options(memory=6 * GB))
    big = submit(rig, Options(memory=8 * GB), queue="a")
    small = submit(rig, Options(memory=GB), queue="b")
    light = submit(rig, queue="c")
    assert {row.id for row in running(rig)} == {first, light}
    room, tasks = rig.scheduler.room, rig.scheduler.tasks
    why = room.reason(tasks[big])
    assert why is not None
    assert (why.code, why.detail) == (MEMORY, "waits for memory: it needs 8.00 GB, 4.00 of 10.00 GB are not spoken for")
    why = room.reason(tasks[small])
    assert why is not None
    assert why.detail == f"waits behind task {big}, which is next and waits for memory"
    assert ended(rig, first) == [big, small]


def test_nothing_passes_who_waits_for_processors() -> None:
    rig = rig_of(2, cpus=2)
    first = submit(rig)
    wide = submit(rig, Options(cpus=2.0), queue="a")
    narrow = submit(rig, queue="b")
    assert {row.id for row in running(rig)} == {first}
    why = rig.scheduler.room.reason(rig.scheduler.tasks[wide])
    assert why is not None
    assert (why.code, why.detail) == (CPUS, "waits for processors: it needs 2, 1 of 2 are free")
    assert ended(rig, first) == [wide]
    assert ended(rig, wide) == [narrow]


def test_who_waited_for_room_and_left_holds_up_nobody() -> None:
    rig = rig_of(2, cpus=2)
    first = submit(rig)
    wide = submit(rig, Options(cpus=2.0), queue="a")
    narrow = submit(rig, queue="b")
    assert started(rig.turn(rig.cancel(wide))) == [narrow]
    assert {row.id for row in running(rig)} == {first, narrow}


def test_a_task_that_says_what_it_needs_has_its_worker_to_itself() -> None:
    rig = rig_of(1, memory=10 * GB)
    rig.learn("work")
    ids = [submit(rig, Options(memory=GB), name="work") for _ in range(3)]
    assert [row.id for row in running(rig)] == ids[:1]


@given(st.lists(st.tuples(st.sampled_from([None, 0.5, 1.0, 2.0, 9.0]), st.sampled_from([None, 1, 5, 40])), min_size=1, max_size=20))
def test_all_come_to_their_turn_and_never_too_many_at_once(needs: list[tuple[float | None, int | None]]) -> None:
    rig = rig_of(3, cpus=3, memory=10)
    for number, (cpus, memory) in enumerate(needs):
        submit(rig, Options(cpus=cpus, memory=memory), queue="abc"[number % 3])
    for _ in needs:
        rows = [next(iter(box.sent.values())) for box in rig.scheduler.workers.values() if box.sent]  # the others wait behind them
        assert rows
        assert sum(min(row.options.cpus or 1.0, 3) for row in rows) <= 3
        assert sum(min(row.options.memory or 0, 10) for row in rows) <= 10
        ended(rig, rows[0].id)
    assert not rig.scheduler.tasks


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_sizes() -> None:
    assert parse_size("512M") == 512 << 20
    assert size_of("2GiB") == 2 << 30
    assert size_of(7) == 7
    for wrong in ("much", "2 parsecs", 0, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="is not a size"):
            size_of(wrong)


def test_the_memory_of_this_machine() -> None:
    assert 1 << 20 < usable_memory() < 1 << 60
    assert usable_memory("/nowhere", "/nowhere") >= usable_memory()


def test_control_groups_bound_the_memory(tmp_path: Path) -> None:
    place = tmp_path
    (place / "outer" / "inner").mkdir(parents=True)
    (place / "memory" / "old").mkdir(parents=True)
    (place / "outer" / "memory.max").write_text("5000000\n")
    (place / "outer" / "inner" / "memory.max").write_text("max\n")
    (place / "memory" / "old" / "memory.limit_in_bytes").write_text("4000000\n")
    (place / "two").write_text("0::/outer/inner\n")
    (place / "one").write_text("5:cpu,memory:/old\n3:pids:/\n")
    assert usable_memory(str(place / "two"), str(place)) == 5_000_000
    assert usable_memory(str(place / "one"), str(place)) == 4_000_000


def test_the_memory_of_processes_that_are_gone_is_nothing() -> None:
    assert resident([os.getpid()]) > 1 << 20
    assert resident([2**22 + 1]) == 0
