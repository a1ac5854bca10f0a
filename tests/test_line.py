"""A line hands out the smallest key that memory holds, whatever order the keys came in, and never one beyond its mark."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskpool.core.line import Key, Line

keys = st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 9), st.integers(0, 99)), unique=True)


def drained(line: Line) -> list[Key]:
    found = []
    while (key := line.pop()) is not None:
        found.append(key)
    return found


@given(keys, st.integers(0, 20))
def test_keys_leave_in_order_however_they_came(given_keys: list[Key], taken: int) -> None:
    line = Line()
    for key in given_keys[:taken]:
        assert line.offer(key)
    first = line.first()
    assert first == min(given_keys[:taken], default=None)
    if first is not None:
        assert line.pop() == first
        line.put_back(first)
    for key in given_keys[taken:]:
        assert line.offer(key)
    assert len(line) == len(list(line)) == len(given_keys)
    assert drained(line) == sorted(given_keys)
    assert line.first() is None


@given(keys, st.integers(4, 12))
def test_what_is_shed_stands_behind_all_that_stays(given_keys: list[Key], cap: int) -> None:
    line = Line(cap=cap)
    for key in given_keys:
        line.offer(key)
    gone = line.shed()
    kept = sorted(line)
    assert sorted(kept + gone) == sorted(given_keys)
    if len(given_keys) <= cap:
        assert gone == []
        assert line.mark is None
    else:
        assert line.mark == kept[-1] < min(gone)
        assert len(kept) == cap - cap // 4
        assert not line.offer(min(gone))
        assert drained(line) == kept


def test_a_line_asks_for_more_below_half_and_knows_when_all_is_here() -> None:
    line = Line(cap=8, stored=True)
    assert not line.offer((0, 0, 1))  # the store may hold others before it
    assert line.wants_refill()
    line.refilling = True
    assert not line.wants_refill()
    line.refilled([(0, 0, 1)], end=(0, 0, 2))  # the second is here already, beside the line
    assert line.mark == (0, 0, 2)
    assert line.offer((-1, 5, 3))
    assert not line.offer((0, 0, 3))
    line.refilled([(0, 0, 3)], end=None)
    assert line.mark is None
    assert drained(line) == [(-1, 5, 3), (0, 0, 1), (0, 0, 3)]


@given(
    st.lists(st.tuples(st.sampled_from(["store", "take", "shed", "refill"]), st.integers(-1, 1), st.integers(0, 4)), max_size=80)
)
def test_a_short_line_over_a_long_store_loses_nothing_and_keeps_the_order(steps: list[tuple[str, int, int]]) -> None:
    """Whatever comes, leaves and is read in between: the next of the line is the next of all, and all of them come."""
    line, stored = Line(cap=4, stored=True), set[Key]()

    def refill() -> None:
        assert line.mark is not None
        behind = sorted(key for key in stored if key > line.mark)
        line.refilled(behind[:2], end=behind[1] if len(behind) > 2 else None)

    def take() -> None:
        key = line.pop()
        if key is not None:
            assert key == min(stored)
            stored.remove(key)

    for number, (step, rank, at) in enumerate(steps):
        if step == "store":
            stored.add((rank, at, number))
            line.offer((rank, at, number))
        elif step == "take":
            take()
        elif step == "shed":
            line.shed()
        elif line.wants_refill():
            refill()
        assert {key for key in stored if line.mark is None or key <= line.mark} == set(line)
    line.shed()
    while stored:
        if line.wants_refill():
            refill()
        take()
    assert line.pop() is None


def test_what_is_discarded_does_not_come() -> None:
    line = Line()
    for key in [(0, 1, 1), (0, 3, 3), (0, 2, 2), (0, 0, 4)]:
        line.offer(key)
    for key in [(0, 2, 2), (0, 3, 3), (9, 9, 9)]:
        line.discard(key)
    assert [line.pop(), line.pop(), line.pop()] == [(0, 0, 4), (0, 1, 1), None]
