"""What a worker may be sent: as much as it does in a few milliseconds, and never behind what it must not wait for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskpool.core.events import TaskRow
from taskpool.core.mailbox import LOAD_NS, MS, OVERHEAD_NS, PREFETCH_NS, STUCK_IDLE_NS, STUCK_NS, Durations, Mailbox
from taskpool.model import Options

PLAIN = Options()
ONCE = Options(at_most_once=True)
ANY_QUOTA = 1 << 30

durations = st.integers(0, 10**12)


def row(task_id: int = 1, options: Options = PLAIN) -> TaskRow:
    return TaskRow(task_id, "f", "q", 0, "queued", 1, 0, 0, 0, 0, options)


def filled(*expected: int | None) -> Mailbox:
    """Return a mailbox that holds tasks of these expected durations."""
    box = Mailbox(1)
    box.pid, box.active = 99, True
    for task_id, one in enumerate(expected, 1):
        box.push(row(task_id), one, 0)
    return box


# ---- durations ------------------------------------------------------------------------------------------------------


@given(st.lists(durations, min_size=1))
def test_the_mean_lies_within_what_was_measured(measured: list[int]) -> None:
    known = Durations()
    for one in measured:
        mean = known.observe("f", one)
        assert known.expected("f") == mean
        assert min(measured) <= mean <= max(measured) + OVERHEAD_NS


def test_a_much_longer_body_counts_at_once_and_shorter_ones_little_by_little() -> None:
    known = Durations()
    known.observe("f", MS)
    assert known.observe("f", 100 * MS) == 100 * MS + OVERHEAD_NS
    after = known.observe("f", MS)
    assert 50 * MS < after < 100 * MS
    assert known.expected("g") is None


# ---- room -----------------------------------------------------------------------------------------------------------


@given(st.none() | durations, st.booleans())
def test_an_empty_mailbox_takes_anything(expected: int | None, once: bool) -> None:
    assert filled().has_room(row(options=ONCE if once else PLAIN), expected, ANY_QUOTA)


@given(st.lists(st.none() | durations, min_size=1, max_size=5), st.none() | durations)
def test_nothing_stands_behind_the_unknown(held: list[int | None], expected: int | None) -> None:
    """A task whose duration nobody knows is sent alone, and nothing is put behind it."""
    box = filled(*held)
    if expected is None or None in held:
        assert not box.has_room(row(), expected, ANY_QUOTA)


@given(durations)
def test_an_at_most_once_task_never_shares_a_mailbox(expected: int) -> None:
    assert not filled(0).has_room(row(options=ONCE), expected, ANY_QUOTA)
    box = filled()
    box.push(row(options=ONCE), expected, 0)
    assert not box.has_room(row(2), 0, ANY_QUOTA)


@given(st.lists(st.integers(0, LOAD_NS), min_size=1, max_size=40), st.integers(0, 1000))
def test_a_mailbox_filled_by_its_own_word_holds_little_work(offered: list[int], quota: int) -> None:
    """However tasks come, no more than LOAD_NS of work stands in it, or one short task behind another."""
    box = filled()
    for task_id, expected in enumerate(offered, 1):
        if box.has_room(row(task_id), expected, quota):
            box.push(row(task_id), expected, 0)
    assert len(box.sent) == 1 or len(box.sent) <= quota
    assert len(box.sent) <= 2 or box.load_ns <= LOAD_NS
    assert box.load_ns <= max(LOAD_NS, 2 * PREFETCH_NS)


def test_one_task_may_wait_behind_another_that_is_not_long() -> None:
    assert filled(PREFETCH_NS).has_room(row(), PREFETCH_NS, 2)
    assert not filled(PREFETCH_NS).has_room(row(), PREFETCH_NS, 1)
    assert not filled(PREFETCH_NS + 1).has_room(row(), 0, 2)
    assert not filled(0).has_room(row(), PREFETCH_NS + 1, 2)
    assert not filled(5 * MS, 5 * MS).has_room(row(), 5 * MS, 3)


# ---- numbers and load -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.none() | durations), max_size=60))
def test_numbers_only_rise_and_an_empty_mailbox_has_no_load(steps: list[tuple[bool, int | None]]) -> None:
    """A number is never used twice, whatever is taken out; each task knows where it is; load never falls below nothing."""
    box = filled()
    seen: list[int] = []
    expected_of: dict[int, int | None] = {}
    for put, expected in steps:
        if put:
            one = row(len(seen) + 1)
            n = box.push(one, expected, 0)
            seen.append(n)
            expected_of[n] = expected
            assert (one.worker, one.n) == (box.worker, n)
            assert box.sent[n] is one
        elif box.sent:
            n, one = next(iter(box.sent.items()))
            box.remove(n, expected_of[n], 7)
            assert one.n == 0
            assert box.silent_since == 7
        assert box.load_ns >= 0
        assert box.sent or box.load_ns == 0
    assert seen == list(range(1, len(seen) + 1))
    assert list(box.sent) == sorted(box.sent)


def test_only_a_worker_that_takes_part_takes_work() -> None:
    assert filled().takes_work()
    for change in ("active", "taking_back", "leaving"):
        box = filled()
        setattr(box, change, not getattr(box, change))
        assert not box.takes_work(), change


# ---- patience -------------------------------------------------------------------------------------------------------


def test_nobody_is_stuck_who_has_nobody_behind_them() -> None:
    known = Durations()
    assert filled().patience(known, True) is None
    assert filled(MS).patience(known, True) is None
    for change in ("taking_back", "leaving"):
        box = filled(MS, MS)
        setattr(box, change, True)
        assert box.patience(known, True) is None, change


def test_patience_is_short_while_somebody_is_idle_and_grows_with_what_is_expected() -> None:
    known = Durations()
    box = filled(MS, MS)
    assert box.patience(known, True) == STUCK_IDLE_NS
    assert box.patience(known, False) == STUCK_NS
    known.observe("f", 100 * MS)
    expected = known.expected("f")
    assert expected is not None
    assert box.patience(known, False) == expected + expected // 2
    assert box.patience(known, True) == STUCK_IDLE_NS
