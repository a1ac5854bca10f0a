"""Faults to plant: each makes the scheduler, or the shell around it, wrong in one way that the simulation must see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import pytest

from taskpool.clock import Instant
from taskpool.core import amend, callers, children, effects, graph, retry, settle
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.admission import Room
from taskpool.core.asked import Asked
from taskpool.core.attempts import Attempts
from taskpool.core.callers import Callers, Loan
from taskpool.core.cron import Cron
from taskpool.core.fleet import Fleet
from taskpool.core.intake import Intake
from taskpool.core.line import Key, Line
from taskpool.core.lines import Lines
from taskpool.core.rate import Rates
from taskpool.core.ready import Ready
from taskpool.core.routing import Routes
from taskpool.core.scheduler import Scheduler
from taskpool.model import Options, Queue, TaskError
from taskpool.supervisor.inbox import Inbox
from taskpool.testing.simulation.graphs import Graphs
from taskpool.testing.simulation.model_store import ModelStore
from taskpool.testing.simulation.shell import Shell
from taskpool.wire import jobs

Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    """Register a fault under its name."""
    FAULTS[plant.__name__] = plant
    return plant


def _wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace owner.name by wrapper(original, *args)."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    patch.setattr(owner, name, wrapped)


# ---- messages -------------------------------------------------------------------------------------------------------


@fault
def reports_are_not_checked_for_their_attempt(patch: pytest.MonkeyPatch) -> None:
    def reported(original: Any, self: Attempts, event: ev.Reported, *rest: Any) -> None:
        box = self._workers.get(event.worker)
        rows = box.sent if box is not None else {}
        reports = [
            msgspec.structs.replace(report, task_id=rows[report.n].id, attempt=rows[report.n].attempt)
            if report.n in rows
            else report
            for report in event.reports
        ]
        original(self, msgspec.structs.replace(event, reports=reports), *rest)

    _wrap(patch, Attempts, "reported", reported)


@fault
def a_crash_is_charged_to_the_whole_mailbox(patch: pytest.MonkeyPatch) -> None:
    def died(original: Any, self: Attempts, event: ev.WorkerDied, *rest: Any) -> None:
        box = self._workers.get(event.worker)
        for row in list(box.sent.values())[1:] if box is not None else ():
            row.crashes += 1
        original(self, event, *rest)

    _wrap(patch, Attempts, "died", died)


@fault
def what_a_dead_worker_had_not_begun_is_lost(patch: pytest.MonkeyPatch) -> None:
    def died(original: Any, self: Attempts, event: ev.WorkerDied, *rest: Any) -> None:
        box = self._workers.get(event.worker)
        if box is not None:
            box.sent = {n: row for n, row in box.sent.items() if n == event.begun}
        original(self, event, *rest)

    _wrap(patch, Attempts, "died", died)


@fault
def what_the_store_refused_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_on_dropped", lambda self, event, now: None)


# ---- durable before visible -----------------------------------------------------------------------------------------


@fault
def starts_are_sent_before_they_are_stored(patch: pytest.MonkeyPatch) -> None:
    def apply(original: Any, self: Shell, commands: list[cmd.Command], now: Instant) -> frozenset[int]:
        early = [command for command in commands if isinstance(command, cmd.Start)]
        send = Shell._send
        send(self, early, now)
        self.engine.step_all()
        self._send = lambda starts, now: None  # type: ignore[method-assign]
        try:
            return original(self, commands, now)  # type: ignore[no-any-return]
        finally:
            del self._send

    _wrap(patch, Shell, "_apply", apply)


@fault
def a_result_in_the_ring_is_not_recovered(patch: pytest.MonkeyPatch) -> None:
    def recovered(original: Any, self: Attempts, event: ev.Recovered, *rest: Any) -> None:
        original(self, msgspec.structs.replace(event, report=None), *rest)

    _wrap(patch, Attempts, "recovered", recovered)


@fault
def what_had_begun_under_a_dead_owner_is_given_back(patch: pytest.MonkeyPatch) -> None:
    def recovered(original: Any, self: Attempts, event: ev.Recovered, *rest: Any) -> None:
        original(self, msgspec.structs.replace(event, begun=False), *rest)

    _wrap(patch, Attempts, "recovered", recovered)


# ---- counting -------------------------------------------------------------------------------------------------------


@fault
def a_failure_is_charged_twice(patch: pytest.MonkeyPatch) -> None:
    def failed(original: Any, row: ev.TaskRow, closed: cmd.Closed, error: TaskError, now: Instant) -> cmd.End:
        row.charged += 1
        return original(row, closed, error, now)  # type: ignore[no-any-return]

    _wrap(patch, settle, "failed", failed)


@fault
def a_returned_attempt_is_charged(patch: pytest.MonkeyPatch) -> None:
    def returned(original: Any, row: ev.TaskRow, pid: int, now: Instant) -> cmd.End:
        row.charged += 1
        return original(row, pid, now)  # type: ignore[no-any-return]

    _wrap(patch, settle, "returned", returned)


@fault
def a_snooze_is_charged(patch: pytest.MonkeyPatch) -> None:
    def snoozed(original: Any, row: ev.TaskRow, *rest: Any) -> cmd.End:
        row.charged += 1
        return original(row, *rest)  # type: ignore[no-any-return]

    _wrap(patch, settle, "_snoozed", snoozed)


@fault
def a_returned_attempt_gives_its_number_back(patch: pytest.MonkeyPatch) -> None:
    def taken_back(original: Any, self: Attempts, event: ev.TakenBack, *rest: Any) -> None:
        box = self._workers.get(event.worker)
        rows = [row for n, row in box.sent.items() if n > event.above] if box is not None else []
        original(self, event, *rest)
        for row in rows:
            row.attempt -= 1

    _wrap(patch, Attempts, "taken_back", taken_back)


@fault
def a_timeout_counts_as_an_interruption(patch: pytest.MonkeyPatch) -> None:
    def died(original: Any, row: ev.TaskRow, death: ev.WorkerDied, now: Instant) -> cmd.End:
        why = "retire" if death.why == "timeout" else death.why
        return original(row, msgspec.structs.replace(death, why=why), now)  # type: ignore[no-any-return]

    _wrap(patch, settle, "died", died)


@fault
def crashes_have_no_limit(patch: pytest.MonkeyPatch) -> None:
    def after_failure(original: Any, options: Options, error: TaskError, charged: int, crashes: int, *rest: Any) -> int | None:
        return original(options, error, charged, 0, *rest)  # type: ignore[no-any-return]

    _wrap(patch, retry, "after_failure", after_failure)


@fault
def a_new_round_keeps_what_was_charged(patch: pytest.MonkeyPatch) -> None:
    def new_round(original: Any, row: ev.TaskRow, now: Instant) -> cmd.Move:
        charged = row.charged
        move: cmd.Move = original(row, now)
        row.charged = move.charged = charged
        return move

    _wrap(patch, settle, "new_round", new_round)


@fault
def an_at_most_once_task_runs_again_after_its_owner_died(patch: pytest.MonkeyPatch) -> None:
    def rescued(original: Any, row: ev.TaskRow, now: Instant) -> cmd.End:
        options = row.options
        row.options = msgspec.structs.replace(options, at_most_once=False)
        try:
            return original(row, now)  # type: ignore[no-any-return]
        finally:
            row.options = options

    _wrap(patch, settle, "rescued", rescued)


@fault
def an_at_most_once_task_is_retried_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    def after_failure(original: Any, options: Options, *rest: Any) -> int | None:
        return original(msgspec.structs.replace(options, at_most_once=False), *rest)  # type: ignore[no-any-return]

    _wrap(patch, retry, "after_failure", after_failure)


# ---- cancel and take-back -------------------------------------------------------------------------------------------


@fault
def a_cancel_in_a_mailbox_is_ignored(patch: pytest.MonkeyPatch) -> None:
    def cancel(original: Any, self: Asked, row: ev.TaskRow, event: ev.CancelAsked, now: Instant, out: list[cmd.Command]) -> None:
        box = self._workers.get(row.worker)
        count = len(out)
        original(self, row, event, now, out)
        if box is not None and row.n in box.sent and next(iter(box.sent)) != row.n:
            del out[count + 1 :]

    _wrap(patch, Asked, "cancel", cancel)


@fault
def a_success_after_a_cancel_is_overwritten(patch: pytest.MonkeyPatch) -> None:
    def reported(original: Any, row: ev.TaskRow, report: jobs.Report, *rest: Any, **how: Any) -> cmd.End:
        if row.cancel_requested_at is not None:
            report = msgspec.structs.replace(report, outcome=jobs.CANCELLED)
        return original(row, report, *rest, **how)  # type: ignore[no-any-return]

    _wrap(patch, settle, "reported", reported)


@fault
def a_cancelled_task_is_retried(patch: pytest.MonkeyPatch) -> None:
    def died(original: Any, row: ev.TaskRow, *rest: Any) -> cmd.End:
        row.cancel_requested_at = None
        return original(row, *rest)  # type: ignore[no-any-return]

    _wrap(patch, settle, "died", died)


@fault
def work_is_sent_before_the_worker_has_passed_what_was_taken_back(patch: pytest.MonkeyPatch) -> None:
    def taken_back(original: Any, self: Attempts, event: ev.TakenBack, *rest: Any) -> None:
        original(self, event, *rest)
        if event.worker in self._workers:
            self._workers[event.worker].taking_back = 0

    _wrap(patch, Attempts, "taken_back", taken_back)


# ---- lines and order ------------------------------------------------------------------------------------------------


@fault
def the_mark_after_a_refill_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def refilled(original: Any, self: Line, keys: list[Key], end: Key | None) -> None:
        original(self, keys, end)
        if end is not None:
            rank, at, task_id = end
            self.mark = (rank, at, task_id + 1)

    _wrap(patch, Line, "refilled", refilled)


@fault
def the_mark_does_not_fall_when_a_line_sheds(patch: pytest.MonkeyPatch) -> None:
    def shed(original: Any, self: Line) -> list[Key]:
        mark = self.mark
        gone: list[Key] = original(self)
        self.mark = mark
        return gone

    _wrap(patch, Line, "shed", shed)


@fault
def the_second_of_a_line_is_taken_first(patch: pytest.MonkeyPatch) -> None:
    def pop(original: Any, self: Line) -> Key | None:
        first: Key | None = original(self)
        second: Key | None = original(self)
        if second is None:
            return first
        assert first is not None
        self.put_back(first)
        return second

    _wrap(patch, Line, "pop", pop)


@fault
def a_task_that_finds_no_room_is_not_put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "put_back", lambda self, row: None)


# ---- time -----------------------------------------------------------------------------------------------------------


@fault
def the_timer_of_the_delayed_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "next_due", lambda self: None)


@fault
def the_timer_of_a_spawn_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fleet, "next_spawn", 0)


@fault
def a_retry_is_not_checked_against_the_deadline(patch: pytest.MonkeyPatch) -> None:
    def after_failure(original: Any, options: Options, *rest: Any) -> int | None:
        return original(msgspec.structs.replace(options, deadline_at=None), *rest)  # type: ignore[no-any-return]

    _wrap(patch, retry, "after_failure", after_failure)


@fault
def a_deadline_that_passes_while_a_task_waits_is_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settle, "overdue", lambda row, now: None)


@fault
def work_is_started_while_the_pool_stops(patch: pytest.MonkeyPatch) -> None:
    def on_dispatch(original: Any, self: Scheduler, now: Instant) -> None:
        if self.stopping:
            self.dispatcher.fill(now)
        original(self, now)

    _wrap(patch, Scheduler, "_on_dispatch", on_dispatch)


# ---- room -----------------------------------------------------------------------------------------------------------


@fault
def what_runs_takes_no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Room, "_count", lambda self, row: None)


@fault
def who_waited_for_room_is_waited_for_though_he_left(patch: pytest.MonkeyPatch) -> None:
    def measure(original: Any, self: Room, boxes: Any, still_waits: Any) -> None:
        original(self, boxes, lambda row: True)

    _wrap(patch, Room, "measure", measure)


# ---- queues ---------------------------------------------------------------------------------------------------------


@fault
def a_paused_queue_is_served(patch: pytest.MonkeyPatch) -> None:
    def set_rules(original: Any, self: Lines, queue: Queue, *rest: Any) -> None:
        original(self, msgspec.structs.replace(queue, paused=False), *rest)

    _wrap(patch, Lines, "set_rules", set_rules)


@fault
def what_workers_hold_does_not_count_against_its_queue(patch: pytest.MonkeyPatch) -> None:
    def measure_room(original: Any, self: Lines, *args: Any) -> None:
        original(self, *args)
        for name, queue in self.queues.items():
            if queue.concurrency is not None and not queue.paused:
                self._room[name] = queue.concurrency

    _wrap(patch, Lines, "measure_room", measure_room)


@fault
def what_is_updated_stands_in_its_line_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "take_out", lambda self, row: None)


@fault
def an_update_of_an_older_version_is_taken(patch: pytest.MonkeyPatch) -> None:
    def refusal(original: Any, row: ev.TaskRow | None, asked: ev.UpdateAsked, queue: Any) -> Any:
        return original(row, msgspec.structs.replace(asked, version=row.version if row is not None else 1), queue)

    _wrap(patch, amend, "refusal", refusal)


@fault
def an_update_lowers_attempts_below_what_was_charged(patch: pytest.MonkeyPatch) -> None:
    def refusal(original: Any, row: ev.TaskRow | None, asked: ev.UpdateAsked, queue: Any) -> Any:
        return original(row, msgspec.structs.replace(asked, options=None), queue)

    _wrap(patch, amend, "refusal", refusal)


@fault
def a_submit_is_stored_in_part(patch: pytest.MonkeyPatch) -> None:
    def unwelcome(original: Any, self: ModelStore, saves: Any, together: Any, *rest: Any) -> set[int]:
        return original(self, saves, (), *rest)  # type: ignore[no-any-return]

    _wrap(patch, ModelStore, "_unwelcome", unwelcome)


@fault
def what_ends_while_it_waits_leaves_no_response(patch: pytest.MonkeyPatch) -> None:
    def move(original: Any, *args: Any, **kwargs: Any) -> cmd.Move:
        return msgspec.structs.replace(original(*args, **kwargs), reply_to="")  # type: ignore[no-any-return]

    _wrap(patch, settle, "move", move)


@fault
def a_task_that_will_run_again_leaves_its_response_now(patch: pytest.MonkeyPatch) -> None:
    def failed(original: Any, row: ev.TaskRow, *args: Any) -> cmd.End:
        return msgspec.structs.replace(original(row, *args), reply_to=row.options.reply_to)  # type: ignore[no-any-return]

    _wrap(patch, settle, "failed", failed)


@fault
def what_is_started_in_a_turn_does_not_count_against_its_queue(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "started", lambda self, row, now: self.keys.started(row) if row.key is not None else None)


@fault
def a_queue_at_its_limit_holds_up_the_others(patch: pytest.MonkeyPatch) -> None:
    def next_row(original: Any, self: Lines) -> ev.TaskRow | None:
        first = next(iter(self._order), "")
        return None if self._order and self._room.get(first, 1) <= 0 else original(self)

    _wrap(patch, Lines, "next", next_row)


@fault
def a_resumed_queue_stays_paused(patch: pytest.MonkeyPatch) -> None:
    def set_rules(original: Any, self: Lines, queue: Queue, *rest: Any) -> None:
        held = self.queues.get(queue.name)
        if held is None or not held.paused:
            original(self, queue, *rest)

    _wrap(patch, Lines, "set_rules", set_rules)


@fault
def retries_of_a_queue_are_given_to_all_its_tasks(patch: pytest.MonkeyPatch) -> None:
    def max_attempts(original: Any, options: Options, queue: Queue | None = None) -> int:
        if queue is not None and queue.max_retry is not None:
            return 1 + queue.max_retry
        return original(options, queue)  # type: ignore[no-any-return]

    _wrap(patch, retry, "max_attempts", max_attempts)


# ---- effects --------------------------------------------------------------------------------------------------------


@fault
def effects_of_a_success_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(effects, "wanted", lambda commands: {})


@fault
def effects_of_what_a_dead_owner_left_are_not_tried(patch: pytest.MonkeyPatch) -> None:
    def told(original: Any, events: list[ev.Event]) -> Any:
        return original([event for event in events if not isinstance(event, ev.Recovered)])

    _wrap(patch, effects, "told", told)


@fault
def an_attempt_whose_effect_fails_succeeds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(effects, "fail", lambda events, failed: None)


@fault
def effects_are_applied_when_they_are_told(patch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the attempt, and again with each message of it."""

    def try_effects(original: Any, self: ModelStore, reports: Any) -> Any:
        self.effects.update(reports.keys())
        return original(self, reports)

    _wrap(patch, ModelStore, "try_effects", try_effects)
    patch.setattr(effects, "wanted", lambda commands: {})


@fault
def a_failed_effect_is_retried_by_any_policy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retry, "NEVER_RETRIED", retry.NEVER_RETRIED - {"effect"})


@fault
def a_policy_that_names_effects_is_not_heard(patch: pytest.MonkeyPatch) -> None:
    def after_failure(original: Any, options: Options, error: TaskError, *rest: Any) -> int | None:
        return None if error.kind == "effect" else original(options, error, *rest)  # type: ignore[no-any-return]

    _wrap(patch, retry, "after_failure", after_failure)


# ---- children -------------------------------------------------------------------------------------------------------


@fault
def children_of_a_success_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(children, "read", lambda report: [])


@fault
def children_of_what_a_dead_owner_left_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "children_of_recovered", lambda self, now, out: None)


@fault
def an_attempt_that_fails_leaves_children(patch: pytest.MonkeyPatch) -> None:
    """Such as one whose effects could not be applied."""

    def read(report: jobs.Report) -> list[Any]:
        return [children.Child(report.task_id, spec, Options()) for spec in report.children or ()]

    patch.setattr(children, "read", read)


@fault
def children_are_refused_like_any_new_task(patch: pytest.MonkeyPatch) -> None:
    def insert(original: Any, self: Intake, *args: Any, of: int = 0, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    _wrap(patch, Intake, "insert", insert)


# ---- schedules ------------------------------------------------------------------------------------------------------


@fault
def how_far_a_schedule_is_is_not_stored_with_its_occurrences(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cron, "advances", lambda self: [])


@fault
def an_occurrence_is_not_stored_with_its_task(patch: pytest.MonkeyPatch) -> None:
    def fire(original: Any, self: Scheduler, now: Instant) -> None:
        original(self, now)
        self._out[:] = [command for command in self._out if not isinstance(command, cmd.Occur)]

    _wrap(patch, Scheduler, "_fire", fire)


@fault
def a_clock_that_jumps_back_starts_a_schedule_anew(patch: pytest.MonkeyPatch) -> None:
    def due(original: Any, self: Cron, now: Instant) -> Any:
        for job in self.jobs.values():
            first = self._next(job.schedule, now.wall)
            if job.next_at is not None and first is not None and first < job.next_at:
                job.next_at = first
                self._arm(job)
        return original(self, now)

    _wrap(patch, Cron, "due", due)


@fault
def a_time_whose_task_found_no_room_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cron, "dropped", lambda self, task_id, now: None)


@fault
def what_was_queued_is_forgotten_with_its_owner(patch: pytest.MonkeyPatch) -> None:
    def opened(original: Any, self: Cron, rows: list[ev.ScheduleRow]) -> Any:
        return original(self, [msgspec.structs.replace(row, queued=[]) for row in rows])

    _wrap(patch, Cron, "opened", opened)


@fault
def missed_times_leave_no_rows(patch: pytest.MonkeyPatch) -> None:
    def due(original: Any, self: Cron, now: Instant) -> Any:
        return (one for one in original(self, now) if not (isinstance(one, cmd.Occur) and one.occurrence.outcome == "skipped"))

    _wrap(patch, Cron, "due", due)


@fault
def the_timer_of_schedules_is_lost(patch: pytest.MonkeyPatch) -> None:
    def next_timer(original: Any, self: Scheduler, now: Instant) -> float | None:
        patch.setattr(Cron, "next_due", lambda self: None)
        try:
            return original(self, now)  # type: ignore[no-any-return]
        finally:
            patch.setattr(Cron, "next_due", next_due)

    next_due = Cron.next_due
    _wrap(patch, Scheduler, "next_timer", next_timer)


# ---- the inbox ------------------------------------------------------------------------------------------------------


@fault
def what_was_taken_out_of_the_inbox_stays_there(patch: pytest.MonkeyPatch) -> None:
    def commit(original: Any, self: ModelStore, *args: Any, plans: Any = (), **how: Any) -> Any:
        return original(self, *args, plans=[plan for plan in plans if not isinstance(plan, cmd.Taken)], **how)

    _wrap(patch, ModelStore, "commit", commit)


@fault
def what_there_is_no_room_for_is_taken_all_the_same(patch: pytest.MonkeyPatch) -> None:
    def commit(original: Any, self: ModelStore, *args: Any, plans: Any = (), **how: Any) -> Any:
        plans = [cmd.Taken(plan.seq, 0) if isinstance(plan, cmd.Taken) else plan for plan in plans]
        return original(self, *args, plans=plans, **how)

    _wrap(patch, ModelStore, "commit", commit)


@fault
def a_guests_commit_is_forgotten_with_the_owners(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Inbox) -> None:
        assert self._watch is not None
        self._watch.drain()

    patch.setattr(Inbox, "settle", settle)


@fault
def the_inbox_is_not_looked_into_at_the_start(patch: pytest.MonkeyPatch) -> None:
    def init(original: Any, self: Inbox, *args: Any, **how: Any) -> None:
        original(self, *args, **how)
        self.due = False

    _wrap(patch, Inbox, "__init__", init)


@fault
def those_without_room_are_not_looked_for_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inbox, "again", lambda self, now_mono: None)


@fault
def only_the_first_rows_of_the_inbox_are_moved(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, ModelStore, "arrivals", lambda original, self, but=(): (original(self, but)[0], False))


# ---- graphs ---------------------------------------------------------------------------------------------------------


@fault
def a_new_step_does_not_wait_for_its_parents(patch: pytest.MonkeyPatch) -> None:
    def placed(original: Any, step: Any, flow: Any, ids: Any, due_at: int, options: Options) -> Any:
        return original(step, flow, ids, due_at, options)[0], due_at

    _wrap(patch, graph, "placed", placed)


@fault
def a_new_round_does_not_wait_for_its_parents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph, "hold", lambda *args: None)


@fault
def what_needs_a_success_that_did_not_come_starts(patch: pytest.MonkeyPatch) -> None:
    def decided(original: Any, row: ev.TaskRow, step: ev.DueStep, now: Instant) -> cmd.Move:
        return original(row, msgspec.structs.replace(step, culprit=0), now)  # type: ignore[no-any-return]

    _wrap(patch, graph, "decided", decided)


@fault
def a_step_is_cancelled_though_its_parents_ended_well(patch: pytest.MonkeyPatch) -> None:
    def decided(original: Any, row: ev.TaskRow, step: ev.DueStep, now: Instant) -> cmd.Move:
        return original(row, msgspec.structs.replace(step, culprit=1), now)  # type: ignore[no-any-return]

    _wrap(patch, graph, "decided", decided)


@fault
def a_step_that_falls_with_its_flow_is_said_to_be_cancelled_by_somebody(patch: pytest.MonkeyPatch) -> None:
    def cancel(original: Any, self: Asked, row: ev.TaskRow, event: ev.CancelAsked, now: Instant, out: list[cmd.Command]) -> None:
        original(self, row, msgspec.structs.replace(event, upstream=False), now, out)

    _wrap(patch, Asked, "cancel", cancel)


@fault
def whoever_asks_last_is_the_one_who_cancelled(patch: pytest.MonkeyPatch) -> None:
    def cancel(original: Any, self: Asked, row: ev.TaskRow, event: ev.CancelAsked, now: Instant, out: list[cmd.Command]) -> None:
        original(self, row, event, now, out)
        row.upstream = event.upstream

    _wrap(patch, Asked, "cancel", cancel)


@fault
def how_a_step_fell_is_forgotten_by_its_end(patch: pytest.MonkeyPatch) -> None:
    def cancelled(original: Any, row: ev.TaskRow, closed: cmd.Closed, error: TaskError | None, now: Instant) -> cmd.End:
        end: cmd.End = original(row, closed, error, now)
        assert end.extras is not None
        if end.extras.finish_reason == "upstream":
            end.extras.finish_reason = "user"
        return end

    _wrap(patch, settle, "_cancelled", cancelled)


@fault
def steps_whose_parents_have_ended_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ready, "steps_due", lambda self, event, now, out: None)


@fault
def a_step_that_may_start_still_counts_as_waiting(patch: pytest.MonkeyPatch) -> None:
    def decided(original: Any, row: ev.TaskRow, step: ev.DueStep, now: Instant) -> cmd.Move:
        command = original(row, step, now)
        command.held = None if command.to in ("queued", "pending") else command.held
        return command  # type: ignore[no-any-return]

    _wrap(patch, graph, "decided", decided)


@fault
def a_step_starts_while_one_of_its_parents_lives(patch: pytest.MonkeyPatch) -> None:
    def foreseen(self: Graphs, ended: Collection[int]) -> list[ev.DueStep]:
        found = [(task_id, step.place) for task_id, step in self.steps.items() if step.held]
        mine = [(task_id, place) for task_id, place in found if any(parent in ended for parent, _, _ in place.parents)]
        return [ev.DueStep(copy.copy(self._tasks[task_id].row), place.due_at) for task_id, place in mine]

    patch.setattr(Graphs, "foreseen", foreseen)


@fault
def a_step_that_starts_still_counts_as_waiting(patch: pytest.MonkeyPatch) -> None:
    def admit(original: Any, self: Ready, now: Instant, out: list[cmd.Command]) -> None:
        original(self, now, out)
        self.freed.clear()

    _wrap(patch, Ready, "admit_freed", admit)


# ---- callers that run attempts themselves -----------------------------------------------------------------------------


@fault
def a_caller_that_leaves_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Callers, "gone", lambda self, client, worker: [])


@fault
def what_a_caller_overruns_is_not_given_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Callers, "due", lambda self, now: [])


@fault
def nobody_thinks_of_when_a_caller_must_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Callers, "next_due", lambda self, now: None)


@fault
def a_caller_is_given_up_too_early(patch: pytest.MonkeyPatch) -> None:
    def limits(original: Any, self: Loan, now: Instant) -> Any:
        return ((at - 10_000_000, why) for at, why in original(self, now))

    _wrap(patch, Loan, "limits", limits)


@fault
def a_caller_takes_what_is_not_due(patch: pytest.MonkeyPatch) -> None:
    def refusal(original: Any, row: Any, event: Any, obstacle: str, now: Instant, *, stopping: bool) -> Any:
        return original(row, event, obstacle, now._replace(wall=now.wall + 10**12), stopping=stopping)

    _wrap(patch, callers, "refusal", refusal)


@fault
def a_caller_passes_the_limits_of_queues(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "obstacle", lambda self, row, now: "")


# ---- rates of queues ----------------------------------------------------------------------------------------------------


@fault
def a_start_takes_no_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rates, "take", lambda self, name, mono: None)


@fault
def tokens_are_not_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rates, "spent", lambda self, now: [])


@fault
def nobody_thinks_of_the_next_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "watch_tokens", lambda self, now, aside: None)


@fault
def what_never_began_gives_two_tokens_back(patch: pytest.MonkeyPatch) -> None:
    def give_back(original: Any, self: Rates, name: str, started_at: int) -> None:
        original(self, name, started_at)
        original(self, name, started_at)

    _wrap(patch, Rates, "give_back", give_back)


# ---- targets ------------------------------------------------------------------------------------------------------------


@fault
def targets_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Routes, "diverts", lambda self, row, box: False)


@fault
def what_stands_aside_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Routes, "first_for", lambda self, box, lines: None)


@fault
def what_stands_aside_passes_those_before_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "first_of", lambda self, queue: None)
