"""What ended is kept for a while, then pruned: in slices, whole, and nothing that anybody still needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from taskpool import config
from taskpool.clock import NS, Instant
from taskpool.core.commands import Checkpoint, Keep, Occur, Place
from taskpool.doors.options import NOTHING_SAID
from taskpool.errors import InvalidSettings, InvalidTask
from taskpool.model import Filter, FlowSpec, Occurrence, Options, Schedule, encode
from taskpool.retention import DAY_S, ENDED, Retention, retention_of
from taskpool.store.conditions import StoreBusy
from taskpool.store.pruning import PAGE, SCHEDULES, Rule, Walk
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.supervisor import pruning
from taskpool.supervisor.pruning import Pruning
from taskpool.wire.messages import Prune
from tests.store_rig import T0, end, insert, move, start

DEFAULT = Retention()
LATER = T0 + round(8 * DAY_S * 1e6)
MONTH = T0 + round(31 * DAY_S * 1e6)


@pytest.fixture(params=[False, True], ids=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "x.db", durability="process", memory=request.param)
    yield store
    store.close()


def prune(store: Store, now: int = LATER, retention: Retention = DEFAULT, rows: int = 250, **rule: object) -> list[int]:
    """Walk to the end; return what is gone, after what a dry walk had said of it."""
    wanted = Rule(retention, now, **rule)  # type: ignore[arg-type]
    dry = store.prunable(wanted)
    walk = Walk(wanted)
    gone: list[int] = []
    while not walk.done:
        gone += store.prune(walk, rows)
    assert dict(walk.gone) == dry
    assert sum(dry.values()) == len(gone)
    assert store.counts_by_queue() == store.recount()
    return sorted(gone)


def succeed(store: Store, *ids: int, **spec: object) -> None:
    store.commit([save for task_id in ids for save in (insert(task_id, **spec), start(task_id), end(task_id))])  # type: ignore[arg-type]


def left(store: Store) -> list[int]:
    return sorted(store.match(Filter()))


def test_an_id_is_never_given_twice_though_the_newest_is_pruned(tmp_path: Path) -> None:
    """Also by the next owner, and when nothing at all is left."""
    path = tmp_path / "x.db"
    store = Store.open(path)
    succeed(store, 1, 2, 3)
    assert prune(store) == [1, 2, 3]
    assert store.next_id() == 4
    store.close()
    following = Store.open(path)
    assert following.next_id() == 4
    following.close()


def test_what_ended_is_kept_for_its_time(store: Store) -> None:
    """Succeeded and cancelled 7 days, failed 30, interrupted for ever; what has not ended stays, however old it is."""
    succeed(store, 1)
    store.commit([insert(2), move(2, "queued", "cancelled")])
    store.commit([insert(3), start(3), end(3, "failed")])
    store.commit([insert(4), start(4), end(4, "interrupted", charged=0)])
    store.commit([insert(5), insert(6, "pending", at=MONTH), insert(7), start(7), insert(8), start(8), end(8, "retrying")])
    assert prune(store, T0 + round(6.9 * DAY_S * 1e6)) == []
    assert prune(store) == [1, 2]
    assert prune(store, MONTH) == [3]
    assert prune(store, MONTH * 2) == []
    assert left(store) == [4, 5, 6, 7, 8]
    assert store.pruned() == {"cancelled": 1, "failed": 1, "succeeded": 1}


def test_all_that_belongs_to_a_task_goes_with_it(store: Store) -> None:
    """Attempts, payload, checkpoint, progress: no row of any table speaks of it."""
    succeed(store, 1, 2, payload=b"x" * 5_000)
    store.commit([insert(3), start(3), Checkpoint(3, 1, b"half")])
    store.commit([end(3, "failed")])
    assert prune(store, MONTH) == [1, 2, 3]
    for table in ("task", "attempt", "payload", "checkpoint", "progress", "retain"):
        assert store._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
    assert store.attempts(1) == []


def test_a_task_says_itself_how_long_it_is_kept(store: Store) -> None:
    """Shorter or longer than others, or for ever; an update may say it anew, or take it back."""
    for task_id, seconds in ((1, 60.0), (2, math.inf), (3, 20 * DAY_S), (4, None), (5, 60.0)):
        store.commit([insert(task_id, options=Options(retention_s=seconds))])
    store.commit([move(4, "queued", "queued", options=encode(Options(retention_s=60.0)))])
    store.commit([move(5, "queued", "queued", options=encode(Options(label="no word of it")))])
    for task_id in range(1, 6):
        version = 3 if task_id > 3 else 2
        store.commit([start(task_id, version - 1), end(task_id, version=version)])
    minute = T0 + 61_000_000
    assert prune(store, minute, least_s=120.0) == []
    assert prune(store, minute) == [1, 4]
    assert prune(store) == [5]
    assert prune(store, MONTH) == [3]
    assert prune(store, MONTH * 2) == []


def test_only_the_statuses_that_are_meant(store: Store) -> None:
    """Also of tasks with a period of their own."""
    succeed(store, 1)
    succeed(store, 2, options=Options(retention_s=1.0))
    store.commit([insert(3), move(3, "queued", "cancelled")])
    everything = Retention(0.0, 0.0, 0.0, 0.0)
    assert prune(store, LATER, everything, statuses=("cancelled",)) == [3]
    assert prune(store, LATER, everything, statuses=("succeeded",)) == [1, 2]


def step(task_id: int, *parents: int, flow: int | None = None, **spec: object) -> object:
    opens = FlowSpec("flow") if flow == task_id else None
    place = Place(str(task_id), [(parent, 0, True) for parent in parents], T0, flow, opens)
    saved = insert(task_id, "pending" if parents else "queued", **spec)  # type: ignore[arg-type]
    saved.place = place
    return saved


def finish(store: Store, task_id: int, to: str = "succeeded") -> None:
    if store.is_held(task_id):
        store.commit([move(task_id, "pending", "queued", held=False)])
        store.commit([start(task_id, 2), end(task_id, to, version=3)])
    else:
        store.commit([start(task_id), end(task_id, to)])


def test_parents_stay_while_a_child_is_stored(store: Store) -> None:
    """Its arguments are their results, also in a retry; then the whole chain goes in one walk, however long it is."""
    store.commit([insert(1)])
    store.commit([step(task_id, task_id - 1) for task_id in range(2, 6)])  # type: ignore[misc]
    for task_id in range(1, 5):
        finish(store, task_id)
    assert prune(store) == []  # 5 waits
    finish(store, 5, "failed")
    assert prune(store) == []  # and could be retried
    assert prune(store, MONTH, rows=2) == [1, 2, 3, 4, 5]
    assert store._db.execute("SELECT COUNT(*) FROM edge").fetchone() == (0,)
    assert store._db.execute("SELECT COUNT(*) FROM step").fetchone() == (0,)


def test_a_flow_goes_as_a_whole(store: Store) -> None:
    """While one step is kept all are; then the flow itself is gone too."""
    store.commit([step(1, flow=1), step(2, 1, flow=1), step(3, flow=1)])  # type: ignore[list-item]
    for task_id in (1, 2):
        finish(store, task_id)
    finish(store, 3, "failed")
    assert prune(store) == []
    assert [flow.counts for flow in store.flows()] == [{"succeeded": 2, "failed": 1}]
    assert prune(store, MONTH) == [1, 2, 3]
    assert store.flows() == []


def test_a_batch_goes_as_a_whole(store: Store) -> None:
    """Whoever takes it up again finds all its results while one item is not over."""
    for item in range(4):
        store.commit([insert(item + 1, batch="b", item=item)])
    for task_id in (1, 2, 3):
        store.commit([start(task_id), end(task_id)])
    succeed(store, 9, batch="c", item=0)
    assert prune(store) == [9]
    store.commit([start(4), end(4)])
    assert prune(store, rows=1) == [1, 2, 3, 4]


def test_a_batch_longer_than_a_page_is_looked_through_in_parts(store: Store) -> None:
    """No step reads more than a few pages; the last item counts."""
    many = 2 * PAGE + 10
    store.commit([save for n in range(1, many) for save in (insert(n, batch="b", item=n), start(n), end(n))])
    store.commit([insert(many, batch="b", item=many)])
    assert prune(store) == []
    store.commit([start(many), end(many)])
    walk = Walk(Rule(DEFAULT, LATER))
    sizes = []
    while not walk.done:
        sizes.append(len(store.prune(walk, 100)))
    assert sum(sizes) == many
    assert max(sizes) == 100
    assert 0 in sizes  # while it was looked through


def test_responses_in_mailboxes_stay(store: Store) -> None:
    """They are copies, whole without their task."""
    store.commit([insert(1, options=Options(reply_to="box")), start(1), end(1, reply_to="box")])
    assert prune(store) == [1]
    (reply,) = store.replies("box")
    assert (reply.task_id, reply.value) == (1, b"result")


def test_the_log_of_transitions_keeps_what_it_says(store: Store) -> None:
    """Its time is its own; the names of pruned tasks are gone."""
    from taskpool.store.eventlog import START, walk

    succeed(store, 1)
    before = [(event.id, event.status) for event in walk(store, START)]
    prune(store)
    assert [(event.id, event.status, event.name) for event in walk(store, START)] == [(*one, "") for one in before]


def test_old_occurrences_go_and_the_latest_stays(store: Store) -> None:
    """Else it would fire a second time: that it occurred is known by its row."""
    schedule = Schedule(name="nightly", spec="@every 60s", handler="jobs:price")
    plans = [Keep(schedule), *(Occur(Occurrence("nightly", T0 + n, "skipped", "missed", None, T0 + n)) for n in range(5))]
    store.commit([], plans=plans)  # type: ignore[arg-type]
    assert prune(store, MONTH, schedules=False) == []
    assert len(store.occurrences("nightly")) == 5
    prune(store, MONTH, schedules=True)
    assert [one.planned_at for one in store.occurrences("nightly")] == [T0 + 4]
    assert [row.last_at for row in store.schedule_rows()] == [T0 + 4]


@pytest.mark.parametrize("fired", [0, 1])
def test_schedules_that_have_nothing_to_delete_are_passed_over(store: Store, fired: int) -> None:
    """However many there are: thousands that rest must not make a round of many steps."""
    plans: list[object] = []
    for number in range(300):
        name = f"resting-{number:03}"
        plans.append(Keep(Schedule(name=name, spec="@every 60s", handler="jobs:price")))
        plans += [Occur(Occurrence(name, T0, "skipped", "missed", None, T0)) for _ in range(fired)]
    for number in range(SCHEDULES + 1):
        name = f"worn-{number:03}"
        plans.append(Keep(Schedule(name=name, spec="@every 60s", handler="jobs:price")))
        plans += [Occur(Occurrence(name, T0 + n, "skipped", "missed", None, T0 + n)) for n in range(3)]
    store.commit([], plans=plans)  # type: ignore[arg-type]
    walk, found = Walk(Rule(DEFAULT, MONTH, schedules=True)), []
    while not walk.done:
        store.prune(walk)
        found.append(len(walk.schedules))
    assert [count for count in found if count] == [SCHEDULES, 1]
    assert len(found) - found.index(SCHEDULES) == 2, "two steps for all of them, after those through the tasks"
    assert [len(store.occurrences(name)) for name in ("resting-000", "resting-299", "worn-000", f"worn-{SCHEDULES:03}")] == [
        fired, fired, 1, 1,
    ]  # fmt: skip


def test_a_reader_counts_what_could_go(tmp_path: Path) -> None:
    """Without an owner, and nothing is changed."""
    store = Store.open(tmp_path / "x.db")
    succeed(store, *range(1, 6))
    store.close()
    with Reader(tmp_path / "x.db") as reader:
        assert reader.prunable(Rule(DEFAULT, LATER)) == {"succeeded": 5}
        assert reader.counts() == {"succeeded": 5}


# ---- when ------------------------------------------------------------------------------------------------------------------


class Rows:
    """A store of which a walk takes some steps, each some time."""

    def __init__(self, steps: int, took: int = 1_000_000) -> None:
        self.steps = steps
        self.took = took
        self.now = 0
        self.sizes: list[int] = []
        self.walks: list[Walk] = []
        self.error: Exception | None = None

    def prune(self, walk: Walk, rows: int = 250) -> list[int]:
        if self.error is not None:
            raise self.error
        self.walks.append(walk)
        self.sizes.append(rows)
        self.now += self.took
        walk.done = len(self.sizes) % self.steps == 0
        walk.gone["succeeded"] += 1
        return [1]


def work(pruning: Pruning, rows: Rows, *, idle: bool = True) -> None:
    pruning.work(Instant(LATER, rows.now), lambda: rows.now, idle=idle)


def test_a_round_rests_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins some time after the start; between slices there is time for others, the more the more they do."""
    rows = Rows(3)
    one = Pruning(rows, DEFAULT, 0)
    work(one, rows)
    assert not rows.sizes
    rows.now = pruning.FIRST_NS
    work(one, rows, idle=False)
    assert one.next_look(rows.now) == pytest.approx(0.001 * pruning.BUSY_TIMES)
    work(one, rows)
    assert rows.sizes == [pruning.BUSY_ROWS]
    for _ in range(2):
        rows.now += pruning.BUSY_TIMES * 1_000_000
        work(one, rows)
    assert len(rows.sizes) == 3
    assert len(set(map(id, rows.walks))) == 1
    assert one.next_look(rows.now) == pytest.approx(pruning.REST_NS / NS)


def test_what_is_asked_for_comes_first_and_is_answered() -> None:
    """By who asked, under the number of the request, with what was deleted for it."""
    rows = Rows(2)
    one = Pruning(rows, DEFAULT, 0)
    answers: list[tuple[int, int, dict[str, int]]] = []
    one.answer = lambda client, seq, gone: answers.append((client, seq, dict(gone)))
    one.ask(7, Prune(3, ["succeeded"], Retention(1.0)))
    one.ask(8, Prune(4, list(ENDED), dry_run=True))
    for _ in range(4):
        work(one, rows)
        rows.now += round(one.next_look(rows.now) * NS)
    assert answers == [(7, 3, {"succeeded": 2}), (8, 4, {"succeeded": 2})]
    assert rows.walks[0].rule == Rule(Retention(1.0), LATER, ("succeeded",))
    assert rows.walks[-1].is_dry
    assert rows.walks[-1].rule.retention == DEFAULT


def test_a_store_that_takes_no_writes_is_tried_again() -> None:
    """The same step once more, a moment later."""
    rows = Rows(1)
    one = Pruning(rows, DEFAULT, -pruning.FIRST_NS)
    rows.error = StoreBusy("a guest writes")
    work(one, rows)
    assert one.next_look(rows.now) == pytest.approx(pruning.AGAIN_NS / NS)
    rows.error = None
    rows.now += pruning.AGAIN_NS
    work(one, rows)
    assert len(rows.sizes) == 1


def test_a_step_that_failed_is_taken_again(tmp_path: Path) -> None:
    """Nothing of it was deleted, and nothing is passed over."""
    store = Store.open(tmp_path / "x.db", memory=True)
    succeed(store, *range(1, 11))
    walk = Walk(Rule(DEFAULT, LATER))
    assert store.prune(walk) == []  # none has a period of its own
    found = walk.find(store._db, 4)
    walk.repeat()
    assert store.prune(walk, 4) == found
    store.close()


# ---- what may be said ------------------------------------------------------------------------------------------------------


def test_what_a_retention_may_be() -> None:
    """A period for all but the interrupted, or one by status; seconds, timedeltas, for ever."""
    assert retention_of(None) == Retention(7 * DAY_S, 7 * DAY_S, 30 * DAY_S, math.inf)
    assert retention_of(60) == Retention(60.0, 60.0, 60.0)
    assert retention_of({"failed": timedelta(hours=1), "interrupted": 5}) == Retention(failed=3600.0, interrupted=5.0)
    assert retention_of("forever") == Retention(math.inf, math.inf, math.inf)
    for wrong in (-1, "a week", True, math.nan, 1e12, {"running": 5}, {"failed": None}, [1]):
        with pytest.raises(InvalidSettings, match="retention"):
            config.settings("/tmp/x.db", retention=wrong)  # type: ignore[arg-type]


def test_what_a_task_may_say() -> None:
    """Checked where it is said."""
    assert NOTHING_SAID.plus({"retention": timedelta(minutes=2)}).options.retention_s == 120.0
    assert NOTHING_SAID.plus({"retention": "forever"}).options.retention_s == math.inf
    assert NOTHING_SAID.plus({"retention": None}).packed() == (b"", 0)
    with pytest.raises(InvalidTask, match="retention"):
        NOTHING_SAID.plus({"retention": "soon"})
