"""The scheduler: handle(event, now) -> commands. It decides and touches nothing.

State changes only inside `handle`. Time is an argument; jitter is a hash; two runs of the same events give the same commands.
The shell stores the Save commands of a turn in one transaction, then acts on the rest, and calls `handle(Dispatch())` once, last.
Late and double messages are normal: each carries the number, task and attempt it speaks of, and one that does not match is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from taskpool.clock import NS, US, Instant
from taskpool.core import callers, retry, settle
from taskpool.core import events as ev
from taskpool.core.admission import Room
from taskpool.core.asked import Asked
from taskpool.core.attempts import Attempts
from taskpool.core.callers import Callers
from taskpool.core.commands import (
    Agree,
    CancelLive,
    Checkpoint,
    Command,
    Kill,
    Occur,
    Start,
    Taken,
)
from taskpool.core.cron import Cron, NextAfter, never
from taskpool.core.dispatch import Dispatcher
from taskpool.core.ending import Ending
from taskpool.core.events import TaskRow
from taskpool.core.fleet import IDLE_NS, Fleet
from taskpool.core.intake import Intake
from taskpool.core.lifecycle import RUNNING, TERMINAL
from taskpool.core.line import LINE_MAX
from taskpool.core.mailbox import DEPTH_MAX, Mailbox
from taskpool.core.ready import Ready
from taskpool.core.table import Table

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
        self.cron = Cron(next_after)
        self.table = Table(line_max, self.cron)
        self.tasks, self.lines, self.routes = self.table.rows, self.table.lines, self.table.routes
        self.room = room or Room(0, 0)
        self.fleet = Fleet(size, spares, size_max, idle_ns, labels)
        self.workers = self.fleet.workers
        self.callers = Callers(self.workers)
        self.ending = Ending(self.workers, self.callers, grace_s)
        self.intake = Intake(self.table)
        self.dispatcher = Dispatcher(
            self.lines, self.routes, self.room, self.workers, depth_max, start=self._start, ends=self._end_if_overdue
        )
        self.durations = self.dispatcher.durations
        self.asked = Asked(self.table, self.workers, self.callers, self.dispatcher, self.intake.claims, self.cron, grace_s)
        self.attempts = Attempts(self.table, self.fleet, self.callers, self.ending, self.intake, self.durations)
        self.ready = Ready(self.table, self.asked.cancel)
        self._out: list[Command] = []

    # ---- the door ---------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: Instant) -> list[Command]:
        """Take one event; return what follows from it, in order."""
        out: list[Command] = []
        self._out = out
        if self.ready.freed and not isinstance(event, (ev.StepsDue, ev.Dispatch)):
            self.ready.queue_freed(now, out)  # whatever else may be said of them meets them as the store will have them
        match event:
            case ev.Reported():
                self.attempts.reported(event, now, out)
            case ev.Submitted():
                self.intake.submitted(event, now, out)
            case ev.Dispatch():
                self._on_dispatch(now)
            case ev.Arrived():
                for seq, spec, options in zip(event.seqs, event.specs, event.options, strict=True):
                    out.append(Taken(seq, self.intake.insert(spec, options, now.wall, [], out)))
                out += [Taken(seq, 0) for seq in event.known]
            case ev.StepsDue():
                if not self.stopping:  # else the next owner finds them
                    self.ready.steps_due(event, now, out)
            case ev.Passed():
                self._on_passed(event, now)
            case ev.TakenBack():
                self.attempts.taken_back(event, now, out)
            case ev.Saved():
                self._on_saved(event)
            case ev.WorkerReady():
                self.fleet.ready(event.worker, event.pid)
            case ev.WorkerDied():
                self.attempts.died(event, now, out)
            case ev.WorkerFailed():
                self.fleet.failed(event.worker, now)
            case ev.CancelAsked():
                self.asked.cancel_all(event, now, out)
            case ev.RetryAsked():
                self.asked.retry(event, now, out)
            case ev.UpdateAsked():
                self.asked.update(event, now, out)
            case ev.HandlersKnown():
                for row in self.routes.learn(event.names):
                    self.table.wait(row)
            case ev.ExecuteAsked():
                self.callers.asked.append(event)
            case ev.CallerSpoke():
                self.callers.spoke(event.worker, event.client, event.extend_ns, now)
            case ev.CallerGone():
                for loan in self.callers.gone(event.client, event.worker):
                    self.attempts.give_up(loan, callers.GONE, now, out)
            case ev.Refilled():
                self.lines.refilled(event.queue, event.rows, event.more, event.key)
            case ev.Recovered():
                self.attempts.recovered(event, now, out)
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
                out += self.cron.opened(event.rows)
            case ev.CronAsked():
                self._on_cron(event, now)
            case ev.StopAsked():
                out += self.ending.ask(event.grace_s, now)
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
        return task_id in self.table.rows or task_id in self.table.gone

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
        self.intake.next_id = event.next_id
        for queue in event.queues:
            self.lines.open(queue)
        self.attempts.children_of_recovered(now, self._out)

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
            self.table.disown(row)
        for row in event.rows:
            self.tasks[row.id] = row
            self.lines.take_out(row)  # its line may have been read meanwhile, or still hold its old place
            self.table.wait(row)

    # ---- workers ----------------------------------------------------------------------------------------------------

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

    # ---- schedules --------------------------------------------------------------------------------------------------

    def _on_cron(self, event: ev.CronAsked, now: Instant) -> None:
        """Answer for a schedule; a run by hand is a task at once."""
        if event.verb == "run" and self.stopping:
            self._out.append(Agree(event.client, event.seq, [], "pool_stopped", "the pool is stopping"))
            return
        commands, firing = self.cron.asked(event, now)
        ids: list[int] = []
        if firing is not None:
            self.intake.insert(firing.spec, firing.options, now.wall, ids, self._out)
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
                task_id = self.intake.insert(command.spec, command.options, now.wall, [], self._out)
                self._out.append(self.cron.fired(command, task_id, now))

    # ---- the end of a turn ------------------------------------------------------------------------------------------

    def _on_dispatch(self, now: Instant) -> None:
        self._settle_overdue(now)
        for loan, why in self.callers.due(now):
            self.attempts.give_up(loan, why, now, self._out)
        self._out += self.callers.soft(now)
        if self.stopping:
            self._lend(now)
            self.dispatcher.stuck_at = None
            self._out += self.ending.go_on(now)
            self.table.gone.clear()
            self.intake.claims.clear()
            self.ready.freed.clear()  # the next owner finds them
            self._out += self.cron.advances()
            self._out += self.lines.rates.spent(now)
            return
        self._fire(now)
        self._lend(now)
        self.ready.admit_due(now, self._out)
        self.ready.admit_freed(now, self._out)
        self.fleet.activate()
        self.dispatcher.fill(now)
        if not self.ending.halted:
            self._out += self.fleet.scale(self.lines.startable(self.fleet.size_max), now)
            self._out += self.fleet.spawn(now)
        self._out += self.dispatcher.take_back_stuck(now)
        self.ready.queue_rest(now, self._out)
        self.table.gone.clear()
        self.intake.claims.clear()
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
            row = self.table.find(event.id) or event.row
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
        self.table.ended(row)
        self.table.forget(row)
        return True

    def _start(self, box: Mailbox, row: TaskRow, expected: int | None, now: Instant) -> None:
        if not box.sent and box.caller is None:
            self.room.take(row)
        row.attempt += 1
        n = box.push(row, expected, now.mono)
        freed_at = row.scheduled_at if row.id in self.ready.freed else None
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
