"""A model of the store: rows in a dictionary, one transaction a turn, and the same assertions as the real one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from taskpool.clock import US
from taskpool.core import commands as cmd
from taskpool.core.effects import NONE
from taskpool.core.effects import Key as EffectKey
from taskpool.core.events import DueStep, Holder, ScheduleRow, TaskRow
from taskpool.core.graph import HELD_AT
from taskpool.core.lifecycle import MOVES, PENDING, QUEUED, RETRYING, RUNNING, SUCCEEDED, TERMINAL, WAITING
from taskpool.core.line import Key
from taskpool.core.queues import has_rules
from taskpool.core.unique import without
from taskpool.model import Occurrence, Options, Queue, Schedule, TaskError, TaskSpec
from taskpool.store.inbox import Arrival
from taskpool.store.plans import refused_with, unrefused
from taskpool.testing.simulation.effects import must_fail
from taskpool.testing.simulation.fates import LawBroken
from taskpool.testing.simulation.graphs import Graphs, Stored
from taskpool.wire.jobs import Report

ARRIVALS_MAX = 3  # rows of the inbox that a look sees
OPEN = ""  # outcome of an attempt that has not ended


class Witness(Protocol):
    """Whoever judges what is written, before it is."""

    def start(self, row: TaskRow, save: cmd.Start) -> None:
        """A task is about to be recorded as running."""

    def end(self, row: TaskRow, save: cmd.End) -> None:
        """An attempt is about to be closed."""

    def move(self, row: TaskRow, save: cmd.Move) -> None:
        """A task that does not run (or only gets a mark) is about to change."""


def place(row: TaskRow) -> Key:
    """Return where a waiting row stands in its line."""
    return (row.rank if row.status == QUEUED else 0, row.scheduled_at, row.id)


class ModelStore:
    """The rows, and what may be done to them. Outlives every scheduler of a run."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self.tasks: dict[int, Stored] = {}
        self.uids: dict[bytes, int] = {}
        self.pruned: dict[int, bytes] = {}  # id → uid
        self.refusing: set[int] = set()  # in this turn: what is replaced by one of these waits as before
        self.denied_keys: set[str] = set()  # keys of new tasks that a commit had no room for, before it was tried without them
        self.lost_keys: set[str] = set()  # keys that tasks took in this turn that are not stored: others passed for their sake
        self._last_id = 0  # that was ever stored
        self.options: dict[bytes, Options] = {b"": Options()}  # packed → decoded
        self.periods: dict[str, tuple[int, int]] = {}  # unique key → end of its period (wall µs), task
        self.inbox: dict[int, TaskSpec] = {}
        self.log_written = False  # and nobody has taken note of it yet
        self._last_arrival = self._guests = 0
        self.effects: Counter[EffectKey] = Counter()  # how often those of an attempt were applied
        self.queues: dict[str, Queue] = {}  # rules, `paused` as it is now
        self.full_at: dict[str, int] = {}  # by queue: when the tokens of its rate are all there again
        self.moves: list[tuple[int, str, str, int]] = []  # of the last turn: task, from (""), to, number of its last attempt
        self.graphs = Graphs(self.tasks)
        self.replies: list[tuple[str, int, str, int]] = []  # mailbox, task, status, attempt: one for each end that has a mailbox
        self.schedules: dict[str, Schedule] = {}
        self.occurrences: dict[tuple[str, int], Occurrence] = {}

    # ---- reading ----------------------------------------------------------------------------------------------------

    def rows(self, ids: Iterable[int]) -> list[TaskRow]:
        """Return copies of the rows that exist."""
        return [copy.copy(self.tasks[task_id].row) for task_id in ids if task_id in self.tasks]

    def running(self) -> list[TaskRow]:
        """Return copies of what a dead owner left running."""
        return self.rows(task_id for task_id, stored in self.tasks.items() if stored.row.status == RUNNING)

    def queues_waiting(self) -> list[str]:
        """Return the queues of queued tasks."""
        return sorted({stored.row.queue for stored in self.tasks.values() if stored.row.status == QUEUED})

    def rates_full_at(self) -> dict[str, int]:
        """Return what is stored of the rates of queues."""
        return dict(self.full_at)

    def register_queue(self, queue: Queue) -> Queue:
        """Store a queue's rules."""
        self.queues[queue.name] = queue
        return queue

    def pause_queues(self, names: Sequence[str], paused: bool) -> list[Queue]:
        """Pause queues or let them go on; return their rules as they are now."""
        rules = [msgspec.structs.replace(self.queues.get(name, Queue(name)), paused=paused) for name in names]
        self.queues.update((queue.name, queue) for queue in rules)
        return rules

    def queue_rules(self) -> list[Queue]:
        """Return the queues that have rules, by name."""
        return [queue for _, queue in sorted(self.queues.items()) if has_rules(queue)]

    def is_closed(self, queue: str, ghosts: int = 0) -> bool:
        """Return whether nothing more of a queue may be started: it is paused, or at its limit.

        ghosts: tasks of it that the scheduler started in this turn, and has yet to hear that they were refused.
        """
        rules = self.queues.get(queue)
        if rules is None:
            return False
        running = sum(stored.row.queue == queue and stored.row.status == RUNNING for stored in self.tasks.values())
        return rules.paused or (rules.concurrency is not None and running + ghosts >= rules.concurrency)

    def next_id(self) -> int:
        """Return the first free id."""
        return self._last_id + 1

    def kept_keys(self) -> list[TaskRow]:
        """Return what waits with a key and failed before."""
        return self.rows(
            task_id
            for task_id, stored in self.tasks.items()
            if stored.row.key and (stored.row.status == RETRYING or (stored.row.status == QUEUED and stored.row.charged))
        )

    def refill(self, queue: str | None, after: Key | None, n: int, key: str | None = None) -> tuple[list[TaskRow], bool]:
        """Return up to n rows of a line (or of a key in it) behind a place, and whether more follow."""
        statuses = (PENDING, RETRYING) if queue is None else (QUEUED,)
        line = sorted(
            (place(stored.row), task_id)
            for task_id, stored in self.tasks.items()
            if stored.row.status in statuses
            and queue in (None, stored.row.queue)
            and key in (None, stored.row.key)
            and stored.row.scheduled_at != HELD_AT
        )
        behind = [task_id for where, task_id in line if after is None or where > after]
        return self.rows(behind[:n]), len(behind) > n

    def steps_due(self) -> list[DueStep]:
        """Return the tasks that need not wait for their parents any longer."""
        return self.graphs.due()

    def steps_foreseen(self, ended: Mapping[int, int]) -> list[DueStep]:
        """Return the tasks of whom these, when they have succeeded, are the last that live."""
        return self.graphs.foreseen(ended.keys())

    # ---- writing ----------------------------------------------------------------------------------------------------

    def commit(
        self,
        saves: Sequence[cmd.Save],
        now_wall: int,
        *,
        together: Sequence[Collection[int]] = (),
        effects: Mapping[EffectKey, Report] = NONE,
        plans: Sequence[cmd.Plan] = (),
        full: bool = False,
    ) -> frozenset[int]:
        """Apply a turn; return the ids whose writes were refused.

        together: new tasks that are stored all or none; effects: what successes among the saves do to users' tables; plans: what
        became of schedules; full: there is no room for new tasks.
        """
        self.log_written = self.log_written or bool(saves or plans)
        self.moves.clear()
        refused = self.refusing = self._unwelcome(saves, together, plans, full)
        inserts = [save for save in saves if isinstance(save, cmd.Insert)]
        self.lost_keys = self.denied_keys | {one.spec.key for one in inserts if one.id in refused and one.spec.key is not None}
        self.denied_keys = set()
        lost: set[int] = set()
        for save in without(saves, refused):
            if save.id in lost:
                continue
            orphaned = isinstance(save, cmd.Insert) and (save.of in refused or save.of in lost)
            if orphaned or not self._apply(save):
                lost.add(save.id)
            elif isinstance(save, cmd.End) and (key := (save.id, save.closed.attempt)) in effects:
                if must_fail(effects[key]):
                    raise LawBroken(f"attempt {key} was said to have succeeded, and its effects fail")
                self.effects[key] += 1
        refused |= lost
        for plan in unrefused(plans, refused):
            self._plan(plan)
        made = {plan.occurrence.task_id for plan in plans if isinstance(plan, cmd.Occur)}
        for save in saves:
            if isinstance(save, cmd.Insert) and save.id in self.tasks and save.id not in made:
                name = self.tasks[save.id].row.options.recurrence
                if name:
                    raise LawBroken(f"task {save.id} of schedule {name} is stored without its occurrence")
        return frozenset(refused)

    # ---- retention --------------------------------------------------------------------------------------------------

    def prune(self, now_wall: int, seconds: float, rows: int) -> list[int]:
        """Delete what ended longer ago than that, and return it. rows: how many at a time, where that makes a difference."""
        going = self.prunable(now_wall, seconds)
        self.forget(going)
        return sorted(going)

    def prunable(self, now_wall: int, seconds: float) -> set[int]:
        """Return what nobody needs of that which ended longer ago than that."""
        horizon = now_wall - round(seconds * US)
        going = {task_id for task_id, one in self.tasks.items() if one.row.status in TERMINAL and one.ended_at <= horizon}
        going -= {task_id for until, task_id in self.periods.values() if until > now_wall}
        return going - self.graphs.kept(going)

    def forget(self, ids: Iterable[int]) -> None:
        """Delete these tasks, and all that belongs to them."""
        for task_id in ids:
            stored = self.tasks.pop(task_id)
            self.graphs.steps.pop(task_id, None)
            self.pruned[task_id] = stored.uid
            del self.uids[stored.uid]

    # ---- the inbox --------------------------------------------------------------------------------------------------

    def guest(self, specs: Sequence[TaskSpec]) -> None:
        """A guest commits tasks in a transaction of its own."""
        for spec in specs:
            self._last_arrival += 1
            self.inbox[self._last_arrival] = spec
        self._guests += 1
        self.log_written = True

    def arrivals(self, but: Collection[int] = ()) -> tuple[list[Arrival], bool]:
        """Return the first rows of the inbox, and whether there are more."""
        found = [Arrival(seq, spec) for seq, spec in self.inbox.items() if seq not in but]
        return found[:ARRIVALS_MAX], len(found) > ARRIVALS_MAX

    def find_uids(self, uids: Sequence[bytes]) -> dict[bytes, int]:
        """Return uid → id of those that are stored."""
        return {uid: self.uids[uid] for uid in uids if uid in self.uids}

    def data_version(self) -> int:
        """Return a number that changes with each commit of a guest."""
        return self._guests

    def drain(self) -> None:
        """Forget that the log was written."""
        self.log_written = False

    def try_effects(self, reports: Mapping[EffectKey, Report]) -> dict[EffectKey, TaskError]:
        """Return which of these attempts, if they run at all, have effects that fail."""
        failed = {}
        for key, report in reports.items():
            stored = self.tasks.get(key[0])
            if stored is not None and (stored.row.status, stored.row.attempt) == (RUNNING, key[1]) and must_fail(report):
                failed[key] = TaskError("effect", "simulated")
        return failed

    def _unwelcome(
        self, saves: Sequence[cmd.Save], together: Sequence[Collection[int]], plans: Sequence[cmd.Plan], full: bool
    ) -> set[int]:
        """Return the new tasks that are refused: a uid is taken, there is no room, or another of their submit is refused."""
        inserts = [save for save in saves if isinstance(save, cmd.Insert)]
        refused = {insert.id for insert in inserts if full and not insert.of}
        while True:
            uids = set(self.uids)
            for insert in inserts:
                if insert.id not in refused and insert.spec.uid in uids:
                    refused.add(insert.id)
                elif insert.id not in refused:
                    uids.add(insert.spec.uid)
            more = {task_id for group in together if not refused.isdisjoint(group) for task_id in group}
            more |= refused_with(plans, refused)
            if more <= refused:
                return refused
            refused |= more

    def _plan(self, plan: cmd.Plan) -> None:
        match plan:
            case cmd.Keep(schedule=schedule):
                self.schedules[schedule.name] = schedule
            case cmd.Spent(queue=name, full_at=at):
                self.full_at[name] = at
            case cmd.Taken(seq=seq):
                del self.inbox[seq]
            case cmd.Forget(name=name):
                del self.schedules[name]
            case cmd.Advance():
                kept = self.schedules[plan.name]
                self.schedules[plan.name] = msgspec.structs.replace(
                    kept, next_at=plan.next_at, total=plan.total, err_count=plan.err_count
                )
            case cmd.Occur(occurrence=one):
                before = self.occurrences.get((one.schedule, one.planned_at))
                if before is not None and before.outcome != "queued":
                    raise LawBroken(f"schedule {one.schedule} occurs twice at {one.planned_at}")
                if one.task_id is not None and one.task_id not in self.tasks:
                    raise LawBroken(f"schedule {one.schedule} made task {one.task_id}, which is not stored")
                self.occurrences[one.schedule, one.planned_at] = one

    def schedule_rows(self) -> list[ScheduleRow]:
        """Return what a scheduler needs of each schedule."""
        rows = []
        for name, schedule in self.schedules.items():
            mine = [one for one in self.occurrences.values() if one.schedule == name]
            made = [one.task_id for one in mine if one.task_id is not None]
            live = [task_id for task_id in made if task_id in self.tasks and self.tasks[task_id].row.status not in TERMINAL]
            queued = [one.planned_at for one in mine if one.outcome == "queued"]
            rows.append(ScheduleRow(schedule, live, queued, max((one.planned_at for one in mine), default=0)))
        return rows

    def _apply(self, save: cmd.Save) -> bool:
        if isinstance(save, cmd.Insert):
            return self._insert(save)
        stored = self.tasks.get(save.id)
        if isinstance(save, cmd.Checkpoint):
            return True  # of an attempt that is over: changes nothing, and is nobody's error
        if stored is None or stored.row.version != save.version:
            return False
        match save:
            case cmd.Start():
                return self._start(stored, save)
            case cmd.End():
                return self._end(stored, save)
            case cmd.Move():
                return self._move(stored, save)

    def _insert(self, save: cmd.Insert) -> bool:
        if save.id in self.tasks or save.id in self.pruned:
            raise LawBroken(f"two tasks were given the id {save.id}")
        if save.spec.uid in self.uids:
            return False
        spec = save.spec
        _legal(save.id, "", save.status)
        options = self.options.get(spec.options) or msgspec.msgpack.decode(spec.options, type=Options)
        row = TaskRow(
            save.id, spec.name, spec.queue, -spec.priority, save.status, 1, 0, 0, save.scheduled_at, save.created_at, options
        )
        row.key, row.unique = spec.key, spec.unique
        self._claim(row)
        if save.until:
            assert spec.unique is not None
            self.periods = {key: period for key, period in self.periods.items() if period[0] > save.created_at}
            self.periods[spec.unique] = (save.until, save.id)
        self.tasks[save.id] = Stored(spec.uid, row)
        self._last_id = max(self._last_id, save.id)
        self.uids[spec.uid] = save.id
        self.moves.append((save.id, "", save.status, 0))
        if save.place is not None:
            self.graphs.insert(save.id, save.place)
        return True

    def _claim(self, row: TaskRow) -> None:
        """A task lives from now on."""
        others = self.live_with(row.unique)
        if others:
            raise LawBroken(
                f"task {row.id} has the unique key {row.unique}, and so has task {others[0].row.id}, which has not ended"
            )

    def live_with(self, unique: str | None) -> list[Stored]:
        """Return the tasks that have a unique key and have not ended."""
        if unique is None:
            return []
        return [one for one in self.tasks.values() if one.row.unique == unique and one.row.status not in TERMINAL]

    def unique_holders(self, keys: Iterable[str]) -> dict[str, Holder]:
        """Return who has a unique key, or had it last, for its period."""
        found = {}
        for key in keys:
            until, task_id = self.periods.get(key, (0, 0))
            if task_id in self.tasks:
                found[key] = Holder(self.rows([task_id])[0], until)
            for stored in self.live_with(key):
                if stored.row.id != task_id:
                    found[key] = Holder(self.rows([stored.row.id])[0])
        return found

    def _start(self, stored: Stored, save: cmd.Start) -> bool:
        row = stored.row
        if row.status != save.status:
            return False
        _legal(row.id, row.status, RUNNING)
        self._witness.start(row, save)
        self.moves.append((row.id, row.status, RUNNING, save.attempt))
        row.status = RUNNING
        if save.freed_at is not None:
            row.scheduled_at = save.freed_at
            self.graphs.steps[row.id].held = False
        row.version += 1
        row.attempt = save.attempt
        row.started_at = save.at
        row.worker = save.worker
        stored.attempts[save.attempt] = OPEN
        return True

    def _end(self, stored: Stored, save: cmd.End) -> bool:
        row = stored.row
        if row.status != RUNNING or row.attempt != save.closed.attempt:
            return False
        _legal(row.id, RUNNING, save.to)
        self._witness.end(row, save)
        stored.attempts[save.closed.attempt] = save.closed.outcome
        stored.result = save.to == SUCCEEDED
        row.worker = 0
        self._change(stored, save.to, save.charged, save.extras, save.scheduled_at)
        stored.ended_at = save.at
        if save.to == SUCCEEDED:
            row.error = None
        elif save.error is not None:
            row.error = save.error
        self._reply(row, save.reply_to)
        return True

    def _move(self, stored: Stored, save: cmd.Move) -> bool:
        row = stored.row
        if row.status != save.status:
            return False
        if save.to != save.status or save.status in TERMINAL:
            _legal(row.id, row.status, save.to)
        self._witness.move(row, save)
        renewed = row.status in TERMINAL
        if renewed and save.to not in TERMINAL:
            self._claim(row)
        self._change(stored, save.to, save.charged, save.extras, save.scheduled_at)
        stored.ended_at = save.at
        if save.rank is not None:
            row.rank = save.rank
        if save.options is not None:
            row.options = msgspec.msgpack.decode(save.options, type=Options) if save.options else Options()
        if save.clear_error:
            row.error, stored.result = None, False
        elif save.error is not None:
            row.error = save.error
        if save.held is not None:
            self.graphs.steps[row.id].held = save.held
        if renewed:
            self.graphs.renewed(row.id)
        self._reply(row, save.reply_to)
        return True

    def _reply(self, row: TaskRow, mailbox: str) -> None:
        """What ended leaves its response where its options say, in the same transaction; nothing else leaves one."""
        wanted = row.options.reply_to if row.status in TERMINAL else ""
        if mailbox != wanted:
            raise LawBroken(f"task {row.id} is {row.status} and its response goes to {mailbox!r}, not {wanted!r}")
        if mailbox:
            self.replies.append((mailbox, row.id, row.status, row.attempt))

    def _change(self, stored: Stored, to: str, charged: int | None, extras: cmd.Extras | None, scheduled_at: int | None) -> None:
        row = stored.row
        if row.status != to:
            self.moves.append((row.id, row.status, to, row.attempt))
        row.status = to
        row.version += 1
        if to in TERMINAL:
            self.graphs.ended(row)
        if charged is not None:
            row.charged = charged
        if scheduled_at is not None:
            row.scheduled_at = scheduled_at
        if extras is not None:
            row.round, row.crashes, row.interruptions = extras.round, extras.crashes, extras.interruptions
            row.snoozes = extras.snoozes
            row.cancel_requested_at, row.cancel_reason = extras.cancel_requested_at, extras.cancel_reason
            row.begun, row.upstream = extras.begun, extras.upstream
            stored.finish_reason = extras.finish_reason

    @property
    def waiting(self) -> list[TaskRow]:
        """Return the rows that wait."""
        return [stored.row for stored in self.tasks.values() if stored.row.status in WAITING]


def _legal(task_id: int, before: str, after: str) -> None:
    if after not in MOVES[before]:
        raise LawBroken(f"task {task_id} was to move from {before or 'nothing'} to {after}, which no table allows")
