"""The log of transitions in the store: what a turn writes, how it is read, what is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool.core.lifecycle import MOVES
from taskpool.errors import InvalidTask
from taskpool.store import eventlog
from taskpool.store.conditions import StoreIOError
from taskpool.store.eventlog import START, Place, TaskEvent, place_of, walk
from taskpool.store.reading import Reader
from taskpool.store.stages import Stage
from taskpool.store.store import Store
from tests.store_rig import end, insert, move, start

DAY = 86_400_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "x.db", durability="process")
    yield opened
    opened.close()


def short(store: Store, after: Place = START) -> list[tuple[int, str, str, int]]:
    """The log behind a place: (task, from, to, attempt)."""
    return [(event.id, event.before or "", event.status.value, event.attempt) for event in walk(store, after)]


def test_a_life_is_told_in_order(store: Store) -> None:
    store.commit([insert(1)], 100)
    store.commit([start(1)], 200)
    store.commit([end(1, "retrying", scheduled_at=5)], 300)
    store.commit([start(1, 3, "retrying", 2)], 400)
    store.commit([end(1, version=4, attempt=2, charged=2)], 500)
    assert short(store) == [
        (1, "", "queued", 0),
        (1, "queued", "running", 1),
        (1, "running", "retrying", 1),
        (1, "retrying", "running", 2),
        (1, "running", "succeeded", 2),
    ]
    events = list(walk(store, START))
    assert [event.at for event in events] == [100, 200, 300, 400, 500]
    assert {(event.name, event.queue) for event in events} == {("jobs:price", "default")}
    assert [event.seq for event in events] == sorted(event.seq for event in events)


def test_a_task_that_is_started_in_its_first_turn_moves_once(store: Store) -> None:
    store.commit([insert(1), start(1)], 100)
    assert short(store) == [(1, "", "running", 1)]


def test_what_happens_to_a_task_twice_in_a_turn_stands_in_its_order(store: Store) -> None:
    store.commit([insert(1), start(1), end(1), insert(2)], 100)
    assert [one for one in short(store) if one[0] == 1] == [(1, "", "running", 1), (1, "running", "succeeded", 1)]
    assert len({event.seq[0] for event in walk(store, START)}) == 1


def test_a_mark_is_no_transition(store: Store) -> None:
    store.commit([insert(1), start(1)], 100)
    before = store.logged
    store.commit([move(1, "running", "running", 2)], 200)
    assert (len(short(store)), store.logged) == (1, before)


def test_what_is_refused_is_not_in_the_log(store: Store) -> None:
    store.commit([insert(1)], 100)
    assert store.commit([insert(2, uid=1), start(1), insert(3)], 200) == [2]
    assert sorted(short(store, (store.logged - 1, 1 << 62))) == [(1, "queued", "running", 1), (3, "", "queued", 0)]
    assert store.commit([insert(4, uid=1)], 300) == [4]
    assert [one[0] for one in short(store)].count(4) == 0


def test_what_is_rolled_back_is_not_in_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("taskpool.faults.point", fail)
        with pytest.raises((OSError, StoreIOError)):
            store.commit([insert(1)], 100)
    assert (short(store), store.logged) == ([], 0)


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    last = 0
    for task_id in (1, 2):
        store = Store.open(path, durability="process")
        assert store.logged == last
        store.commit([insert(task_id)], 100 * task_id)
        last = store.logged
        store.close()
    with Reader(path) as reader:
        events = list(walk(reader, START))
    assert [event.id for event in events] == [1, 2]
    assert events[0].seq < events[1].seq


def test_reading_begins_behind_a_place_also_within_a_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "ROWS", 2)
    monkeypatch.setattr(eventlog, "NAMES", 3)
    for turn in range(5):
        store.commit([insert(turn * 10 + number) for number in range(1, 8)], turn)
    everything = list(walk(store, START))
    assert [event.id for event in everything] == [turn * 10 + number for turn in range(5) for number in range(1, 8)]
    for index, event in enumerate(everything):
        assert [one.seq for one in walk(store, event.seq)] == [one.seq for one in everything[index + 1 :]]
    turn_of = everything[7].seq[0]
    assert [event.id for event in walk(store, place_of(turn_of))][:1] == [21]
    assert store.logged_since(2) == everything[14].seq[0]
    assert store.logged_since(99) == store.logged + 1


def test_every_legal_move_can_be_told() -> None:
    for before, targets in MOVES.items():
        for after in targets:
            stage = Stage()
            stage.change(7, before, after)
            stage.attempts[7] = 3
            assert list(eventlog.unpack(eventlog.pack([stage]))) == [(7, before, after, 3)]


def test_only_what_is_too_old_is_dropped_slice_by_slice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.store.TRIM_ROWS", 3)
    monkeypatch.setattr("taskpool.store.store.TRIM_COMMITS", 1)
    for number in range(1, 9):
        store.commit([insert(number)], number)
    assert len(short(store)) == 8, "nothing is old yet"
    store.commit([insert(9)], 7 * DAY + 5)
    left = []
    for number in range(10, 14):
        store.tidy()
        left.append(short(store)[0][0])
        store.commit([insert(number)], 7 * DAY + 5)
    assert left == [4, 5, 5, 5], "three rows at a time, and those of the last seven days stay"


def test_a_clock_that_was_set_back_drops_nothing_early(store: Store) -> None:
    store.commit([insert(1)], 30 * DAY)
    store.commit([insert(2)], 1)
    store.tidy()
    store.commit([insert(3)], 30 * DAY)
    store._trim()
    assert [one[0] for one in short(store)] == [1, 2, 3], "the old row lies behind a young one: it waits for that"


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "-1", "1.-2", (1,), (1, "2"), 1.5, True, (1, 2, 3), -1, "9" * 30])
def test_what_is_no_place_is_refused(text: object) -> None:
    if text == (1,):
        assert place_of(text) == (1, 1 << 62)
        return
    with pytest.raises(InvalidTask, match="no place in the log"):
        place_of(text)


def test_a_place_is_said_as_text_too() -> None:
    assert place_of("12.3") == place_of((12, 3)) == (12, 3)
    assert eventlog.text_of((12, 3)) == "12.3"
    assert place_of(None) == START
    assert TaskEvent.__struct_fields__[0] == "seq"


def test_a_moment_is_found_by_halving(store: Store) -> None:
    """Whatever is asked for, no statement walks through the log."""
    places: list[tuple[int, int]] = []
    for number in range(1, 40):
        store.commit([insert(number)], number * 100)
        places.append((number * 100, store.logged))
        if number % 3 == 0:
            store.commit([move(number, "queued", "queued", 1)], number * 100)  # a turn that is not in the log
    store._db.execute("DELETE FROM event WHERE turn < ?", (places[4][1],))
    said: list[str] = []
    with Reader(store.path) as reader:
        reader._db.set_trace_callback(said.append)
        for at in (0, 500, 501, 1999, 2000, 3900):
            said.clear()
            assert reader.logged_since(at) == next(turn for told, turn in places[4:] if told >= at)
            assert len(said) <= 2 + len(places).bit_length()
        assert reader.logged_since(3901) == store.logged + 1
        reader.log_rows(places[-2][1], 10)
        reader._db.set_trace_callback(None)
        plans = [row[3] for one in said for row in reader._db.execute(f"EXPLAIN QUERY PLAN {one}")]
    assert any("USING INTEGER PRIMARY KEY" in plan for plan in plans)
    assert not [plan for plan in plans if plan.startswith("SCAN") and "CONSTANT ROW" not in plan]


def test_an_empty_log_has_what_is_to_come(store: Store) -> None:
    with Reader(store.path) as reader:
        assert reader.logged_since(1) == store.logged + 1
