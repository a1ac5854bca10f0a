"""What may become of an attempt, and what counts: the rules of the specification, written a second time on purpose."""

from __future__ import annotations

from taskpool.core import commands as cmd
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    PENDING,
    QUEUED,
    RETRYING,
    SUCCEEDED,
)
from taskpool.model import Options, Queue, TaskError
from taskpool.testing.simulation.effects import must_fail
from taskpool.testing.simulation.fates import CRASH, GONE, LOST, REPORTED, Fate, obey
from taskpool.wire import jobs

CHARGED = ("succeeded", "failed", "retrying")  # outcomes that count against max_attempts
OUTCOMES = {
    "succeeded": (SUCCEEDED,),
    "failed": (FAILED,),
    "retrying": (RETRYING,),
    "cancelled": (CANCELLED,),
    "returned": (QUEUED,),
    "snoozed": (PENDING,),
    "stopped": (PENDING, FAILED, INTERRUPTED),
    "interrupted": (PENDING, FAILED, INTERRUPTED),
}


def allowed_attempts(options: Options, queue: Queue | None) -> int:
    """Return how many charged attempts the specification grants (0: any number)."""
    if options.at_most_once:
        return 1
    if options.max_attempts is not None:
        return options.max_attempts if options.max_attempts >= 1 else 1
    if options.retry is not None:
        return options.retry.maximum_attempts
    return 1 if queue is None or queue.max_retry is None else 1 + queue.max_retry


def outcomes(fate: Fate, row: TaskRow) -> tuple[str, ...]:
    """Return how an attempt may be recorded, by what truly happened to it."""
    cancelled = row.cancel_requested_at is not None
    if fate.void:
        return ("cancelled",) if cancelled else ("interrupted",)
    if fate.end == REPORTED and fate.report is not None:
        return _reported(jobs.ERROR if must_fail(fate.report) else fate.report.outcome, fate, cancelled=cancelled)
    if cancelled:
        return ("cancelled",)
    if not fate.begun:
        return ("returned",)
    if fate.end in (CRASH, "timeout", "deadline", "heartbeat", "memory"):
        return ("retrying", "failed")
    return {LOST: ("interrupted",), GONE: ("interrupted",), "stop": ("stopped",), "cancel": ("cancelled",)}.get(fate.end, ())


def _reported(outcome: int, fate: Fate, *, cancelled: bool) -> tuple[str, ...]:
    if outcome == jobs.OK:
        return ("succeeded",)
    if cancelled:
        return ("cancelled",)
    if outcome == jobs.CANCELLED:
        if not fate.told_to_stop and not fate.orphan:
            return ("cancelled",)
        return ("stopped",) if fate.begun else ("returned",)
    if outcome == jobs.SNOOZED:
        return ("snoozed", "failed")
    return ("retrying", "failed")


def in_words(fate: Fate, row: TaskRow) -> str:
    """Return what truly happened to an attempt."""
    words = [fate.end or "running" if fate.begun else "never begun"]
    words += [f"reported {fate.report.outcome}"] if fate.report is not None else []
    words += ["to be cancelled"] if row.cancel_requested_at is not None else []
    words += ["void"] if fate.void else []
    return ", ".join(words)


def warrants_retry(options: Options, queue: Queue | None, error: TaskError, charged: int, crashes: int) -> bool:
    """Return whether the specification grants another attempt (§7), time left aside."""
    if options.at_most_once or error.kind in ("decode", "deadline"):
        return False
    if error.kind == "effect" and (options.retry is None or "effect" not in options.retry.retryable_error_kinds):
        return False
    if error.kind == "panic" and crashes >= options.crash_limit:
        return False
    limit = allowed_attempts(options, queue)
    if limit == 0 and error.retryable:
        return True
    listed = options.retry is not None and error.kind in options.retry.non_retryable_error_kinds
    return charged < limit and error.retryable and not listed


def check_mark(save: cmd.Move, who: str, *, asked: bool, falls: bool) -> None:
    """Raise LawBroken unless a running task is to be cancelled by somebody, or because its flow falls, whichever it says."""
    assert save.extras is not None
    if save.extras.upstream:
        obey(falls, f"{who} is to be cancelled with its flow, of which no step has failed")
    else:
        obey(asked, f"{who} is said to be cancelled by somebody, and nobody has asked for it")


def check_reason(row: TaskRow, save: cmd.End, who: str) -> None:
    """Raise LawBroken unless what was cancelled says by whom: by itself, by who asked first, or by the failure of its flow."""
    reason = "handler" if row.cancel_requested_at is None else "upstream" if row.upstream else "user"
    said = save.extras.finish_reason if save.extras is not None else None
    obey(said == reason, f"{who} was cancelled by {reason}, and is said to be by {said}")
    kind = "upstream" if reason == "upstream" else "cancelled"
    obey(save.error is not None and save.error.kind == kind, f"{who} was cancelled by {reason}, and its error says otherwise")


def check_policy(row: TaskRow, save: cmd.End, who: str, extras: cmd.Extras) -> None:
    """Raise LawBroken unless what was stopped or interrupted goes on as its on_interrupt says."""
    options = row.options
    policy = "hold" if options.at_most_once else options.on_interrupt
    if policy == "rerun" and extras.interruptions < options.max_interruptions:
        wanted = PENDING
    else:
        wanted = FAILED if policy == "fail" else INTERRUPTED
    obey(save.to == wanted, f"{who} was interrupted; its policy {policy} says {wanted}, not {save.to}")
