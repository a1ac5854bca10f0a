"""A task whose unique key a new one takes, in a turn that says more of it: what is left if the new one is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from taskpool.core.commands import Extras
from taskpool.core.unique import without
from taskpool.model import Options
from taskpool.store.store import Store
from tests.store_rig import end, insert, move, rows, start

ONE = Options(on_conflict="replace")


def test_the_end_of_its_attempt_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(Store.open(path, durability="process")) as store:
        assert not store.commit([insert(1, unique="u", options=ONE), insert(2)])
        assert not store.commit([start(1)])
        returned = end(1, "queued", charged=0)
        replaced = move(1, "queued", "cancelled", 3, extras=Extras(finish_reason="replaced"))
        again = insert(3, uid=2, unique="u", options=ONE)  # of a submit that is stored: refused
        assert store.commit([returned, replaced, again], together=[[3, 1]]) == [1, 3]
    assert rows(path, "SELECT id, version, status FROM task ORDER BY id") == [(1, 3, "queued"), (2, 1, "queued")]
    assert rows(path, "SELECT attempt, outcome FROM attempt") == [(1, "queued")]


def test_what_a_refusal_leaves_of_a_turn() -> None:
    replaced = move(1, "queued", "cancelled", 3, extras=Extras(finish_reason="replaced"))
    returned, new, later, other = end(1, "queued"), insert(3), move(3, "queued", "cancelled"), end(4)
    turn = [returned, replaced, new, later, other]
    assert without(turn, {1, 3}) == [returned, other]
    assert without(turn, {4}) == [returned, replaced, new, later]
    assert without([insert(1), replaced, new], {1, 3}) == [], "one that is new itself"
