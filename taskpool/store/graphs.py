"""Graphs in the store: the counts of edges change in the transaction that changes a parent, whatever it is that changes it.

What an edge asks for and when it is broken is decided in `core.graph`; the statements here say the same of many rows at once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.core.events import DueStep, TaskRow
from taskpool.core.graph import ON_FAILED, ON_SUCCESS, counted, is_broken
from taskpool.core.lifecycle import CANCELLED, FAILED, INTERRUPTED, PENDING, SUCCEEDED, TERMINAL
from taskpool.model import FlowState, Status
from taskpool.store.conditions import Refused
from taskpool.store.records import ROW, task_row
from taskpool.store.stages import Stage
from taskpool.store.wanted import TASKS, WANTED, numbers
from taskpool.store.wide import insert as insert_wide
from taskpool.wire.jobs import Input

DUE_MAX: Final = 10_000  # steps that are told of at once
NONE_ENDED: Final[Mapping[int, int]] = {}
NOBODY: Final = (0, "", "", False)

Culprit = tuple[
    int, str, str, bool
]  # id, name, status of the task for which another is cancelled; whether by the end of their flow

_LIVE: Final = "(task.status = 'running' OR task.status = 'queued' OR task.status = 'pending' OR task.status = 'retrying')"
_STEP: Final = "INSERT INTO step(task_id, flow_id, label, parents, open, broken, held, due_at) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
_EDGE: Final = "INSERT INTO edge(parent, child, condition) VALUES(?, ?, ?)"
_ENDED: Final = (  # an edge is broken if its condition is the second parameter
    "UPDATE step SET open = step.open - found.n, broken = step.broken + found.broken FROM (SELECT edge.child AS child, "
    "COUNT(*) AS n, SUM(edge.condition = ?) AS broken FROM json_each(?) AS wanted CROSS JOIN edge ON edge.parent = wanted.value "
    "GROUP BY edge.child) AS found WHERE step.task_id = found.child"
)
_FREE: Final = "UPDATE step SET held = 0 WHERE held AND task_id IN (SELECT value FROM json_each(?))"
# After the counts: whoever goes on has no parent left that lives, and none that ended otherwise than it needs. (In this order none
# of them goes through the index of what is due.)
_NOT_FREE: Final = f"SELECT 1 {WANTED} step ON step.task_id = wanted.value WHERE step.open > 0 OR step.broken > 0 LIMIT 1"
_FORESEEN: Final = (  # those of whom these parents, when they have succeeded, are the last that live
    f"SELECT {ROW}, step.due_at, instr(step.parents, 'true') FROM (SELECT edge.child AS child, COUNT(*) AS n, "
    f"MAX(edge.condition) AS condition {WANTED} edge ON edge.parent = wanted.value GROUP BY edge.child) AS found "
    "CROSS JOIN step ON step.task_id = found.child CROSS JOIN task ON task.id = found.child "
    f"WHERE step.open = found.n AND step.held AND step.broken = 0 AND found.condition < {ON_FAILED} ORDER BY task.id LIMIT ?"
)
_PARENTS: Final = (
    "SELECT wanted.value, json_extract(one.value, '$[1]'), task.id, task.name, task.status, json_extract(one.value, '$[2]') "
    f"{WANTED} step ON step.task_id = wanted.value CROSS JOIN json_each(step.parents) AS one "
    "CROSS JOIN task ON task.id = json_extract(one.value, '$[0]')"
)


class GraphWriter:
    """Writes what a stage means for graphs. are_there: some task depends on others, or is part of a flow."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._swept: set[int] = set()  # flows that have ended with their first failure: nothing of them is left to cancel
        self.are_there = bool(db.execute("SELECT 1 FROM step LIMIT 1").fetchall())

    def is_concerned(self, stage: Stage) -> bool:
        """Return whether there is anything to write for a stage."""
        return self.are_there or bool(stage.places)

    def write(self, stage: Stage) -> int:
        """Write it, after the tasks' rows; return how many rows that were."""
        db = self._db
        if self._swept:
            db.execute("UPDATE flow SET swept = 1 WHERE id IN (SELECT value FROM json_each(?))", (numbers(self._swept),))
            self._swept.clear()
        ended, renewed = _told(stage)
        if stage.freed and db.execute(_FREE, (numbers(stage.freed),)).rowcount != len(stage.freed):
            raise Refused
        well = ended.pop(SUCCEEDED, [])
        badly = [task_id for ids in ended.values() for task_id in ids]
        rows = 0
        for ids, wrong in ((well, ON_FAILED), (badly, ON_SUCCESS)):
            if ids:
                rows += db.execute(_ENDED, (wrong, numbers(ids))).rowcount
        if stage.freed and db.execute(_NOT_FREE, (numbers(stage.freed),)).fetchone() is not None:
            raise Refused
        waited = [
            task_id for (before, after), ids in stage.changes.items() if before == PENDING and after in TERMINAL for task_id in ids
        ]
        if waited:
            db.execute("UPDATE step SET held = 0 WHERE held AND task_id IN (SELECT value FROM json_each(?))", (numbers(waited),))
        if stage.places:
            self.are_there = True
            rows += self._insert(stage)
        if renewed:
            self._recount(
                child
                for (child,) in db.execute(f"SELECT edge.child {WANTED} edge ON edge.parent = wanted.value", (numbers(renewed),))
            )
            db.execute(
                f"UPDATE flow SET fallen = NULL, swept = 0 WHERE id IN (SELECT step.flow_id {WANTED} step "
                "ON step.task_id = wanted.value)",
                (numbers(renewed),),
            )
        if ended.get(FAILED):
            db.execute(
                f"UPDATE flow SET fallen = found.id FROM (SELECT step.flow_id AS flow_id, MIN(step.task_id) AS id {WANTED} step "
                "ON step.task_id = wanted.value WHERE step.flow_id IS NOT NULL GROUP BY step.flow_id) AS found "
                "WHERE flow.id = found.flow_id AND flow.fail_fast AND flow.fallen IS NULL",
                (numbers(ended[FAILED]),),
            )
        if stage.held:
            db.execute("UPDATE step SET held = 1 WHERE task_id IN (SELECT value FROM json_each(?))", (numbers(stage.held),))
        return rows

    def _insert(self, stage: Stage) -> int:
        """Insert the steps of a stage, with what is so far known of their parents."""
        steps, edges, flows = [], [], []
        live = {insert.id for insert in stage.places}.difference(*(ids for (_, to), ids in stage.changes.items() if to in TERMINAL))
        unsure = []
        for insert in stage.places:
            place = insert.place
            assert place is not None
            parents = place.parents
            if parents and not all(parent in live for parent, _, _ in parents):
                unsure.append(insert.id)
            held = bool(parents) and insert.id in live
            packed = msgspec.json.encode(parents).decode() if parents else "[]"
            steps.append((insert.id, place.flow_id, place.label, packed, len(parents), 0, held, place.due_at))
            edges += [(parent, insert.id, condition) for parent, condition, _ in parents]
            if place.opens is not None:
                flows.append((insert.id, place.opens.name, insert.created_at, place.opens.fail_fast))
        insert_wide(self._db, _STEP, steps)
        insert_wide(self._db, _EDGE, sorted(edges))
        self._db.executemany("INSERT INTO flow VALUES(?, ?, ?, ?, NULL, 0)", flows)
        if unsure:
            self._recount(unsure)
        return len(steps) + len(edges)

    # ---- what follows from it ---------------------------------------------------------------------------------------

    def due(self, rows: Callable[[Sequence[int]], list[TaskRow]]) -> list[DueStep]:
        """Return steps that need not wait any longer, up to DUE_MAX: those that may start, and those that never can."""
        found = self._db.execute(
            "SELECT task_id, broken, due_at FROM step INDEXED BY step_due WHERE held AND (open = 0 OR broken > 0) LIMIT ?",
            (DUE_MAX,),
        ).fetchall()
        culprits: dict[int, Culprit] = {}
        broken = [task_id for task_id, n, _ in found if n]
        if broken:
            for child, condition, parent, name, status, _ in self._db.execute(_PARENTS, (numbers(broken),)):
                if is_broken(condition, status):
                    culprits.setdefault(child, (parent, name, status, False))
            _spread(self._db, culprits)
        self._sweep(culprits, rows)
        due_at = {task_id: at for task_id, _, at in found}
        if not (due_at or culprits):
            return []
        sizes = _sizes(self._db, [task_id for task_id in due_at if task_id not in culprits])
        return [
            DueStep(row, due_at.get(row.id, 0), *culprits.get(row.id, NOBODY), size=sizes.get(row.id, 0))
            for row in rows(sorted(due_at.keys() | culprits.keys()))
        ]

    def foreseen(self, ended: Mapping[int, int]) -> list[DueStep]:
        """Return the steps that may start once these tasks have succeeded. ended: with the bytes of their results."""
        found = self._db.execute(_FORESEEN, (numbers(ended), DUE_MAX)).fetchall()
        sizes = _sizes(self._db, [row[0] for row in found if row[-1]], ended)
        return [DueStep(task_row(row), row[-2], size=sizes.get(row[0], 0)) for row in found]

    def _sweep(self, culprits: dict[int, Culprit], rows: Callable[[Sequence[int]], list[TaskRow]]) -> None:
        """Add the live steps of flows that end with their first failure, and note the flows that have none left."""
        fallen = self._db.execute(
            "SELECT flow.id, task.id, task.name, task.status FROM flow INDEXED BY flow_fallen CROSS JOIN task "
            "ON task.id = flow.fallen WHERE flow.fallen IS NOT NULL AND NOT flow.swept"
        ).fetchall()
        for flow, *culprit in fallen:
            if flow in self._swept or len(culprits) >= DUE_MAX:
                continue
            live = self._db.execute(
                f"SELECT task.id FROM step CROSS JOIN task ON task.id = step.task_id WHERE step.flow_id = ? AND {_LIVE} LIMIT ?",
                (flow, DUE_MAX),
            ).fetchall()
            left = [row.id for row in rows([task_id for (task_id,) in live]) if row.cancel_requested_at is None]
            if not left:
                self._swept.add(flow)
            for task_id in left:
                culprits.setdefault(task_id, (culprit[0], culprit[1], culprit[2], True))

    # ---- counts -----------------------------------------------------------------------------------------------------

    def _recount(self, children: Iterable[int]) -> None:
        """Count the edges of these steps anew."""
        edges: dict[int, list[tuple[int, str]]] = {child: [] for child in children}
        for child, condition, _, _, status, _ in self._db.execute(_PARENTS, (numbers(edges),)):
            edges[child].append((condition, status))
        self._db.executemany(
            "UPDATE step SET open = ?, broken = ? WHERE task_id = ?", [(*counted(mine), child) for child, mine in edges.items()]
        )


def _told(stage: Stage) -> tuple[dict[str, list[int]], list[int]]:
    """Return the tasks of a stage that ended, by how, and those that were given a new round."""
    ended: dict[str, list[int]] = {}
    renewed: list[int] = []
    for (before, after), ids in stage.changes.items():
        if after in TERMINAL:
            ended.setdefault(after, []).extend(ids)
        elif before in TERMINAL:
            renewed += ids
    return ended, renewed


# ---- reading ----------------------------------------------------------------------------------------------------------


def _spread(db: sqlite3.Connection, culprits: dict[int, Culprit]) -> None:
    """Add what waits for the success of steps that will be cancelled now, and so on: a long chain is cancelled in one turn."""
    level = list(culprits)
    while level and len(culprits) < DUE_MAX:
        children = db.execute(
            f"SELECT edge.child, edge.parent, task.name {WANTED} edge ON edge.parent = wanted.value CROSS JOIN step "
            f"ON step.task_id = edge.child CROSS JOIN task ON task.id = edge.parent "
            f"WHERE edge.condition = {ON_SUCCESS} AND step.held",
            (numbers(level),),
        ).fetchall()
        fresh: dict[int, Culprit] = {
            child: (parent, name, CANCELLED, False) for child, parent, name in children if child not in culprits
        }
        culprits |= fresh
        level = list(fresh)


def _sizes(db: sqlite3.Connection, ids: Sequence[int], ended: Mapping[int, int] = NONE_ENDED) -> dict[int, int]:
    """Return the bytes of the results that tasks take as arguments, for those that take any. ended: of results not stored yet."""
    sizes: dict[int, int] = {}
    if ids:
        for child, parent, stored in db.execute(
            f"SELECT wanted.value, task.id, LENGTH(task.result) {WANTED} step ON step.task_id = wanted.value "
            "CROSS JOIN json_each(step.parents) AS one CROSS JOIN task ON task.id = json_extract(one.value, '$[0]') "
            "WHERE instr(step.parents, 'true') AND json_extract(one.value, '$[2]')",  # most take none
            (numbers(ids),),
        ):
            sizes[child] = sizes.get(child, 0) + (ended.get(parent, 0) if stored is None else stored)
    return sizes


def parents(db: sqlite3.Connection, task_id: int) -> list[tuple[int, str, str]]:
    """Return the parents of a task: id, name, status."""
    return [(parent, name, status) for _, _, parent, name, status, _ in db.execute(_PARENTS, (numbers([task_id]),))]


def inputs(db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, list[Input]]:
    """Return what those tasks take that have arguments from others. A result is read once, however many take it."""
    wanted: dict[int, list[int]] = {}
    for child, _, parent, _, _, is_argument in db.execute(_PARENTS, (numbers(ids),)):
        if is_argument:
            wanted.setdefault(child, []).append(parent)
    results = {
        row[0]: Input(*row)
        for row in db.execute(
            f"SELECT task.id, name, status, COALESCE(result_codec, 1), result {TASKS}",
            (numbers({parent for mine in wanted.values() for parent in mine}),),
        )
    }
    return {child: [results[parent] for parent in mine] for child, mine in wanted.items()}


def flows(db: sqlite3.Connection, limit: int, before: int | None, flow_id: int | None) -> list[FlowState]:
    """Return flows, newest first, with ids below `before`; or the one of that id."""
    one = "AND id = :id" if flow_id is not None else ""
    found = db.execute(
        f"SELECT id, name, created_at, fail_fast, fallen FROM flow WHERE id < :before {one} ORDER BY id DESC LIMIT :limit",
        {"id": flow_id, "before": (1 << 63) - 1 if before is None else before, "limit": limit},
    ).fetchall()
    counts: dict[int, Counter[str]] = {row[0]: Counter() for row in found}
    reasons: set[int] = set()
    for flow, status, upstream, n in db.execute(
        f"SELECT step.flow_id, task.status, step.broken > 0, COUNT(*) {WANTED} step ON step.flow_id = wanted.value "
        "CROSS JOIN task ON task.id = step.task_id GROUP BY 1, 2, 3",
        (numbers(counts),),
    ):
        counts[flow][status] += n
        if status == CANCELLED and not upstream:
            reasons.add(flow)
    return [
        FlowState(row[0], row[1], row[2], _status(counts[row[0]], row[0] in reasons), dict(counts[row[0]]), bool(row[3]), row[4])
        for row in found
    ]


def _status(counts: Counter[str], was_cancelled: bool) -> Status:
    if any(n and not Status(status).is_terminal for status, n in counts.items()):
        return Status.RUNNING
    if counts[FAILED] or counts[INTERRUPTED]:
        return Status.FAILED
    return Status.CANCELLED if was_cancelled else Status.SUCCEEDED


def edges(db: sqlite3.Connection, flow_id: int) -> list[tuple[int, int, int]]:
    """Return the edges of a flow's steps: (child, parent, condition), by child."""
    found: list[Any] = db.execute("SELECT task_id, parents FROM step WHERE flow_id = ? ORDER BY task_id", (flow_id,)).fetchall()
    return [(child, parent, condition) for child, packed in found for parent, condition, _ in msgspec.json.decode(packed)]
