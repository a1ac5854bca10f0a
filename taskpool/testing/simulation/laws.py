"""The promises of the scheduler, stated once more and on their own: by what truly happened, not by what the scheduler holds.

Each write is judged before the model store takes it; the whole is judged after each turn. The rules of counting are those of the
specification, written here a second time on purpose.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from taskpool.clock import NS, US, Instant
from taskpool.core import commands as cmd
from taskpool.core.cron import SLICE_MAX
from taskpool.core.events import TaskRow
from taskpool.core.fleet import SPAWN_BACKOFF_MAX_NS
from taskpool.core.lifecycle import CANCELLED, FAILED, PENDING, QUEUED, RETRYING, RUNNING, SUCCEEDED, TERMINAL, WAITING
from taskpool.core.mailbox import Mailbox
from taskpool.core.scheduler import Scheduler
from taskpool.model import Schedule, TaskSpec
from taskpool.testing.simulation import children
from taskpool.testing.simulation.counting import (
    CHARGED,
    OUTCOMES,
    allowed_attempts,
    check_mark,
    check_policy,
    check_reason,
    in_words,
    outcomes,
    warrants_retry,
)
from taskpool.testing.simulation.effects import must_fail
from taskpool.testing.simulation.fates import CRASH, Fate, Fates, LawBroken, obey
from taskpool.testing.simulation.graphs import Stored
from taskpool.testing.simulation.keys import is_beyond, is_free, waits_for_key, waits_for_line
from taskpool.testing.simulation.model_engine import ALIVE, ModelEngine, ModelJob
from taskpool.testing.simulation.model_store import ModelStore, place
from taskpool.testing.simulation.paces import Paces
from taskpool.wire import jobs

TIMER_SLACK_S = 1e-5  # instants are whole µs
SPAWN_WAIT_S_MAX = SPAWN_BACKOFF_MAX_NS / NS


class Laws:
    """The witness of all that is written. `begun` counts the bodies of each (task, round)."""

    def __init__(self, fates: Fates) -> None:
        self.fates = fates
        self.store: ModelStore
        self.scheduler: Scheduler | None = None  # this life's
        self.stopping = False  # the scheduler of this life was told to stop
        self.found_no_room = False  # in this life the store refused something
        self.begun: dict[tuple[int, int], int] = {}
        self.guests: set[bytes] = set()  # uids of what guests' transactions committed
        self.effects: Counter[tuple[int, int]] = Counter()  # attempts that succeeded and had any
        self.children: set[bytes] = set()  # uids of what the successes have spawned
        self.kept: dict[int, int] = {}  # succeeded task → version that must stay, until a retry by force
        self.forced: set[int] = set()  # tasks that a client may retry although they succeeded
        self.asked: set[int] = set()  # tasks that a client or a schedule has cancelled
        self.served: list[str] = []  # queues of the starts of this turn, in order, also of those that the store refused
        self.served_aside: set[str] = set()  # queues of those that may stand aside: that was a turn, but it passed nobody
        self.schedules: dict[str, Schedule] = {}  # as they were added
        self.meddled: set[str] = set()  # of these, what was paused: not all of their times happen
        self.paces = Paces()
        self._queued: dict[str, set[int]] = {}  # by queue, what was queued in memory after the last turn
        self._passed: dict[str, set[str]] = {}  # by queue that waits, the queues that were served since it was
        self._lacked = False  # somebody who found no room waited after the last turn

    def new_life(self) -> None:
        """Another supervisor takes over."""
        self.stopping = self.found_no_room = False
        self.served.clear()
        self.served_aside.clear()
        self._queued.clear()
        self._passed.clear()

    # ---- while it is written ----------------------------------------------------------------------------------------

    def start(self, row: TaskRow, save: cmd.Start) -> None:
        """Start: recorded before it begins, in order, in time, never while the pool stops, and under a new number."""
        who, options = f"task {row.id}", row.options
        obey(not self.stopping, f"{who} was started while the pool stops")
        obey(not self.store.is_closed(row.queue), f"{who} was started though queue {row.queue} is paused or at its limit")
        self._waits_not(row)
        self.paces.start(self.store.queues.get(row.queue), row.id, save)
        obey(save.attempt == row.attempt + 1, f"{who} goes from attempt {row.attempt} to {save.attempt}")
        obey(row.cancel_requested_at is None, f"{who} was started after a cancel")
        for at in (options.deadline_at, None if self._has_begun(row) else options.expires_at):
            obey(at is None or save.at < at, f"{who} was started after its time")
        due_at = row.scheduled_at
        if save.freed_at is not None:
            due_at = save.freed_at
            obey(self.store.graphs.steps[row.id].place.due_at <= save.at, f"{who} was started before its time had come")
        else:
            obey(not self.store.graphs.is_held(row.id), f"{who} was started, and waits for its parents still")
        obey(row.status == QUEUED or due_at <= save.at, f"{who} was started before it is due")
        key = place(row) if row.status == QUEUED else (row.rank, due_at, row.id)
        rows = [stored.row for stored in self.store.tasks.values()]
        # What was to be replaced in this turn, and is not, had left its key; it keeps it again from now on.
        judged = [other for other in rows if other.id not in self.store.refusing or other.status == RUNNING]
        obey(is_free(row, judged, save.at, strict=True), f"{who} was started while others hold its key {row.key}")
        for other in rows if save.caller is None else ():  # a caller names the task
            if other.options.target:
                continue  # it may stand aside
            if other.status != QUEUED or other.queue != row.queue or place(other) >= key:
                continue
            waits = other.key in self.store.lost_keys or waits_for_key(other, rows, save.at)
            obey(
                other.id in self.store.refusing or waits or self._is_beyond(other),
                f"{who} {key} was started before task {other.id} {place(other)} of its queue",
            )

    def move(self, row: TaskRow, save: cmd.Move) -> None:
        """Any other change: why a waiting task may end, and who may bring an ended one back."""
        who, options = f"task {row.id}", row.options
        reason = save.extras.finish_reason if save.extras is not None else None
        if save.to == CANCELLED and (reason == "upstream" or (save.error is not None and save.error.kind == "upstream")):
            obey(reason == "upstream" and save.error is not None, f"{who} is cancelled by halves")
            obey(
                self.store.graphs.culprits(row.id),
                f"{who} was cancelled for its parents, of which none ended otherwise than it needs",
            )
        elif save.to == QUEUED or save.held is False:
            self._waits_not(row)
        elif save.to == RUNNING and row.cancel_requested_at is None:
            check_mark(save, who, asked=row.id in self.asked, falls=self.store.graphs.culprits(row.id))
        if row.status == SUCCEEDED:
            obey(row.id in self.forced, f"{who} had succeeded and was changed")
        if row.status in TERMINAL:
            obey(save.held or not self.store.graphs.has_parents(row.id), f"the new round of {who} does not wait for its parents")
            extras = save.extras
            obey(save.charged == 0 and extras is not None and extras.round == row.round + 1, f"{who}: a new round counts anew")
        if save.to == QUEUED and row.status in (PENDING, RETRYING):
            hastened = save.scheduled_at is not None
            obey(hastened or row.scheduled_at <= save.at, f"{who} was queued before it is due")
        if save.to == FAILED:
            late = options.deadline_at is not None and save.at >= options.deadline_at
            obey(late and save.error is not None and save.error.kind == "deadline", f"{who} failed while it waited, without reason")
        if save.to == CANCELLED and save.extras is not None and save.extras.finish_reason == "expired":
            late = options.expires_at is not None and save.at >= options.expires_at
            obey(late and not self._has_begun(row), f"{who} was said to have expired")

    def _waits_not(self, row: TaskRow) -> None:
        """A task that waits for its parents goes on when all have ended, and each as it needs."""
        graphs = self.store.graphs
        if row.id in graphs.steps and graphs.steps[row.id].held:
            obey(not any(graphs.counts(row.id)), f"task {row.id} goes on, and its parents are {graphs.edges(row.id)}")

    def end(self, row: TaskRow, save: cmd.End) -> None:
        """The end of an attempt: it says what happened, charges what counts, and goes on by policy."""
        closed, outcome = save.closed, save.closed.outcome
        fate = self.fates.of(row.id, closed.attempt)
        if not fate.begun:
            self.paces.returned(row.queue, row.id, closed.attempt)
        who = f"attempt {closed.attempt} of task {row.id}"
        allowed = outcomes(fate, row)
        if outcome == "succeeded" and fate.report is not None and fate.report.effects:
            self.effects[row.id, closed.attempt] += 1
        if outcome == "succeeded":
            self.children.update(children.expected(fate.report))
        if self.stopping and allowed == ("cancelled",) and row.cancel_requested_at is None:
            allowed = ("cancelled", "stopped")  # it gave up by its own wish just when it was to be told to
        obey(outcome in allowed, f"{who} ended {outcome}, but it was {in_words(fate, row)}")
        if outcome == "cancelled":
            check_reason(row, save, who)
        obey(save.to in OUTCOMES[outcome], f"{who} ended {outcome}, and its task became {save.to}")
        charged = row.charged + (outcome in CHARGED)
        obey(save.charged == charged, f"{who} ended {outcome}, and {save.charged} attempts were charged, not {charged}")
        limit = allowed_attempts(row.options, self.store.queues.get(row.queue))
        obey(limit == 0 or charged <= limit, f"{who}: {charged} of {limit} attempts were charged")
        extras = save.extras or cmd.Extras()
        if outcome != "cancelled":
            crashes = row.crashes + (fate.end == CRASH and outcome in CHARGED)
            obey(extras.crashes == crashes, f"{who}: {extras.crashes} crashes were counted, not {crashes}")
            interruptions = row.interruptions + (outcome == "interrupted")
            obey(extras.interruptions == interruptions, f"{who}: {extras.interruptions} interruptions, not {interruptions}")
            snoozes = row.snoozes + (outcome == "snoozed")
            obey(extras.snoozes == snoozes, f"{who}: {extras.snoozes} snoozes, not {snoozes}")
        if outcome in ("failed", "retrying"):
            self._retry(row, save, fate, who, extras)
        if outcome in ("stopped", "interrupted"):
            check_policy(row, save, who, extras)
        if outcome == "snoozed":
            in_time = row.options.deadline_at is None or (save.scheduled_at or 0) < row.options.deadline_at
            obey(in_time, f"{who} was snoozed beyond its deadline")

    def _retry(self, row: TaskRow, save: cmd.End, fate: Fate, who: str, extras: cmd.Extras) -> None:
        """A failure is retried if, and only if, the rules of retrying say so; never at or after the deadline."""
        error = save.closed.error
        if fate.report is not None and fate.report.outcome == jobs.SNOOZED:
            return  # a snooze that is refused is final
        obey(error is not None, f"{who} failed without an error")
        assert error is not None
        obey(
            error.kind == "effect" or fate.report is None or not must_fail(fate.report),
            f"{who} failed by {error.kind}, not an effect",
        )
        queue = self.store.queues.get(row.queue)
        wanted = warrants_retry(row.options, queue, error, save.charged, extras.crashes)
        deadline = row.options.deadline_at
        if save.to == RETRYING:
            due = save.scheduled_at
            obey(wanted, f"{who} is retried against its policy")
            obey(due is not None and due >= save.at, f"{who} is retried at {due}")
            delay_s = None if queue is None or row.options.retry is not None or error.backoff_s is not None else queue.retry_delay
            obey(delay_s is None or due == save.at + delay_s * US, f"{who} is retried at {due}, not after its queue's {delay_s} s")
            obey(deadline is None or (due or 0) < deadline, f"{who} is retried at or after its deadline")
        elif wanted:
            late = save.error is not None and save.error.kind == "deadline" and deadline is not None
            obey(late, f"{who} is not retried, against its policy")

    def body_begins(self, job: ModelJob) -> None:
        """A body begins: its start is recorded, it is the task's latest, and no number begins twice."""
        who = f"attempt {job.attempt} of task {job.task_id}"
        obey(job.task_id in self.store.tasks, f"{who} begins, and the task is not stored")
        row = self.store.tasks[job.task_id].row
        obey(not self.fates.of(job.task_id, job.attempt).begun, f"{who} begins a second time")
        recorded = row.status == RUNNING and row.attempt == job.attempt
        obey(recorded, f"{who} begins, and the store says {row.status}, attempt {row.attempt}")
        key = (row.id, row.round)
        self.begun[key] = self.begun.get(key, 0) + 1
        if row.options.at_most_once:
            obey(self.begun[key] == 1, f"{who} begins, though the task runs at most once")

    def _has_begun(self, row: TaskRow) -> bool:
        """Return whether a body of the task ever began, by what truly happened; where nobody can know, that counts as begun."""
        fates = (self.fates.of(row.id, attempt) for attempt in range(1, row.attempt + 1))
        return any(fate.void or fate.begun for fate in fates)

    def answered(self, spec: TaskSpec, task_id: int) -> None:
        """A client is told under which id its task is stored: its own, or the one that has its unique key."""
        stored = self.store.tasks[task_id]
        mine = self.store.uids.get(spec.uid) == task_id
        obey(
            mine or (spec.unique is not None and stored.row.unique == spec.unique),
            f"a client is told of task {task_id}, not of its own",
        )

    # ---- after each turn --------------------------------------------------------------------------------------------

    def turn(self, scheduler: Scheduler, engine: ModelEngine, now: Instant, refused: frozenset[int]) -> None:
        """Judge the whole: memory is what is stored, nobody is forgotten, no worker idles beside work, timers are set."""
        obey(self.store.effects == self.effects, "effects are not those of the successes, once each")
        spawned = children.found((*self.store.uids, *self.store.pruned.values()))
        obey(spawned == self.children, "what was spawned is not what the successes leave")
        for row in scheduler.tasks.values():
            if row.id not in refused:
                self._same(row)
        for task_id, stored in self.store.tasks.items():
            row = stored.row
            if row.status in WAITING and task_id not in refused:  # of these the scheduler has yet to hear
                self._remembered(scheduler, row)
            elif row.status == RUNNING:
                obey(task_id in scheduler.tasks, f"task {task_id} runs, and the scheduler does not know it")
                self._cancel_is_on_its_way(scheduler, engine, row)
        ghosts = Counter(row.queue for row in scheduler.tasks.values() if row.id in refused and row.status == RUNNING)
        closed = {row.queue for row in scheduler.tasks.values() if self.store.is_closed(row.queue, ghosts[row.queue])}
        rows = [*({task_id: stored.row for task_id, stored in self.store.tasks.items()} | scheduler.tasks).values()]
        queued = [row for row in scheduler.tasks.values() if row.status == QUEUED]
        waiting = {row.id for row in queued if waits_for_key(row, rows) or waits_for_line(scheduler, row)}
        closed |= self.paces.closed(scheduler, closed, now, waiting)
        lacking = self._without_room(scheduler, closed, waiting)
        closed |= lacking
        if lacking or self._lacked:  # who waited for room goes first when there is some
            self._passed.clear()
            self.served.clear()
            self.served_aside.clear()
        self._lacked = bool(lacking) or scheduler.room.held is not None
        self._queues_take_turns(scheduler, closed, waiting)
        if not scheduler.stopping:
            for line in (*scheduler.lines.ready.values(), scheduler.lines.delayed):
                obey(len(line) <= line.cap, f"a line holds {len(line)} of {line.cap} rows")
            self._work_is_given_out(scheduler, closed, waiting)
        self._timers(scheduler, now, refused)

    def _same(self, held: TaskRow) -> None:
        stored = self.store.tasks.get(held.id)
        obey(stored is not None, f"task {held.id} is held, and is not stored")
        assert stored is not None
        mine, theirs = _stored_fields(held), _stored_fields(stored.row)
        if mine != theirs:
            field, here, there = next(one for one in zip(_STORED_FIELDS, mine, theirs, strict=True) if one[1] != one[2])
            raise LawBroken(f"task {held.id}: {field} is {here!r} in memory, {there!r} in the store")

    def _remembered(self, scheduler: Scheduler, row: TaskRow) -> None:
        if row.id in scheduler.tasks or scheduler.stopping or self.store.graphs.is_out_of_line(row):
            return
        line = scheduler.lines.ready.get(row.queue) if row.status == QUEUED else scheduler.lines.delayed
        beyond = line is not None and line.mark is not None and place(row) > line.mark
        beyond = beyond or (row.status == QUEUED and is_beyond(scheduler, row, place(row)))
        obey(beyond, f"task {row.id} ({row.status}, {place(row)}) is forgotten")

    def _is_beyond(self, row: TaskRow) -> bool:
        """Return whether only the store has a task yet, of a key whose beginning memory holds: it is asked for now."""
        return self.scheduler is not None and row.status == QUEUED and is_beyond(self.scheduler, row, place(row))

    def _cancel_is_on_its_way(self, scheduler: Scheduler, engine: ModelEngine, row: TaskRow) -> None:
        """A running task that is to be cancelled is being signalled, or will not begin, or its end is already known."""
        if row.cancel_requested_at is None or engine.news:
            return
        held = scheduler.tasks[row.id]
        box = engine.workers.get(held.worker)
        if box is None or box.state != ALIVE or box.has_ended(held.n):
            return
        ends = box.limit < held.n or any(n == held.n for _, n, why in box.kills if why == "cancel")
        obey(ends, f"task {row.id} is to be cancelled, and nobody tells worker {held.worker}")

    def _work_is_given_out(self, scheduler: Scheduler, closed: set[str], waiting: set[int]) -> None:
        idle = [box.worker for box in scheduler.workers.values() if not box.sent and box.takes_work()]
        if idle:
            rows = [row for row in scheduler.tasks.values() if row.status == QUEUED]
            closed_for = waiting | {row.id for row in rows if row.queue in closed}
            queued = [row.id for row in rows if row.id not in closed_for and not row.options.target]
            obey(not queued, f"worker {idle[0]} is idle, and tasks {queued} wait")
            labels = {label for worker in idle for label in scheduler.workers[worker].labels}
            aside = [row.id for row in rows if row.id not in closed_for and row.options.target in labels]
            obey(not aside, f"a worker is idle that tasks {aside} are for")

    def _without_room(self, scheduler: Scheduler, closed: set[str], waiting: set[int]) -> set[str]:
        """Judge that what runs fits the machine, and return the queues that wait for room, or for one that does.

        Whoever needs memory waits behind a first of another queue that has none; everybody waits behind one that has no processor.
        """
        room = scheduler.room
        running = [next(iter(box.sent.values())) for box in scheduler.workers.values() if box.sent and _counts(box)]
        cpus = sum(min(row.options.cpus or 1.0, room.cpus) for row in running)
        memory = sum(min(row.options.memory or 0, room.memory) for row in running)
        obey(cpus <= room.cpus, f"{[row.id for row in running]} keep {cpus} processors busy, of {room.cpus}")
        obey(memory <= room.memory, f"{[row.id for row in running]} need {memory} bytes, of {room.memory}")
        firsts: dict[str, TaskRow] = {}
        for row in scheduler.tasks.values():
            if row.status == QUEUED and row.queue not in closed and row.id not in waiting:
                first = firsts.get(row.queue)
                if first is None or place(row) < place(first):
                    firsts[row.queue] = row
        if any(cpus + min(row.options.cpus or 1.0, room.cpus) > room.cpus for row in firsts.values()):
            return set(firsts)
        if any(memory + min(row.options.memory or 0, room.memory) > room.memory for row in firsts.values()):
            return {queue for queue, row in firsts.items() if row.options.memory is not None}
        return set()

    def _queues_take_turns(self, scheduler: Scheduler, closed: set[str], waiting: set[int]) -> None:
        """No queue is served twice while another that has work in memory, and may start it, is served not once."""
        queued: dict[str, set[int]] = {}
        for row in scheduler.tasks.values():
            if row.status == QUEUED and row.queue not in closed and row.id not in waiting and not row.options.target:
                queued.setdefault(row.queue, set()).add(row.id)
        for queue, before in self._queued.items():
            if queue in self.served or queue in self.served_aside or before.isdisjoint(queued.get(queue, ())):
                self._passed.pop(queue, None)
                continue
            passed = self._passed.setdefault(queue, set())
            for other in self.served:
                obey(other not in passed, f"queue {other} was served twice while queue {queue} waited")
                passed.add(other)
        self._queued = queued
        self.served.clear()
        self.served_aside.clear()

    def _timers(self, scheduler: Scheduler, now: Instant, refused: frozenset[int]) -> None:
        """What is due by itself is due no later than the scheduler's next timer."""
        due = []
        for row in scheduler.tasks.values():
            if row.status in (PENDING, RETRYING) and not scheduler.stopping:
                due.append(row.scheduled_at)
            if row.status in WAITING:
                limits = (row.options.deadline_at, None if self._has_begun(row) else row.options.expires_at)
                due += [at for at in limits if at is not None]
        self.found_no_room = self.found_no_room or bool(refused)
        if not self.found_no_room and not scheduler.stopping:  # else some wait to be tried again
            due += self._schedules_due(scheduler)
        timer = scheduler.next_timer(now)
        workers = sum(not box.leaving for box in scheduler.workers.values())
        if workers < scheduler.fleet.size and not scheduler.stopping:
            obey(timer is not None and timer <= SPAWN_WAIT_S_MAX, f"{workers} workers, and nobody thinks of starting more")
        if due:
            wait = (min(due) - now.wall) / US
            obey(
                timer is not None and timer <= max(wait, 0.0) + TIMER_SLACK_S,
                f"something is due in {wait} s, the timer says {timer}",
            )

    def _schedules_due(self, scheduler: Scheduler) -> list[int]:
        """Return when each schedule is to be looked at; memory is as far with it as the store."""
        due = []
        for name, job in scheduler.cron.jobs.items():
            kept = self.store.schedules[name]
            mine, theirs = (job.next_at, job.total, job.err_count), (kept.next_at, kept.total, kept.err_count)
            obey(mine == theirs, f"schedule {name} is at {mine} in memory, at {theirs} in the store")
            if kept.next_at is not None:
                due.append(kept.next_at + round(kept.jitter_s * US))
        return due

    # ---- in the end -------------------------------------------------------------------------------------------------

    def all_ended(self) -> None:
        """When all faults have stopped, every task comes to an end, and every begun body has its row."""
        obey(self.guests <= {*self.store.uids, *self.store.pruned.values()}, "tasks that guests have committed are lost")
        for task_id, stored in self.store.tasks.items():
            obey(stored.row.status in TERMINAL, f"task {task_id} stays {stored.row.status} for ever")
            obey(not self.store.graphs.is_held(task_id), f"task {task_id} is {stored.row.status} and waits for its parents")
            self._history(task_id, stored)
        for name in self.schedules:
            self._occurrences(name)

    def _occurrences(self, name: str) -> None:
        """Each planned time up to where the schedule is has its row, and no other: nothing is lost, nothing comes twice."""
        kept = self.store.schedules.get(name)
        if kept is None:
            return
        rows = [one for (schedule, _), one in self.store.occurrences.items() if schedule == name]
        fired = [one.task_id for one in rows if one.outcome == "fired"]
        obey(len(fired) == len(set(fired)) == kept.total, f"schedule {name} counts {kept.total} tasks; it made {len(fired)}")
        obey(all(one.outcome != "queued" for one in rows), f"schedule {name} left an occurrence in its queue for ever")
        planned = sorted(one.planned_at for one in rows if one.reason != "by hand")
        period, start = int(kept.spec[len("@every ") : -1]) * US, kept.created_at // US * US
        obey(all((at - start) % period == 0 for at in planned), f"schedule {name} occurred between its times")
        if name not in self.meddled and len(planned) < SLICE_MAX:
            last = planned[-1] if planned else start
            obey(planned == list(range(start + period, last + 1, period)), f"schedule {name} lost a time")

    def _history(self, task_id: int, stored: Stored) -> None:
        row, attempts = stored.row, stored.attempts
        obey(list(attempts) == list(range(1, row.attempt + 1)), f"task {task_id} has the attempts {list(attempts)}")
        obey(all(attempts.values()), f"task {task_id} has an attempt without an end")
        obey(stored.result == (row.status == SUCCEEDED), f"task {task_id} is {row.status}; it has a result: {stored.result}")
        for attempt in attempts:
            fate = self.fates.of(task_id, attempt)
            obey(fate.void or fate.begun == (attempts[attempt] != "returned") or attempts[attempt] == "cancelled", "begun unseen")


_STORED_FIELDS = tuple(field for field in TaskRow.__struct_fields__ if field not in ("worker", "n", "started_at", "rules"))
_stored_fields = attrgetter(*_STORED_FIELDS)


def _counts(box: Mailbox) -> bool:
    """Return whether what a worker does counts against the machine: of callers' tasks, those that say what they need."""
    options = next(iter(box.sent.values())).options
    return not box.leaving or (box.caller is not None and (options.cpus is not None or options.memory is not None))
