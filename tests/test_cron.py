"""Schedules in the scheduler (values in, commands out), in the store, and as users have them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taskpool import AlreadyExists, InvalidTask, NotFound, Occurrence, Pool, Schedule, task
from taskpool.clock import US
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.cron import SLICE_MAX
from taskpool.model import Options
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.timetable import next_after
from tests.scheduler_rig import CLIENT, Rig, of, the
from tests.store_rig import T0, insert, start
from tests.waiting import wait_until

WAIT_S = 30


# ---- the scheduler ------------------------------------------------------------------------------------------------------


def planned(name: str = "s", spec: str = "@every 60s", **how: Any) -> Schedule:
    return Schedule(name=name, spec=spec, handler="f", options=Options(recurrence=name), **how)


class CronRig(Rig):
    """A rig with one schedule, each minute from now."""

    def __init__(self, schedule: Schedule | None = None, **how: Any) -> None:
        super().__init__(next_after=next_after, **how)
        self.clock.advance(-(self.wall % (60 * US)) / US)
        if schedule is not None:
            self.answer = the(self.turn(ev.CronAsked(CLIENT, 1, "add", schedule.name, schedule)), cmd.Agree)

    def minutes(self, count: float = 1) -> list[cmd.Command]:
        self.clock.advance(60 * count)
        return self.turn()

    def ask(self, verb: str, name: str = "s", schedule: Schedule | None = None) -> list[cmd.Command]:
        return self.turn(ev.CronAsked(CLIENT, 1, verb, name, schedule))

    @property
    def job(self) -> Any:
        return self.scheduler.cron.jobs["s"]


def outcomes(commands: list[cmd.Command]) -> list[str]:
    return [occur.occurrence.outcome for occur in of(commands, cmd.Occur)]


def test_an_occurrence_comes_with_its_task_and_how_far_the_schedule_is() -> None:
    rig = CronRig(planned())
    assert rig.answer.code == ""
    assert rig.scheduler.next_timer(rig.clock.now()) == pytest.approx(60)
    assert not of(rig.minutes(0.99), cmd.Insert)
    commands = rig.minutes(0.01)
    made = the(commands, cmd.Insert)
    occurrence = the(commands, cmd.Occur).occurrence
    assert (occurrence.outcome, occurrence.task_id, occurrence.planned_at) == ("fired", made.id, rig.wall)
    assert msgspec.msgpack.decode(made.spec.options, type=Options).recurrence == "s"
    assert the(commands, cmd.Start).id == made.id, "stored and started in one turn"
    advance = the(commands, cmd.Advance)
    assert (advance.next_at, advance.total) == (rig.wall + 60 * US, 1)


def test_a_clock_that_jumps_back_fires_nothing_twice() -> None:
    rig = CronRig(planned(overlap="allow"))
    fired = of(rig.minutes(), cmd.Occur)
    rig.clock.jump_wall(-3600)
    for _ in range(59):
        fired += of(rig.minutes(), cmd.Occur)
    assert len(fired) == 1
    fired += of(rig.minutes(2), cmd.Occur)
    assert len({one.occurrence.planned_at for one in fired}) == len(fired) == 2


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("last", ["skipped"] * 4 + ["fired"]),
        ("skip", ["skipped"] * 4 + ["fired"]),  # the last is not late
        ("all", ["fired"] * 5),
    ],
)
def test_what_was_missed(missed: Any, expected: list[str]) -> None:
    rig = CronRig(planned(missed=missed, overlap="allow"))
    assert outcomes(rig.minutes(5)) == expected


def test_skip_makes_nothing_of_what_is_late_and_catch_up_bounds_the_others() -> None:
    hourly = "@every 3600s"
    assert outcomes(CronRig(planned(spec=hourly, missed="skip")).minutes(90)) == ["skipped"]
    assert outcomes(CronRig(planned(spec=hourly, missed="last")).minutes(90)) == ["fired"]
    assert outcomes(CronRig(planned(spec=hourly, missed="last", catch_up_s=600)).minutes(90)) == ["skipped"]
    rig = CronRig(planned(spec=hourly, missed="all", catch_up_s=7300, overlap="allow"))
    assert outcomes(rig.minutes(60 * 5)) == ["skipped", "skipped", "fired", "fired", "fired"]


def test_a_long_absence_costs_no_more_than_a_few_turns() -> None:
    """A schedule of each second, ten years away: rows for the first of them, then it leaps."""
    rig = CronRig(planned(spec="@every 1s"))
    rig.clock.advance(10 * 366 * 86400)
    turns, rows, fired = 0, 0, 0
    while rig.scheduler.next_timer(rig.clock.now()) == 0.0:
        commands = rig.turn()
        turns, rows, fired = turns + 1, rows + len(of(commands, cmd.Occur)), fired + outcomes(commands).count("fired")
        assert turns < 40
    assert fired == 1
    assert rows <= turns * SLICE_MAX


def test_overlap_skip_and_allow() -> None:
    rig = CronRig(planned(overlap="skip"))
    rig.minutes()
    assert outcomes(rig.minutes()) == ["skipped"]
    rig.turn(rig.report(1))
    assert outcomes(rig.minutes()) == ["fired"]
    rig = CronRig(planned(overlap="allow"))
    assert [outcomes(rig.minutes()) for _ in range(2)] == [["fired"], ["fired"]]


def test_overlap_queue_goes_on_when_the_forerunner_ends() -> None:
    rig = CronRig(planned(overlap="queue"))
    rig.minutes()
    queued = rig.minutes()
    assert outcomes(queued) == ["queued"]
    at = the(queued, cmd.Occur).occurrence.planned_at
    commands = rig.turn(rig.report(1))
    occurrence = the(commands, cmd.Occur).occurrence
    assert (occurrence.outcome, occurrence.planned_at) == ("fired", at)
    assert outcomes(rig.turn(rig.report(2))) == []


def test_overlap_cancel_previous() -> None:
    rig = CronRig(planned(overlap="cancel_previous"))
    rig.minutes()
    commands = rig.minutes()
    assert outcomes(commands) == ["fired"]
    assert the(commands, cmd.CancelLive).ids == [1]


def test_what_was_queued_and_what_was_to_be_cancelled_survive_a_death() -> None:
    rig = Rig(next_after=next_after)
    row = ev.ScheduleRow(planned("q", overlap="queue", next_at=rig.wall + 60 * US), [], [rig.wall - US], rig.wall - US)
    assert outcomes(rig.turn(ev.Scheduled([row]))) == ["fired"]
    row = ev.ScheduleRow(planned("c", overlap="cancel_previous", next_at=rig.wall + 60 * US), [7, 9], [])
    assert the(rig.turn(ev.Scheduled([row])), cmd.CancelLive).ids == [7]


def test_counts() -> None:
    rig = CronRig(planned())
    rig.minutes()
    failed = the(rig.turn(rig.failure(1)), cmd.Advance)
    assert (failed.total, failed.err_count) == (1, 1)
    rig.minutes()
    assert not of(rig.turn(rig.report(2)), cmd.Advance), "a success counts nothing more"
    assert (rig.job.total, rig.job.err_count) == (2, 1)


def test_pause_resume_and_run() -> None:
    rig = CronRig(planned())
    kept = the(rig.ask("pause"), cmd.Keep).schedule
    assert (kept.paused, kept.next_at) == (True, None)
    assert not of(rig.minutes(3), cmd.Occur)
    made = rig.ask("run")
    assert the(made, cmd.Agree).ids == [the(made, cmd.Insert).id]
    assert the(made, cmd.Occur).occurrence.reason == "by hand"
    rig.turn(rig.report(1))
    assert the(rig.ask("resume"), cmd.Keep).schedule.next_at == rig.wall + 60 * US
    assert outcomes(rig.minutes()) == ["fired"]


def test_names_are_unique_and_the_same_again_is_the_same() -> None:
    rig = CronRig(planned())
    same = rig.ask("add", schedule=planned())
    assert the(same, cmd.Agree).code == ""
    assert not of(same, cmd.Keep)
    other = planned(spec="@every 120s")
    assert the(rig.ask("add", schedule=other), cmd.Agree).code == "already_exists"
    assert the(rig.ask("replace", schedule=other), cmd.Keep).schedule.spec == "@every 120s"
    assert the(rig.ask("run", "t"), cmd.Agree).code == "not_found"
    assert the(rig.ask("cancel"), cmd.Forget).name == "s"
    assert not of(rig.minutes(10), cmd.Occur)


def test_what_the_store_refuses_is_tried_again() -> None:
    rig = CronRig(planned(missed="all", overlap="allow"))
    refused = [made.id for made in of(rig.minutes(2), cmd.Insert)]
    assert len(refused) == 2
    assert not of(rig.turn(ev.Dropped(refused)), cmd.Occur), "not at once: there is no room"
    rig.clock.advance(1)
    commands = rig.turn()
    assert outcomes(commands) == ["fired", "fired"]
    assert the(commands, cmd.Advance).total == 2


def test_jitter_is_bounded_and_the_same_again() -> None:
    at = []
    for _ in range(2):
        rig = CronRig(planned(jitter_s=30))
        wait = rig.scheduler.next_timer(rig.clock.now())
        assert wait is not None
        at.append(wait)
    assert at[0] == at[1]
    assert 60 < at[0] < 90


def test_ten_thousand_schedules_cost_nothing_while_none_is_due() -> None:
    """A turn asks the calendar nothing and looks at no schedule."""
    asked = []

    def count(spec: str, tz: str, after: int, anchor: int) -> int | None:
        asked.append(spec)
        return next_after(spec, tz, after, anchor)

    rig = Rig(next_after=count)
    later = rig.wall + 3600 * US
    rig.turn(ev.Scheduled([ev.ScheduleRow(planned(f"s{n}", next_at=later + n), [], []) for n in range(10_000)]))
    looked = []
    rig.scheduler.cron._occurrences = lambda job, now: iter(looked.append(job) or ())  # type: ignore[method-assign,func-returns-value]
    for _ in range(100):
        rig.turn()
        assert rig.scheduler.next_timer(rig.clock.now()) is not None
    assert not asked
    assert not looked


def test_a_pool_that_stops_fires_nothing() -> None:
    rig = CronRig(planned())
    rig.turn(ev.StopAsked(None))
    assert not of(rig.minutes(3), cmd.Insert)
    assert the(rig.ask("run"), cmd.Agree).code == "pool_stopped"


# ---- the store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "x.db", durability="process")
    yield store
    store.close()


def fired(task_id: int, at: int = T0, name: str = "s") -> list[cmd.Plan]:
    return [cmd.Occur(Occurrence(name, at, "fired", "", task_id, at)), cmd.Advance(name, at + US, task_id, 0)]


def keep(store: Store, *names: str) -> None:
    store.commit([], T0, plans=[cmd.Keep(planned(name, next_at=T0)) for name in names])


def test_a_schedule_is_kept_and_forgotten(store: Store) -> None:
    keep(store, "s", "t")
    store.commit([insert(1, options=Options(recurrence="s"))], T0, plans=fired(1))
    assert [(one.name, one.next_at, one.total) for one in store.schedules()] == [("s", T0 + US, 1), ("t", T0, 0)]
    (row, _) = store.schedule_rows()
    assert (row.live, row.queued, row.last_at) == ([1], [], T0)
    assert store.task(1).recurrence == "s"
    store.commit([], T0, plans=[cmd.Forget("s")])
    assert [one.name for one in store.schedules()] == ["t"]
    assert store.occurrences("s") == []
    with pytest.raises(NotFound):
        store.schedules("s")


def test_what_was_queued_becomes_what_fired_and_nothing_occurs_twice(store: Store) -> None:
    keep(store, "s")
    store.commit([], T0, plans=[cmd.Occur(Occurrence("s", T0, "queued", "", None, T0))])
    assert store.schedule_rows()[0].queued == [T0]
    store.commit([insert(1)], T0, plans=fired(1))
    assert [one.outcome for one in store.occurrences("s")] == ["fired"]
    with pytest.raises(Exception, match="a second time"):
        store.commit([insert(2)], T0, plans=fired(2))
    assert not store.rows([2]), "nor is its task stored"


def test_a_refused_task_takes_all_of_its_schedule_with_it(store: Store) -> None:
    """The other task of the same schedule too, or it would come again; other schedules and tasks stay."""
    keep(store, "s", "t")
    store.commit([insert(1)], T0)
    taken = insert(2, uid=1)
    saves = [taken, insert(3), start(3), insert(4), insert(5)]
    refused = store.commit(saves, T0, plans=[*fired(2), *fired(3, T0 + US), *fired(4, name="t")])
    assert set(refused) == {2, 3}
    assert [row.id for row in store.rows([1, 2, 3, 4, 5])] == [1, 4, 5]
    assert [(one.name, one.next_at) for one in store.schedules()] == [("s", T0), ("t", T0 + US)]
    assert store.occurrences("s") == []


# ---- as users have it ---------------------------------------------------------------------------------------------------


def double(x: int) -> int:
    return 2 * x


@task(queue="reports", max_attempts=2)
def report(day: str) -> str:
    return f"report of {day}"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("cron") / "x.db", workers=1) as pool:
        yield pool


def test_a_schedule_fires_by_itself(pool: Pool) -> None:
    schedule = pool.add_cron("@every 1s", double, 21, name="ticks", tags=["cron"])
    assert (schedule.call, schedule.sentence, schedule.tz) == (f"{schedule.handler}()", "Every 1s", "UTC")
    first = wait_until(lambda: pool.cron_history("ticks"), "its first time")[-1]
    assert first.task_id is not None
    assert pool.future(first.task_id).result(WAIT_S) == 42
    made = pool.get(first.task_id)
    assert (made.recurrence, made.options.tags) == ("ticks", ("cron",))
    pool.cancel_cron("ticks")
    with pytest.raises(NotFound):
        pool.get_cron("ticks")
    assert pool.get(first.task_id).recurrence == "ticks"


def test_the_decorator_and_what_it_says(pool: Pool) -> None:
    @pool.cron("0 3 * * MON-FRI", 4, tz="Europe/Paris", missed="last", overlap="skip", timeout=60, deadline=timedelta(hours=1))
    def nightly(x: int) -> int:
        return x + 1

    assert nightly(1) == 2, "it is still that function"
    (schedule,) = [one for one in pool.cron_jobs() if one.name.endswith("nightly")]
    assert schedule.sentence == "At 03:00 on Monday through Friday (Europe/Paris)"
    assert (schedule.options.timeout_s, schedule.deadline_s) == (60, 3600)
    future = pool.run_cron(schedule.name)
    assert future.result(WAIT_S) == 5
    made = pool.get(future.id)
    assert made.options.deadline_at is not None
    assert made.options.deadline_at - made.created_at == 3600 * US
    assert pool.get_cron(schedule.name).total == 1
    pool.pause_cron(schedule.name)
    assert pool.get_cron(schedule.name).next_at is None
    pool.resume_cron(schedule.name)
    soon = pool.get_cron(schedule.name).next_at
    assert soon is not None
    assert datetime.fromtimestamp(soon / US, UTC) > datetime.now(UTC)
    pool.cancel_cron(schedule.name)


def test_handlers_keep_their_options_and_names_are_made_up(pool: Pool) -> None:
    one, other = pool.add_cron("@daily", report, "today"), pool.add_cron("@daily", report, "today")
    assert one.name != other.name
    assert one.name.startswith(report.name)
    assert (one.queue, one.options.max_attempts) == ("reports", 2)
    with pytest.raises(AlreadyExists):
        pool.add_cron("@hourly", report, "today", name=one.name)
    assert pool.add_cron("@hourly", report, "today", name=one.name, replace=True).spec == "@hourly"


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("61 * * * *", {}, "minute field '61'"),
        ("@daily", {"tz": "Europe/Pariss"}, "did you mean Europe/Paris"),
        ("@daily", {"missed": "some"}, "missed must be 'last'"),
        ("@daily", {"overlap": "maybe"}, "overlap must be"),
        ("@daily", {"jitter": -1}, "jitter"),
        ("@daily", {"delay": 5}, "delay makes no sense"),
        ("@daily", {"deadline": datetime(2030, 1, 1, tzinfo=UTC)}, "deadline of a schedule is a duration"),
        ("@daily", {"name": ""}, "name must be"),
        ("@daily", {"prio": 1}, "no option 'prio'"),
    ],
)
def test_what_makes_no_sense_is_said(pool: Pool, spec: str, options: Any, words: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        pool.add_cron(spec, double, 1, **options)
    assert words in str(caught.value)


def test_a_schedule_outlives_its_pool(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with Pool(path, workers=1) as pool:
        pool.add_cron("0 0 1 1 *", double, 1, name="yearly")
        pool.pause_cron("yearly")
    with Reader(path) as reader:
        assert reader.schedules("yearly")[0].paused
    with Pool(path, workers=1) as pool:
        assert pool.add_cron("0 0 1 1 *", double, 1, name="yearly").paused, "the same again is the same"
        assert pool.run_cron("yearly").result(WAIT_S) == 2
