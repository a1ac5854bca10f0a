"""Real processes, real signals: nothing outlives its owner, nothing outlives its task, and what was said is not lost."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from taskpool.core import events as ev
from taskpool.engines import launch, recovery, sweep
from taskpool.engines.engine import Limits
from taskpool.wire.codec import decode_result
from taskpool.wire.jobs import Checkpointed, Report
from tests import engine_bodies as bodies
from tests.engine_rig import PATIENCE_S, Rig, descriptors
from tests.waiting import wait_until

OWNER = str(Path(__file__).with_name("owner_script.py"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# ---- nothing outlives its task --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [False, True], ids=["marked", "unmarked"])
def test_a_daemon_is_gone_after_its_task(rig: Rig, tmp_path: Path, clean: bool) -> None:
    """Forked twice, in a session of its own, with or without the mark in its environment."""
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.daemonize, str(tmp_path / "daemon"), clean))
    rig.report(worker, n)
    for pid in (tmp_path / "daemon").read_text().split():
        rig.gone(int(pid))


@pytest.mark.parametrize("clean", [False, True], ids=["marked", "unmarked"])
def test_a_daemon_is_gone_after_the_kill_of_its_worker(rig: Rig, tmp_path: Path, clean: bool) -> None:
    worker = rig.ready(1)
    rig.send(worker, (bodies.daemonize_and_wait, str(tmp_path / "daemon"), clean), limits=[Limits(1, timeout_s=0.5)])
    assert rig.death(worker).why == "timeout"
    for pid in (tmp_path / "daemon").read_text().split():
        rig.gone(int(pid))


def test_a_child_is_gone_after_the_crash_of_its_worker(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    rig.send(worker, (bodies.start_child_and_wait, str(tmp_path / "child")))
    child = int(rig.until_file(tmp_path / "child"))
    os.kill(rig.engine.pids()[worker], signal.SIGKILL)
    rig.death(worker)
    rig.gone(child)


def test_the_daemon_of_one_task_dies_and_that_of_a_running_one_lives(rig: Rig, tmp_path: Path) -> None:
    rig.ready(1, 2)
    rig.send(1, (bodies.daemonize_and_wait, str(tmp_path / "kept")))
    kept = rig.until_file(tmp_path / "kept").split()
    (n,) = rig.send(2, (bodies.daemonize, str(tmp_path / "lost")))
    rig.report(2, n)
    for pid in (tmp_path / "lost").read_text().split():
        rig.gone(int(pid))
    rig.ready(3)
    rig.send(3, (bodies.die_by_exit, 1))
    rig.death(3)
    end = time.monotonic() + 1.2  # a sweep and more
    while time.monotonic() < end:
        rig.turn(0.1)
    assert all(alive(int(pid)) for pid in kept)


def test_helpers_of_the_supervisor_are_not_swept(rig: Rig) -> None:
    helper = subprocess.Popen(["sleep", "3600"])
    try:
        worker = rig.ready(1)
        rig.send(worker, (bodies.die_by_exit, 1))
        rig.death(worker)
        rig.turn(0.1)
        assert helper.poll() is None
    finally:
        helper.kill()
        helper.wait()


def test_shared_memory_of_a_killed_worker_is_freed(rig: Rig, tmp_path: Path) -> None:
    """What is left behind is killed at once, but for the one whose work is to free what its dead users held."""
    worker = rig.ready(1)
    rig.send(worker, (bodies.share_and_wait, str(tmp_path / "name")))
    name = rig.until_file(tmp_path / "name")
    assert os.path.exists(f"/dev/shm/{name}")
    rig.engine.kill(worker, 0, "retire")
    rig.death(worker)
    rig.until(lambda: not os.path.exists(f"/dev/shm/{name}"), "the end of the shared memory")


# ---- the zygote -----------------------------------------------------------------------------------------------------


def test_workers_outlive_the_zygote_and_new_ones_come_from_another(rig: Rig) -> None:
    rig.ready(1)
    first = rig.node._nursery.pid
    os.kill(first, signal.SIGKILL)
    rig.numbers[2] = 0
    rig.engine.spawn(2)  # perhaps asked of the one that dies
    rig.wait(ev.WorkerReady)
    assert rig.call(1, bodies.double, 1) == 2
    assert rig.call(2, bodies.double, 2) == 4
    assert rig.node._nursery.pid != first
    rig.gone(first)


def test_forks_that_died_with_their_zygote_are_repeated(rig: Rig) -> None:
    for worker in range(1, 6):
        rig.numbers[worker] = 0
        rig.engine.spawn(worker)
    os.kill(rig.node._nursery.pid, signal.SIGKILL)
    for worker in range(1, 6):
        rig.wait(ev.WorkerReady, lambda event, worker=worker: event.worker == worker)
        assert rig.call(worker, bodies.double, 1) == 2


def test_many_workers_are_asked_for_at_once(rig: Rig) -> None:
    """More than fit into the socket, or may be on their way with four descriptors each."""
    workers = range(1, 121)
    rig.ready(*workers)
    assert len(set(rig.engine.pids().values())) == len(workers)
    assert rig.call(workers[-1], bodies.double, 1) == 2


def test_no_worker_holds_what_belongs_to_another(rig: Rig) -> None:
    rig.ready(1, 2, 3)
    for pid in rig.engine.pids().values():
        held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert len([one for one in held if one.startswith("socket:")]) == 1
        assert len({one for one in held if one.startswith("pipe:")}) == 1
        assert len([one for one in held if "stacks-" in one]) == 1


def test_a_worker_that_cannot_be_given_descriptors_has_failed(rig: Rig) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    for left in range(6):  # how many may be opened: never enough
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1, hard))
        taken = fill_descriptors()
        try:
            for fd in taken[:left]:
                os.close(fd)
            rig.engine.spawn(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken[left:]:
                os.close(fd)
        assert "no descriptors" in rig.wait(ev.WorkerFailed).error
        assert descriptors() == before
    rig.ready(2)


def fill_descriptors() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            return taken


# ---- records --------------------------------------------------------------------------------------------------------


def faulty(tmp_path: Path, fault: str) -> Rig:
    return Rig(tmp_path, env={**os.environ, "TASKPOOL_FAULTS_ENABLED": "1", "TASKPOOL_FAULT": fault})


def test_a_torn_record_is_no_result(tmp_path: Path) -> None:
    rig = faulty(tmp_path, "result.half:2:kill")
    worker = rig.ready(1)
    first, second, _ = rig.send(worker, (bodies.double, 1), (bodies.double, 2), (bodies.double, 3))
    death = rig.death(worker)
    assert death.begun == second
    assert rig.result(worker, first) == 2
    assert sum(len(event.reports) for event in rig.events if isinstance(event, ev.Reported)) == 1
    rig.close()


def test_a_whole_record_wins_over_the_death_that_follows(tmp_path: Path) -> None:
    rig = faulty(tmp_path, "result.after:2:kill")
    worker = rig.ready(1)
    _, second, _ = rig.send(worker, (bodies.double, 1), (bodies.double, 2), (bodies.double, 3))
    death = rig.death(worker)
    assert death.begun == 0
    assert rig.result(worker, second) == 4
    rig.close()


def test_a_death_between_the_naming_and_the_body_counts_as_begun(tmp_path: Path) -> None:
    rig = faulty(tmp_path, "body.before:1:kill")
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.double, 1))
    assert rig.death(worker).begun == n
    rig.close()


def test_a_worker_that_damages_its_page_is_ended_and_charged_with_it(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    assert rig.call(worker, bodies.double, 1) == 2
    page = str(tmp_path / "e1" / "w1.page")
    n, _ = rig.send(worker, (bodies.scribble, page, str(tmp_path / "done")), (bodies.double, 2))
    rig.until_file(tmp_path / "done")
    rig.engine.take_back(worker, n)
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.kind) == (n, "", "panic")
    assert "its worker cannot be used: head" in death.error.message


def test_only_one_body_is_charged_however_the_worker_is_killed(rig: Rig) -> None:
    """Kills at random moments of a full mailbox: what was reported stays, at most one had begun, the rest never did."""
    for worker in range(1, 31):
        rig.ready(worker)
        numbers = rig.send(worker, *((bodies.double, x) for x in range(100)))
        rig.report(worker, numbers[(worker * 37) % 60])
        os.kill(rig.engine.pids()[worker], signal.SIGKILL)
        death = rig.death(worker)
        reported = [report.n for event in rig.events if isinstance(event, ev.Reported) for report in event.reports]
        rig.events.clear()
        assert reported == numbers[: len(reported)]
        assert death.begun in (0, len(reported) + 1)


# ---- nothing leaks --------------------------------------------------------------------------------------------------


def test_200_deaths_leave_descriptors_threads_and_children_as_they_were(rig: Rig, tmp_path: Path) -> None:
    rig.ready(1)
    before = descriptors()
    for worker in range(2, 202, 10):
        group = range(worker, worker + 10)
        rig.ready(*group)
        for one in group:
            rig.send(one, (bodies.die_by_exit, 1))
        for one in group:
            assert rig.death(one).begun == 1
    rig.turn()
    assert sorted(descriptors().values()) == sorted(before.values())
    assert {child.pid for child in psutil.Process().children()} >= {rig.node._nursery.pid, rig.engine.pids()[1]}
    assert os.listdir(tmp_path / "e1") == ["w1.page"]


def test_nothing_wakes_while_nothing_runs(rig: Rig) -> None:
    worker = rig.ready(1)
    rig.send(worker, (bodies.nap, 0.01), limits=[Limits(1, timeout_s=0.5)])
    rig.report(worker, 1)
    killer = rig.node._killer._thread.native_id
    end = time.monotonic() + 1.3  # the sweep after the task, and the timer that was set for its timeout
    while time.monotonic() < end:
        rig.turn(0.1)

    def switches() -> int:
        text = Path(f"/proc/self/task/{killer}/status").read_text()
        return int(text.split("voluntary_ctxt_switches:")[1].split()[0])

    before = switches()
    assert select.select([rig.poller._epoll], [], [], 1.0) == ([], [], [])
    assert switches() == before


# ---- nothing outlives its owner -------------------------------------------------------------------------------------


def start_owner(tmp_path: Path, mark: str, plan: str, epoch: int = 1) -> subprocess.Popen[bytes]:
    owner = subprocess.Popen([sys.executable, OWNER, str(tmp_path), mark, str(epoch), plan], start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / "up").exists() or owner.poll() is not None, "the owner is up")
        assert owner.poll() is None
    except BaseException:
        owner.kill()
        owner.wait()
        raise
    return owner


def marked(mark: str) -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and mark in sweep.marks_of(int(name))}


def test_when_the_owner_is_killed_everything_of_it_dies(tmp_path: Path) -> None:
    mark = f"owner-{os.getpid()}"
    owner = start_owner(tmp_path, mark, "family")
    assert len(marked(mark)) >= 6  # zygote, two workers, the daemon and its child, the other child
    owner.kill()
    owner.wait()
    wait_until(lambda: not marked(mark), "the end of all that the owner had started")


def test_when_owner_and_zygote_are_killed_the_next_start_sweeps(tmp_path: Path) -> None:
    mark = f"sweep-{os.getpid()}"
    owner = start_owner(tmp_path, mark, "family")
    zygote = int((tmp_path / "pids").read_text().split()[0])
    os.kill(owner.pid, signal.SIGSTOP)  # so that it does not start another
    os.kill(zygote, signal.SIGKILL)
    owner.kill()
    owner.wait()
    assert marked(mark)
    (tmp_path / "run" / sweep.OWNERS).write_text(f"{mark}\n")
    assert not sweep.take_over(tmp_path / "run", "next-owner")
    assert not marked(mark)
    assert (tmp_path / "run" / sweep.OWNERS).read_text() == "next-owner\n"


def test_a_sweep_spares_other_marks_its_caller_and_the_ancestors(tmp_path: Path) -> None:
    mark = f"spare-{os.getpid()}"
    environment = launch.marked_environment(dict(os.environ), mark)
    code = (
        "import os, subprocess, sys\n"
        "from taskpool.engines import launch, sweep\n"
        f"child = subprocess.Popen(['sleep', '3600'])\n"
        f"other = subprocess.Popen(['sleep', '3600'], env=launch.marked_environment({{}}, 'another-mark'))\n"
        f"killed, left = sweep.kill_owned([{mark!r}])\n"
        "assert killed == {child.pid} and not left, (killed, left)\n"
        "assert other.poll() is None\n"
        "other.kill()\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE_S)


def test_nested_owners_are_found_by_both_marks() -> None:
    outer = launch.marked_environment({}, "outer")
    inner = launch.marked_environment(outer, "inner")
    assert inner[launch.MARK].split() == ["outer", "inner"]


def test_the_pages_of_a_killed_owner_tell_what_it_had_not_stored(tmp_path: Path) -> None:
    mark = f"pages-{os.getpid()}"
    owner = start_owner(tmp_path, mark, "records")
    owner.kill()
    owner.wait()
    wait_until(lambda: not marked(mark), "the end of all that the owner had started")
    run = tmp_path / "run"
    one, two = recovery.recover(run, 2)
    assert (one.worker, one.epoch, one.void, one.current) == (1, 1, False, (1005, 1))
    reports = [record for record in one.records if isinstance(record, Report)]
    assert [report.task_id for report in reports] == [1003, 1004]
    assert [decode_result(report.codec, report.value) for report in reports] == [6, b"x" * 1_000_000]
    assert [record.task_id for record in one.records if isinstance(record, Checkpointed)] == [1005]
    assert (two.worker, two.current, two.records, two.void) == (2, None, [], False)
    assert recovery.recover(run, 1) == []  # its own pages are no old ones
    recovery.forget([one, two])
    assert os.listdir(run) == []


def test_what_stop_finds_unstored_stays_for_the_next_owner(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commits = False
    worker = rig.ready(1)
    rig.call(worker, bodies.double, 1)
    rig.send(worker, (bodies.write_and_wait, str(tmp_path / "started")))
    rig.until_file(tmp_path / "started")
    rig.close()
    (page,) = recovery.recover(tmp_path, 2)
    assert page.current == (1002, 1)
    assert [record.task_id for record in page.records if isinstance(record, Report)] == [1001]
