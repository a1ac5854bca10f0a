"""The rows of a turn: stages into statements, and the tally that changes with them. Runs inside a transaction of the store's."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.core.commands import Advance, End, Forget, Insert, Keep, Occur, Plan, Save, Spent, Taken
from taskpool.core.effects import Key
from taskpool.core.lifecycle import RUNNING, TERMINAL
from taskpool.core.unique import without
from taskpool.errors import InternalError
from taskpool.model import encode
from taskpool.store import eventlog, queue_rows, stages
from taskpool.store.conditions import Refused
from taskpool.store.graphs import GraphWriter
from taskpool.store.stages import Grouping, Stage
from taskpool.store.wanted import numbers
from taskpool.store.wide import insert

_QUEUES_OF: Final = "SELECT task.id, task.queue FROM json_each(?) AS wanted CROSS JOIN task ON task.id = wanted.value"
MANY_COUNTS: Final = 8  # queues whose counts change alike, from which on one execution is cheaper (µs each: 1.3, so 0.5)
KNOWN_MAX: Final = 50_000  # tasks whose queues are remembered
_TALLY_MANY: Final = (
    "INSERT INTO tally(n, queue, status) SELECT ?, value, ? FROM json_each(?) WHERE true "
    "ON CONFLICT(queue, status) DO UPDATE SET n = n + excluded.n"
)
_TALLY: Final = "INSERT INTO tally(n, queue, status) VALUES(MAX(?, 0), ?, ?) ON CONFLICT(queue, status) DO UPDATE SET n = n + ?"


class Writer:
    """Writes stages over one connection. rows: how many it has written, the store's measure of work for the log."""

    def __init__(self, db: sqlite3.Connection, epoch: int) -> None:
        """Read which queues and checkpoints there are."""
        self._db = db
        self._epoch = epoch
        self.rows = 0
        self.written: list[Stage] = []  # of the turn that is being written, for the log of transitions
        self.graphs = GraphWriter(db)
        # All queues that any task has: while there is one, nobody need ask whose queue a task is in.
        self._queues = queue_rows.names(db)
        self._queue_of: dict[int, str] = {}  # of some tasks, while there are several queues: it never changes
        # Tasks that may have a row in checkpoint, so that ends of all others need not look.
        self._saved = {task_id for (task_id,) in db.execute("SELECT task_id FROM checkpoint")}

    def group(self, saves: Sequence[Save]) -> list[Stage]:
        """Return the stages of a turn; IllegalTransition."""
        grouping = Grouping(self._epoch, self._saved)
        grouped = grouping.group(saves)
        self._saved |= grouping.saving
        return grouped

    def write(self, stage: Stage) -> None:
        """Write one stage; Refused or IntegrityError if a row was not as it was said to be: then roll back."""
        params = stage.params
        for statement in stages.INSERTS:
            rows = params.get(statement)
            if rows:
                self.rows += insert(self._db, statement, rows)
        for statement in stages.UPDATES:
            rows = params.get(statement)
            if rows:
                self._update(statement, rows)
        for statement in stages.OTHERS:
            rows = params.get(statement)
            if rows:
                self._db.executemany(statement, rows)
                self.rows += len(rows)
        self._count(stage)
        if self.graphs.is_concerned(stage):
            self.rows += self.graphs.write(stage)
        self.written.append(stage)

    def log(self, turn: int, at: int) -> bool:
        """Write what this turn changed into the log of transitions, and return whether that was anything."""
        data = eventlog.pack(self.written)
        self.written = []
        if data:
            self._db.execute(eventlog.WRITE, (turn, at, data))
        return bool(data)

    def write_plans(self, plans: Sequence[Plan]) -> None:
        """Write what became of schedules and arrivals, in order."""
        execute = self._db.execute
        for plan in plans:
            match plan:
                case Occur(occurrence=one):
                    row = (one.schedule, one.planned_at, one.outcome, one.reason, one.task_id, one.at)
                    if execute(stages.OCCUR, row).rowcount != 1:
                        raise InternalError(f"schedule {one.schedule} occurs a second time at {one.planned_at}")
                case Advance():
                    execute(stages.ADVANCE, (plan.next_at, plan.total, plan.err_count, plan.name))
                case Keep(schedule=kept):
                    counts = (kept.paused, kept.next_at, kept.total, kept.err_count)
                    execute(stages.KEEP, (kept.name, kept.spec, kept.tz, *counts, encode(kept)))
                case Spent(queue=queue, full_at=full_at):
                    execute(stages.SPENT, (full_at, queue))
                case Taken(seq=seq):
                    execute(stages.TAKE, (seq,))
                case Forget(name=name):
                    execute(stages.FORGET_OCCURRENCES, (name,))
                    execute(stages.FORGET_SCHEDULE, (name,))
        self.rows += len(plans)

    def replay(
        self, saves: Sequence[Save], banned: Collection[int] = (), apply: Callable[[Key], None] = lambda key: None
    ) -> list[int]:
        """Write a turn row by row, each in a savepoint, and return the tasks whose writes were refused.

        banned: those that are to be, too (see `unique.without`).
        apply: called before an attempt's end is written, for what belongs to it; it shares its savepoint.
        """
        self.written = []
        found: set[int] = set()
        for save in without(saves, banned) if banned else saves:
            if save.id in found:
                continue
            if type(save) is Insert and (save.of in found or save.of in banned):
                found.add(save.id)
                continue
            self._db.execute("SAVEPOINT one")
            try:
                if isinstance(save, End):
                    apply((save.id, save.closed.attempt))
                for stage in self.group([save]):
                    self.write(stage)
            except (Refused, sqlite3.IntegrityError):
                self._db.execute("ROLLBACK TO one")
                found.add(save.id)
            self._db.execute("RELEASE one")
        return [*found.union(banned)]

    def _update(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Update rows, each of which must be as it was said to be."""
        self.rows += len(rows)
        least = stages.ALIKE_MIN.get(statement)
        if least is not None and len(rows) >= least and _seem_alike(rows):
            rows = self._update_alike(statement, rows, least)
        if rows and self._db.executemany(statement, rows).rowcount != len(rows):
            raise Refused

    def _update_alike(self, statement: str, rows: list[tuple[Any, ...]], least: int) -> list[tuple[Any, ...]]:
        """Update the rows of which at least so many differ in nothing but the id; return the others."""
        ids_of: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            values = row[:-1]
            ids = ids_of.get(values)
            if ids is None:
                ids_of[values] = [row[-1]]
            else:
                ids.append(row[-1])
        others: list[tuple[Any, ...]] = []
        for values, ids in ids_of.items():
            if len(ids) < least:
                others += [(*values, task_id) for task_id in ids]
            elif self._db.execute(stages.for_many(statement), (*values, numbers(ids))).rowcount != len(ids):
                raise Refused
        return others

    # ---- the tally --------------------------------------------------------------------------------------------------

    def _count(self, stage: Stage) -> None:
        self._queues.update(stage.queues.values())
        deltas: dict[str, dict[str, int]] = {}  # status → queue → how many more
        several = len(self._queues) > 1
        queues = self._queues_of(stage) if several else {}
        for (before, after), ids in stage.changes.items():
            of = Counter(map(queues.__getitem__, ids)) if several else dict.fromkeys(self._queues, len(ids))
            _shift(deltas, after, of, 1)
            _shift(deltas, before, of, -1)
            if several and after in TERMINAL:
                for task_id in ids:
                    queues.pop(task_id, None)
        rows: list[tuple[int, str, str, int]] = []
        for status, counts in deltas.items():
            alike: dict[int, list[str]] = {}
            for queue, n in counts.items():
                alike.setdefault(n, []).append(queue)
            alike.pop(0, None)
            for n, names in alike.items():
                if len(names) >= MANY_COUNTS:
                    self._db.execute(_TALLY_MANY, (n, status, msgspec.json.encode(names).decode()))
                else:
                    rows += [(n, queue, status, n) for queue in names]
        if rows:
            self._db.executemany(_TALLY, rows)

    def _queues_of(self, stage: Stage) -> dict[int, str]:
        known = self._queue_of
        if len(known) > KNOWN_MAX:
            known.clear()
        unknown = [one for (before, _), ids in stage.changes.items() if before for one in ids if one not in known]
        known |= stage.queues
        if unknown:
            known |= dict(self._db.execute(_QUEUES_OF, (numbers(unknown),)))
        return known


def _seem_alike(rows: list[tuple[Any, ...]]) -> bool:
    """Return whether it is worth a look. First starts go to one worker after the other, the rest to one at a time."""
    return rows[0][:-1] == rows[1][:-1] or rows[-1][:-1] == rows[-2][:-1]


def _shift(deltas: dict[str, dict[str, int]], status: str, of: Mapping[str, int], sign: int) -> None:
    """Note how many tasks of each queue come to a status, or leave it. What runs is not in the tally: its index counts it."""
    if not status or status == RUNNING:
        return
    known = deltas.get(status)
    if known is None:
        deltas[status] = {queue: sign * n for queue, n in of.items()}
    else:
        for queue, n in of.items():
            known[queue] = known.get(queue, 0) + sign * n
