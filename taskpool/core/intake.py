"""New tasks: they get their ids, unless somebody has their unique key, and go to their lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from taskpool.clock import Instant
from taskpool.core import children, graph, settle, unique
from taskpool.core.commands import Accept, Command, Insert
from taskpool.core.events import Holder, Submitted, TaskRow
from taskpool.core.lifecycle import CANCELLED, PENDING, QUEUED
from taskpool.core.table import Table
from taskpool.model import FlowSpec, Options, TaskError, TaskSpec


class Intake:
    """Takes them in. next_id: the first that no task has had; claims: who took which unique key in this turn."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.claims = unique.Claims()
        self.next_id = 1

    def submitted(self, event: Submitted, now: Instant, out: list[Command]) -> None:
        """Take in the tasks of one submit, and answer it."""
        accept = Accept(event.client, event.seq, [])
        for spec, options in zip(event.specs, event.options, strict=True):
            if spec.unique is None:
                self.insert(spec, options, now.wall, accept.ids, out, event.flow)
            else:
                self._insert_unique(accept, spec, options, event.holders, now, out)
        if accept.depends is not None:
            accept.depends += [task_id for task_id in accept.ids if task_id and task_id not in accept.known]
        out.append(accept)

    def _insert_unique(
        self, accept: Accept, spec: TaskSpec, options: Options, holders: dict[str, Holder], now: Instant, out: list[Command]
    ) -> None:
        """Take a task in if nobody has its unique key; else attach to who has, refuse it, or put it in the other's place."""
        assert spec.unique is not None
        if accept.depends is None:
            accept.depends = []
        holder, in_period = self.claims.holder(spec.unique, holders, now.wall)
        row = None if holder is None else self._table.now(holder)
        decision = unique.decide(row, in_period, options)
        if row is not None and decision.what == unique.REFUSED:
            accept.taken.append((len(accept.ids), row.id))
            accept.ids.append(0)
            return
        if row is not None and decision.what == unique.EXISTING:
            accept.known.append(row.id)
            accept.ids.append(row.id)
            if self.claims.is_new(row.id):
                accept.depends.append(row.id)  # it is not stored either
            return
        task_id = self.next_id
        if row is not None and decision.what == unique.REPLACED:
            error = TaskError("cancelled", f"replaced by task {task_id}", False)
            out.append(settle.move(row, CANCELLED, now, error=error, finish_reason=unique.REASON))
            self._table.ended(row)
            self._table.forget(row)
            accept.depends.append(row.id)
            accept.replaced.append(row.id)
        until = unique.period_end(options, now)
        self.insert(spec, options, now.wall, accept.ids, out, after=0 if row is None else row.id, until=until)

    def spawned(self, brood: Sequence[children.Child], now: Instant, out: list[Command]) -> None:
        """Take in what a success has made."""
        for child in brood:
            self.insert(child.spec, child.options, now.wall, [], out, of=child.parent)

    def insert(
        self,
        spec: TaskSpec,
        options: Options,
        wall: int,
        ids: list[int],
        out: list[Command],
        flow: FlowSpec | None = None,
        *,
        of: int = 0,
        after: int = 0,
        until: int = 0,
    ) -> int:
        """Take a new task in, and append its id to those of its submit. of, after, until: as in Insert."""
        task_id = self.next_id
        self.next_id += 1
        ids.append(task_id)
        at = spec.scheduled_at
        place = None
        if spec.step is not None:
            place, at = graph.placed(spec.step, flow, ids, at or wall, options)
        status = PENDING if at > wall or (place is not None and place.parents) else QUEUED
        at = at or wall
        row = TaskRow(task_id, spec.name, spec.queue, -spec.priority, status, 1, 0, 0, at, wall, options)
        row.key, row.unique = spec.key, spec.unique
        self.claims.take(row, until)
        out.append(Insert(task_id, spec, status, at, wall, place, of, after, until))
        self._table.place(row)
        return task_id
