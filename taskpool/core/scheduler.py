"""The scheduler: handle(event, now) -> commands. It decides and touches nothing.

State changes only inside `handle`. Time is an argument; jitter is a hash; two runs of the same events give the same commands.
The shell stores the Save commands of a turn in one transaction, then acts on the rest, and calls `handle(Dispatch())` once, last.
Late and double messages are normal: each carries the number, task and attempt it speaks of, and one that does not match is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

from taskpool.clock import NS, US, Instant
from taskpool.core import amend, callers, children, graph, retry, settle, unique
from taskpool.core import events as ev
from taskpool.core.admission import Room
from taskpool.core.callers import Callers
from taskpool.core.commands import (
    Accept,
    Agree,
    CancelLive,
    Checkpoint,
    Command,
    Halted,
    Insert,
    Kill,
    Occur,
    Respond,
    Signal,
    Start,
    TakeBack,
    Taken,
    Tell,
)
from taskpool.core.cron import Cron, NextAfter, never
from taskpool.core.dispatch import Dispatcher
from taskpool.core.ending import Ending
from taskpool.core.events import TaskRow
from taskpool.core.fleet import IDLE_NS, Fleet
from taskpool.core.lifecycle import CANCELLED, PENDING, QUEUED, RETRYING, RUNNING, SUCCEEDED, TERMINAL
from taskpool.core.line import LINE_MAX
from taskpool.core.lines import Lines
from taskpool.core.mailbox import DEPTH_MAX, Mailbox
from taskpool.core.routing import Routes
from taskpool.model import FlowSpec, Options, TaskError, TaskSpec

CANCEL_GRACE_S = 5.0


class Scheduler:
    """Owns the schedule: waiting lines, mailboxes, the worker table, timers. `size` workers run tasks; one more stands ready."""

    def __init__(
        self,
        size: int,
        *,
        spares: int = 1,
        depth_max: int = DEPTH_MAX,
        line_max: int = LINE_MAX,
        grace_s: float = CANCEL_GRACE_S,
        size_max: int = 0,
        idle_ns: int = IDLE_NS,
        room: Room | None = None,
        next_after: NextAfter = never,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        """depth_max 1 where tasks cannot be taken back; line_max: waiting rows of a queue held in memory.

        size_max: to so many workers the pool grows under load; idle_ns: until those that are not needed leave; room: what the
        machine has for tasks that say what they need; next_after: of schedules; labels: how many workers have each.
        """
        self.depth_max = depth_max
        self.grace_s = grace_s
        self.tasks: dict[int, TaskRow] = {}  # all that run, and those that wait before their line's mark
        self.lines = Lines(self.tasks, line_max)
        self.routes = Routes(self.tasks)
        self.room = room or Room(0, 0)
        self.fleet = Fleet(size, spares, size_max, idle_ns, labels)
        self.workers = self.fleet.workers
        self.callers = Callers(self.workers)
        self.ending = Ending(self.workers, self.callers, grace_s)
        self.cron = Cron(next_after)
        self.claims = unique.Claims()
        self.dispatcher = Dispatcher(
            self.lines, self.routes, self.room, self.workers, depth_max, start=self._start, ends=self._end_if_overdue
        )
        self.durations = self.dispatcher.durations
        self.next_id = 1
        self.finished = 0
        self.attempts = 0
        self._recovered: list[children.Child] = []  # of successes that a dead owner had not stored, until ids are known
        self._due: list[TaskRow] = []  # became ready in this turn, stored as pending or retrying
        self._freed: dict[int, ev.DueStep] = {}  # need not wait for their parents any longer, and may start in this turn
        self._gone: dict[int, TaskRow] = {}  # left memory in this turn; what the store says of them is about to change
        self._out: list[Command] = []

    # ---- the door ---------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: Instant) -> list[Command]:
        """Take one event; return what follows from it, in order."""
        out: list[Command] = []
        self._out = out
        if self._freed and not isinstance(event, (ev.StepsDue, ev.Dispatch)):
            self._queue_freed(now)  # whatever else may be said of them meets them as the store will have them
        match event:
            case ev.Reported():
                self._on_reported(event, now)
            case ev.Submitted():
                self._on_submitted(event, now)
            case ev.Dispatch():
                self._on_dispatch(now)
            case ev.Arrived():
                for seq, spec, options in zip(event.seqs, event.specs, event.options, strict=True):
                    self._out.append(Taken(seq, self._insert(spec, options, now.wall, [])))
                self._out += [Taken(seq, 0) for seq in event.known]
            case ev.StepsDue():
                self._on_steps_due(event, now)
            case ev.Passed():
                self._on_passed(event, now)
            case ev.TakenBack():
                self._on_taken_back(event, now)
            case ev.Saved():
                self._on_saved(event)
            case ev.WorkerReady():
                self.fleet.ready(event.worker, event.pid)
            case ev.WorkerDied():
                self._on_worker_died(event, now)
            case ev.WorkerFailed():
                self.fleet.failed(event.worker, now)
            case ev.CancelAsked():
                self._on_cancel(event, now)
            case ev.RetryAsked():
                self._on_retry(event, now)
            case ev.UpdateAsked():
                self._on_update(event, now)
            case ev.HandlersKnown():
                for row in self.routes.learn(event.names):
                    self._wait(row)
            case ev.ExecuteAsked():
                self.callers.asked.append(event)
            case ev.CallerSpoke():
                self.callers.spoke(event.worker, event.client, event.extend_ns, now)
            case ev.CallerGone():
                for loan in self.callers.gone(event.client, event.worker):
                    self._give_up(loan, callers.GONE, now)
            case ev.Refilled():
                self.lines.refilled(event.queue, event.rows, event.more, event.key)
            case ev.Recovered():
                self._on_recovered(event, now)
            case ev.Dropped():
                self._on_dropped(event, now)
            case ev.Opened():
                self._on_opened(event, now)
            case ev.QueueSet():
                self.lines.set_rules(event.queue, event.full_at, now)
            case ev.KeysKept():
                for row in event.rows:
                    self.lines.keys.note(row)
            case ev.Scheduled():
                self._out += self.cron.opened(event.rows)
            case ev.CronAsked():
                self._on_cron(event, now)
            case ev.StopAsked():
                self._out += self.ending.ask(event.grace_s, now)
            case _:
                assert_never(event)
        return out

    @property
    def stopping(self) -> bool:
        """Whether the pool begins no more."""
        return self.ending.began

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, and nothing is due that might start, now or by a rate: after the end of a turn."""
        if any(box.sent for box in self.workers.values()) or self.room.held is not None:
            return False
        return not self.lines.startable(1) and not self.lines.is_refilling and self.lines.next_token() is None

    def knows(self, task_id: int) -> bool:
        """Whether memory holds the task; if not, the shell adds its row to the event."""
        return task_id in self.tasks or task_id in self._gone

    def _forget(self, row: TaskRow) -> None:
        self.tasks.pop(row.id, None)
        if self.routes:
            self.routes.take_out(row)
        self._gone[row.id] = row

    def next_timer(self, now: Instant) -> float | None:
        """Return the seconds until something becomes due by itself (0: now), or None."""
        waits: list[float] = []
        if not self.stopping and (due := self.lines.next_due()) is not None:
            waits.append((due - now.wall) / US)
        if not self.stopping and (due := self.cron.next_due()) is not None:
            waits.append((due - now.wall) / US)
        if (at := self.lines.next_deadline()) is not None:
            waits.append((at - now.wall) / US)
        if not self.stopping and (at := self.lines.next_token()) is not None:
            waits.append((at - now.mono) / NS)
        if (at := self.callers.next_due(now)) is not None:
            waits.append((at - now.mono) / NS)
        if self.dispatcher.stuck_at is not None:
            waits.append((self.dispatcher.stuck_at - now.mono) / NS)
        if self.ending.at is not None:
            waits.append((self.ending.at - now.mono) / NS)
        if not self.stopping and (at := self.fleet.next_shrink) is not None:
            waits.append((at - now.mono) / NS)
        if self.fleet.next_spawn and not self.stopping:
            waits.append((self.fleet.next_spawn - now.mono) / NS)
        return max(0.0, min(waits)) if waits else None

    # ---- tasks come in ----------------------------------------------------------------------------------------------

    def _on_opened(self, event: ev.Opened, now: Instant) -> None:
        self.next_id = event.next_id
        for queue in event.queues:
            self.lines.open(queue)
        self._insert_children(self._recovered, now)
        self._recovered = []

    def _on_submitted(self, event: ev.Submitted, now: Instant) -> None:
        accept = Accept(event.client, event.seq, [])
        for spec, options in zip(event.specs, event.options, strict=True):
            if spec.unique is None:
                self._insert(spec, options, now.wall, accept.ids, event.flow)
            else:
                self._insert_unique(accept, spec, options, event.holders, now)
        if accept.depends is not None:
            accept.depends += [task_id for task_id in accept.ids if task_id and task_id not in accept.known]
        self._out.append(accept)

    def _insert_unique(self, accept: Accept, spec: TaskSpec, options: Options, holders: dict[str, ev.Holder], now: Instant) -> None:
        """Take a task in if nobody has its unique key; else attach to who has, refuse it, or put it in the other's place."""
        assert spec.unique is not None
        if accept.depends is None:
            accept.depends = []
        holder, in_period = self.claims.holder(spec.unique, holders, now.wall)
        row = None if holder is None else self._now(holder)
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
            self._out.append(settle.move(row, CANCELLED, now, error=error, finish_reason=unique.REASON))
            self._ended(row)
            self._forget(row)
            accept.depends.append(row.id)
            accept.replaced.append(row.id)
        until = unique.period_end(options, now)
        self._insert(spec, options, now.wall, accept.ids, after=0 if row is None else row.id, until=until)

    def _now(self, row: TaskRow) -> TaskRow:
        """Return a task as it is, whose row the shell has read."""
        return self.tasks.get(row.id) or self._gone.get(row.id) or row

    def _insert_children(self, brood: Sequence[children.Child], now: Instant) -> None:
        for child in brood:
            self._insert(child.spec, child.options, now.wall, [], of=child.parent)

    def _insert(
        self,
        spec: TaskSpec,
        options: Options,
        wall: int,
        ids: list[int],
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
        self._out.append(Insert(task_id, spec, status, at, wall, place, of, after, until))
        self._wait(row)
        return task_id

    def _wait(self, row: TaskRow) -> None:
        """Put a waiting task into its line, if it stands before the line's mark, and into the timers.

        One that waits for its parents, with no limit to that, lies in the store alone.
        """
        if row.key is not None:
            self.lines.keys.note(row)
        if row.scheduled_at == graph.HELD_AT or not self.lines.put(row):
            self._forget(row)

    def _on_steps_due(self, event: ev.StepsDue, now: Instant) -> None:
        """Let go on what waited for its parents, and cancel what can never start. A pool that stops leaves both."""
        if self.stopping:
            return
        for step in event.steps:
            row = self._row_of(step)
            if row.status in TERMINAL or (row.status != PENDING and not step.culprit):
                continue
            if row.status == RUNNING:
                if step.culprit and row.cancel_requested_at is None:
                    self._cancel(row, ev.CancelAsked(0, 0, [row.id], [], graph.why(step)), now)
                continue
            if graph.is_free(row, step, now):
                self._freed[row.id] = step
            else:
                self._go_on(row, step, now)

    def _go_on(self, row: TaskRow, step: ev.DueStep, now: Instant) -> None:
        command = graph.decided(row, step, now)
        self._out.append(command)
        if command.to in TERMINAL:
            self._ended(row)
            self._forget(row)
        else:
            self._wait(row)

    def _queue_freed(self, now: Instant) -> None:
        """Write at once of those that may start that they wait for a worker."""
        freed, self._freed = self._freed, {}
        for step in freed.values():
            self._go_on(self._row_of(step), step, now)

    def _admit_freed(self, now: Instant) -> None:
        """Put them into their queues' lines. As of what is due, their rows say so only if they do not start in this same turn."""
        for task_id, step in list(self._freed.items()):
            row = self._row_of(step)
            if row.status != PENDING:
                del self._freed[task_id]  # its limit has come
                continue
            row.scheduled_at = now.wall
            if self.lines.admit(row):
                self._due.append(row)
            else:
                self._queue(row, now)
                self._forget(row)

    def _queue(self, row: TaskRow, now: Instant) -> None:
        """Write that what became ready in this turn waits for a worker."""
        command = settle.move(row, QUEUED, now)
        if row.id in self._freed:
            command.scheduled_at, command.held = row.scheduled_at, False
        self._out.append(command)

    def _row_of(self, step: ev.DueStep) -> TaskRow:
        return self.tasks.get(step.row.id) or self._gone.get(step.row.id) or step.row

    def _on_dropped(self, event: ev.Dropped, now: Instant) -> None:
        """Forget tasks whose rows say otherwise; what runs of them is stopped, and its report will match nothing."""
        as_before = {row.id for row in event.rows}
        for task_id in event.ids:
            if task_id in as_before:
                continue
            self.cron.dropped(task_id, now)
            row = self.tasks.pop(task_id, None)
            if row is None:
                continue
            self.routes.take_out(row)
            box = self.workers.get(row.worker) if row.n else None
            if box is not None and box.caller is not None:
                self.callers.close(row.worker)
                self._out.append(Agree(*box.caller, [], "stale_version", f"somebody wrote task {task_id} first"))
            elif box is not None:
                box.remove(row.n, self.durations.expected(row.name), box.silent_since)
                if task_id in event.sent:  # its body may run: until that is dead, it holds what it held
                    box.disowned.append(row)
                    box.leaving = True
                    self._out.append(Kill(box.worker, 0, "retire"))
                    continue
            self._disown(row)
        for row in event.rows:
            self.tasks[row.id] = row
            self.lines.take_out(row)  # its line may have been read meanwhile, or still hold its old place
            self._wait(row)

    def _disown(self, row: TaskRow) -> None:
        """Free what a task holds that is not stored as we have it, and does not run."""
        row.status = CANCELLED
        if row.key is not None:
            self.lines.keys.ended(row)

    # ---- workers ----------------------------------------------------------------------------------------------------

    def _on_worker_died(self, event: ev.WorkerDied, now: Instant) -> None:
        box = self.fleet.died(event.worker, bool(event.why), now)
        if box is None:
            return
        if self.fleet.is_stillborn and not self.ending.halted:
            self.ending.halted = True
            self._out.append(Halted(f"workers die before they are ready: {event.error.message}"))
        for row in box.disowned:
            self._disown(row)
        for n, row in list(box.sent.items()):
            row.n = 0
            if n == event.begun:
                self._out.append(settle.died(row, event, now))
                self.attempts += 1
            else:
                self._out.append(settle.returned(row, event.pid, now))
                self.lines.rates.give_back(row.queue, row.started_at or 0)
            self._after_end(row)

    def _on_taken_back(self, event: ev.TakenBack, now: Instant) -> None:
        box = self.workers.get(event.worker)
        if box is None:
            return
        for n, row in list(box.sent.items()):
            if n > event.above:
                box.taking_back = max(box.taking_back, n)
                box.remove(n, self.durations.expected(row.name), now.mono)
                self._out.append(settle.returned(row, box.pid, now))
                self.lines.rates.give_back(row.queue, row.started_at or 0)
                self._after_end(row)

    def _on_passed(self, event: ev.Passed, now: Instant) -> None:
        box = self.workers.get(event.worker)
        if box is not None and event.n >= box.taking_back:
            box.taking_back = 0

    def _on_saved(self, event: ev.Saved) -> None:
        saved = event.checkpoint
        box = self.workers.get(event.worker)
        row = box.sent.get(saved.n) if box is not None else None
        if row is not None and row.id == saved.task_id and row.attempt == saved.attempt:
            self._out.append(Checkpoint(row.id, row.attempt, saved.data))

    def _on_reported(self, event: ev.Reported, now: Instant) -> None:
        box = self.workers.get(event.worker)
        if box is None:
            return
        out, durations, outputs = self._out, self.durations, event.outputs
        for report in event.reports:
            row = box.sent.get(report.n)
            if row is None or row.id != report.task_id or row.attempt != report.attempt:
                continue  # of an attempt that was given up
            if box.caller is None:
                box.remove(report.n, durations.observe(row.name, report.duration_ns), now.mono)
            else:
                box.remove(report.n, None, now.mono)
                self.callers.close(box.worker)
            box.done += 1
            self.attempts += 1
            output = outputs.get(report.n, "") if outputs else ""
            brood = children.read(report) if report.children else ()
            out.append(settle.reported(row, report, event.pid, output, now, stopping=self.ending.told))
            self._after_end(row)
            self._insert_children(brood, now)
            if report.dirty and not box.leaving:
                box.leaving = True
                out.append(Kill(box.worker, 0, "retire"))

    def _give_up(self, loan: callers.Loan, why: str, now: Instant) -> None:
        """An attempt that a caller runs has ended, whatever the caller does."""
        row = loan.row
        death = callers.death(loan, why, now)
        loan.box.remove(row.n, None, now.mono)
        self.callers.close(loan.box.worker)
        self.attempts += 1
        self._out += [settle.died(row, death, now), Tell(loan.client, loan.box.worker, callers.OVER)]
        self._after_end(row)

    def _after_end(self, row: TaskRow) -> None:
        """Keep what will run again, forget what ended."""
        if row.key is not None:
            self.lines.keys.ended(row)
        if row.status in TERMINAL:
            self._ended(row)
            self._forget(row)
        elif row.status == PENDING and self.stopping:
            self._forget(row)  # the next owner finds it in the store
        else:
            self._wait(row)

    def _ended(self, row: TaskRow) -> None:
        self.finished += 1
        if row.key is not None:
            self.lines.keys.note(row)
        if row.options.recurrence:
            self.cron.ended(row)

    def _on_recovered(self, event: ev.Recovered, now: Instant) -> None:
        row, report = event.row, event.report
        row.rules = self.lines.queues.get(row.queue)
        if report is not None and report.attempt == row.attempt and report.task_id == row.id:
            self._recovered += children.read(report)
            # A Cancelled that no stored cancel asked for: the dead owner was stopping the pool.
            self._out.append(settle.reported(row, report, 0, "", now, stopping=True))
        elif event.begun:
            self._out.append(settle.rescued(row, now))
        else:
            self._out.append(settle.returned(row, 0, now))
            self.lines.rates.give_back(row.queue, row.started_at or 0)
        # Its line is not read yet: the row comes back with the refill, in its place.
        if row.key is not None:
            self.lines.keys.note(row)
        if row.status in TERMINAL:
            self._ended(row)
        elif row.status == QUEUED and row.queue not in self.lines.ready:
            self.lines.open(row.queue)  # nothing waited in it when the store was opened

    # ---- cancel, retry, stop ----------------------------------------------------------------------------------------

    def _on_cancel(self, event: ev.CancelAsked, now: Instant) -> None:
        rows = {row.id: row for row in event.rows}
        accepted, refused = [], []
        for task_id in event.ids:
            row = self.tasks.get(task_id) or self._gone.get(task_id) or rows.get(task_id)
            if row is None or row.status in TERMINAL:
                refused.append(task_id)
                continue
            accepted.append(task_id)
            self._cancel(row, event, now)
        if event.client:
            self._out.append(Respond(event.client, event.seq, accepted, refused))

    def _cancel(self, row: TaskRow, event: ev.CancelAsked, now: Instant) -> None:
        first = row.cancel_requested_at is None
        if first:
            row.cancel_requested_at, row.cancel_reason = now.wall, event.reason
        if row.status != RUNNING:
            error = TaskError("cancelled", event.reason or "cancelled before it started", False)
            self._out.append(settle.move(row, "cancelled", now, error=error, finish_reason="user"))
            self._ended(row)
            self._forget(row)
            return
        if first:
            self._out.append(settle.move(row, RUNNING, now))
        grace = self.grace_s if event.grace_s is None else event.grace_s
        box = self.workers.get(row.worker)
        if box is None or row.n not in box.sent:
            return  # its worker's death is on the way
        if box.caller is not None:
            self._out += self.callers.ask(box.worker, callers.CANCEL, 0.0 if event.force else max(0.0, grace), now)
            return
        if next(iter(box.sent)) != row.n:
            self._out.append(TakeBack(box.worker, row.n - 1))
        self._out.append(Signal(box.worker, row.n, 0.0 if event.force else max(0.0, grace)))  # it may have begun meanwhile

    def _on_retry(self, event: ev.RetryAsked, now: Instant) -> None:
        accepted, refused = [], []
        for row in event.rows:
            row = self.tasks.get(row.id) or self._gone.get(row.id) or row
            if row.status in TERMINAL and (row.status != SUCCEEDED or event.force) and self._may_have_key(row, event, now):
                command = settle.new_round(row, now)
                if row.id in event.steps:
                    graph.hold(row, command)
                self._out.append(command)
                self.claims.take_again(row)
                self._wait(row)
                if row.options.recurrence:
                    self.cron.revived(row)
            elif row.status == RETRYING:  # "retry now"
                self._hasten(row, now)
            elif row.status != PENDING:  # that waits for its time, or for the turn that begins its new round
                refused.append(row.id)
                continue
            accepted.append(row.id)
        if event.client:
            self._out.append(Respond(event.client, event.seq, accepted, refused))

    def _may_have_key(self, row: TaskRow, event: ev.RetryAsked, now: Instant) -> bool:
        """Return whether an ended task can live again beside who has its unique key now."""
        if row.unique is None:
            return True
        holder, _ = self.claims.holder(row.unique, event.holders, now.wall)
        return holder is None or unique.is_free(row, self._now(holder))

    def _on_cron(self, event: ev.CronAsked, now: Instant) -> None:
        """Answer for a schedule; a run by hand is a task at once."""
        if event.verb == "run" and self.stopping:
            self._out.append(Agree(event.client, event.seq, [], "pool_stopped", "the pool is stopping"))
            return
        commands, firing = self.cron.asked(event, now)
        ids: list[int] = []
        if firing is not None:
            self._insert(firing.spec, firing.options, now.wall, ids)
            self._out.append(self.cron.fired(firing, ids[0], now))
        for command in commands:
            if isinstance(command, Agree):
                command.ids = ids
            self._out.append(command)

    def _fire(self, now: Instant) -> None:
        """Make the tasks of the schedules that are due, each with its occurrence."""
        for command in self.cron.due(now):
            if isinstance(command, (Occur, CancelLive)):
                self._out.append(command)
            else:
                task_id = self._insert(command.spec, command.options, now.wall, [])
                self._out.append(self.cron.fired(command, task_id, now))

    def _on_update(self, event: ev.UpdateAsked, now: Instant) -> None:
        row = self.tasks.get(event.id) or self._gone.get(event.id) or event.row
        error = amend.refusal(row, event, None if row is None else self.lines.queues.get(row.queue))
        if error is not None:
            self._out.append(Agree(event.client, event.seq, [], error.code, error.message, error.hint))
            return
        assert row is not None
        self.dispatcher.take_out(row)
        self._out.append(amend.amended(row, event, now))
        self._wait(row)
        self._out.append(Agree(event.client, event.seq, [row.id]))

    def _hasten(self, row: TaskRow, now: Instant) -> None:
        self._out.append(settle.move(row, QUEUED, now, scheduled_at=now.wall))
        self._wait(row)

    # ---- the end of a turn ------------------------------------------------------------------------------------------

    def _on_dispatch(self, now: Instant) -> None:
        self._settle_overdue(now)
        for loan, why in self.callers.due(now):
            self._give_up(loan, why, now)
        self._out += self.callers.soft(now)
        if self.stopping:
            self._lend(now)
            self.dispatcher.stuck_at = None
            self._out += self.ending.go_on(now)
            self._gone.clear()
            self.claims.clear()
            self._freed.clear()  # the next owner finds them
            self._out += self.cron.advances()
            self._out += self.lines.rates.spent(now)
            return
        self._fire(now)
        self._lend(now)
        self._admit_due(now)
        self._admit_freed(now)
        self.fleet.activate()
        self.dispatcher.fill(now)
        if not self.ending.halted:
            self._out += self.fleet.scale(self.lines.startable(self.fleet.size_max), now)
            self._out += self.fleet.spawn(now)
        self._out += self.dispatcher.take_back_stuck(now)
        for row in self._due:  # became ready, found no worker in this turn
            if row.status in (PENDING, RETRYING) and row.id in self.tasks:
                self._queue(row, now)
        self._due.clear()
        self._freed.clear()
        self._gone.clear()
        self.claims.clear()
        self._out += self.cron.advances()
        self._out += self.lines.rates.spent(now)
        if self.routes:
            self.routes.shed(self.lines)
        self.lines.watch_tokens(now, self.routes.counts)
        for queue, mark in self.lines.shed():
            if self.routes:
                self.routes.cut(queue, mark)
        self._out += self.lines.refills(self.routes.counts)

    def _lend(self, now: Instant) -> None:
        """Start for callers what they asked for, by the rules of all starts; it is the last that a turn says of a task."""
        asked, self.callers.asked = self.callers.asked, []
        for event in asked:
            row = self.tasks.get(event.id) or self._gone.get(event.id) or event.row
            obstacle = "" if row is None else self.dispatcher.obstacle(row, now)
            error = callers.refusal(row, event, obstacle, now, stopping=self.stopping)
            if error is None and row is not None and self._end_if_overdue(row, now):
                error = callers.refusal(row, event, "", now, stopping=False)
            if error is not None:
                self._out.append(Agree(event.client, event.seq, [], error.code, error.message, error.hint))
                continue
            assert row is not None
            self.dispatcher.take_out(row)
            self.tasks[row.id] = row
            box = self.callers.open(self.fleet.next_worker, row, event, now)
            self.fleet.next_worker += 1
            self._start(box, row, None, now)

    def _settle_overdue(self, now: Instant) -> None:
        for row in self.lines.overdue(now.wall):
            self._end_if_overdue(row, now)

    def _end_if_overdue(self, row: TaskRow, now: Instant) -> bool:
        command = settle.overdue(row, now)
        if command is None:
            return False
        self._out.append(command)
        self._ended(row)
        self._forget(row)
        return True

    def _admit_due(self, now: Instant) -> None:
        """Move what is due into its queue's line. Its row says so only if it does not start in this same turn."""
        for row, is_held in self.lines.due(now.wall):
            if row.key is not None:
                self.lines.keys.note(row, due=True)
            if is_held:
                self._due.append(row)
            else:
                self._out.append(settle.move(row, QUEUED, now))
                self._forget(row)

    def _start(self, box: Mailbox, row: TaskRow, expected: int | None, now: Instant) -> None:
        if not box.sent and box.caller is None:
            self.room.take(row)
        row.attempt += 1
        n = box.push(row, expected, now.mono)
        freed_at = row.scheduled_at if row.id in self._freed else None
        self._out.append(Start(row.id, row.version, row.status, row.attempt, box.worker, n, now.wall, box.caller, freed_at))
        row.version += 1
        row.status = RUNNING
        row.started_at = now.wall
        if self.lines.queues:
            row.rules = self.lines.queues.get(row.queue)
        if self.lines.queues or row.key is not None:
            self.lines.started(row, now)

    # ---- what must hold after every step ----------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants; the simulation calls it after every step."""
        held: dict[int, int] = {}
        for box in self.workers.values():
            assert len(box.sent) <= self.depth_max, f"worker {box.worker} holds {len(box.sent)} tasks"
            for n, row in box.sent.items():
                assert row.status == RUNNING, f"task {row.id} is {row.status} in the mailbox of worker {box.worker}"
                assert (row.worker, row.n) == (box.worker, n), f"task {row.id} does not know where it is"
                assert row.id not in held, f"task {row.id} is in the mailboxes of workers {held[row.id]} and {box.worker}"
                assert self.tasks.get(row.id) is row, f"task {row.id} runs unknown"
                held[row.id] = box.worker
        for row in self.tasks.values():
            assert row.status not in TERMINAL, f"task {row.id} ended and is still held"
            assert row.status != RUNNING or row.id in held, f"task {row.id} runs nowhere"
            limit = retry.max_attempts(row.options, self.lines.queues.get(row.queue))
            assert limit <= 0 or row.charged <= limit, f"task {row.id} was charged {row.charged} of {limit} attempts"
            assert row.charged <= row.attempt, f"task {row.id} was charged more often than it was tried"
            assert row.rules is None or row.rules.name == row.queue, f"task {row.id} has the rules of another queue"
        self.fleet.check()
        self.callers.check()
        running: dict[str, set[int]] = {}
        for row in (*self.tasks.values(), *(row for box in self.workers.values() for row in box.disowned)):
            if row.key is not None and row.status == RUNNING:
                running.setdefault(row.key, set()).add(row.id)
        self.lines.check(self.routes.holds, running)
