"""Why a task waits: a word for listings, and an explanation in sentences. Pure functions of what the store says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from taskpool.clock import US
from taskpool.core.lifecycle import PENDING, QUEUED, RETRYING, RUNNING
from taskpool.model import Explanation, Queue, Reason, Status, Task

# The words: Task.wait_reason, and Reason.code.
TIME: Final = "time"
SNOOZE: Final = "snooze"
RETRY: Final = "retry"
PARENTS: Final = "parents"
PAUSED: Final = "paused"
QUEUE_LIMIT: Final = "queue limit"
RATE: Final = "rate"
TARGET: Final = "target"
HANDLER: Final = "handler"  # only the pool that lacks it can say so
KEY: Final = "key"
WORKER: Final = "worker"
SERVER: Final = "server"  # only a reader can say so: nobody owns the store

HOLDERS_MAX: Final = 5  # tasks that are named
AHEAD_MAX: Final = 10_000  # tasks that are counted


class KeyHolder(msgspec.Struct, frozen=True):
    """A task that has a serialization key. since: wall µs, of one that runs; None: it keeps the key until its next attempt."""

    id: int
    since: int | None


class Place(msgspec.Struct, frozen=True):
    """What surrounds a task: its queue's rules, how many tasks of it run, the first of those, and how many stand before it.

    parents: of a task that waits for them: id, name, status; key_holders: who has its key.
    """

    queue: Queue
    running: int = 0
    holders: tuple[int, ...] = ()
    ahead: int = 0
    parents: tuple[tuple[int, str, str], ...] = ()
    free_at: int | None = None  # when (wall µs) its queue's rate lets the next task start
    key_holders: tuple[KeyHolder, ...] = ()


def in_its_way(task: Task, holders: Sequence[KeyHolder]) -> tuple[KeyHolder, ...]:
    """Return those of the holders of its key that a task waits for: none of them while there are fewer than its limit."""
    keeps_it = any(holder.id == task.id for holder in holders)
    others = tuple(one for one in holders if one.id != task.id and (one.since is not None or not keeps_it))
    return others if len(others) >= task.options.key_limit else ()


def reason(
    status: str, snoozes: int, queue: Queue | None, running: int, free_in: int = 0, *, target: str = "", key_taken: bool = False
) -> str | None:
    """Return in a word what a task waits for, None if it does not wait.

    running: tasks of its queue that run; free_in: µs until the queue's rate lets the next one start; target: its own.
    """
    if status == RETRYING:
        return RETRY
    if status == PENDING:
        return SNOOZE if snoozes else TIME
    if status != QUEUED:
        return None
    if queue is not None:
        if queue.paused:
            return PAUSED
        if queue.concurrency is not None and running >= queue.concurrency:
            return QUEUE_LIMIT
        if queue.rate is not None and free_in > 0:
            return RATE
    if key_taken:
        return KEY
    return TARGET if target else WORKER


def explain(task: Task, place: Place, now: int) -> Explanation:
    """Return why a task stands where it stands (now: wall µs): the first reason as a sentence, then all of them."""
    status = task.status.value
    if status == RUNNING:
        reasons = _running(task, now)
    elif task.status.is_terminal:
        reasons = [_ended(task)]
    else:
        reasons = _waiting(task, place, now) + _limits(task, now)
    return Explanation(task.id, status, f"task {task.id} {reasons[0].detail}", tuple(reasons))


def without_server(explanation: Explanation) -> Explanation:
    """Return the explanation of a live task whose store nobody serves."""
    first = Reason(SERVER, "waits for a server: nobody owns its store")
    return Explanation(explanation.id, explanation.status, f"task {explanation.id} {first.detail}", (first, *explanation.reasons))


def with_reason(explanation: Explanation, reason: Reason) -> Explanation:
    """Return an explanation of a task that waits in its queue with a further reason: before that it waits for a worker."""
    reasons = list(explanation.reasons)
    at = next((index for index, one in enumerate(reasons) if one.code == WORKER), len(reasons))
    reasons.insert(at, reason)
    return Explanation(explanation.id, explanation.status, f"task {explanation.id} {reasons[0].detail}", tuple(reasons))


def _running(task: Task, now: int) -> list[Reason]:
    since = f" for {_span(now - task.started_at)}" if task.started_at else ""
    reasons = [Reason(RUNNING, f"runs on worker {task.worker_id}{since}, attempt {task.attempt}")]
    if task.cancel_requested_at is not None:
        reasons.append(Reason("cancel", f"its cancel was asked for {_span(now - task.cancel_requested_at)} ago"))
    return reasons


def _ended(task: Task) -> Reason:
    why = f": {task.error}" if task.error is not None else ""
    return Reason(task.status.value, f"has ended {task.status.value}{why}")


def _waiting(task: Task, place: Place, now: int) -> list[Reason]:
    if task.wait_reason == PARENTS:
        return [_parents(place)]
    reasons = []
    left = task.scheduled_at - now
    if task.status.value == RETRYING:
        of = "" if task.max_attempts == 0 else f" of {task.max_attempts}"
        why = f" ({task.error})" if task.error is not None else ""
        reasons.append(Reason(RETRY, f"failed{why}; attempt {task.charged + 1}{of} is due {_due(left)}"))
    elif task.status.value == PENDING and left > 0:
        code, words = (SNOOZE, "was put off by its handler") if task.snoozes else (TIME, "waits for its time")
        reasons.append(Reason(code, f"{words}: due {_due(left)}"))
    return reasons + _in_queue(task, place, now)


def _parents(place: Place) -> Reason:
    live = [f"{parent} ({name}, {status})" for parent, name, status in place.parents if not Status(status).is_terminal]
    named = ", ".join(live[:HOLDERS_MAX]) + (", …" if len(live) > HOLDERS_MAX else "")
    done = f"{len(place.parents) - len(live)} of {len(place.parents)} have ended"
    return Reason(PARENTS, f"waits for its parents, of which {done}" + (f"; it waits for {named}" if live else ""))


def _in_queue(task: Task, place: Place, now: int) -> list[Reason]:
    queue = place.queue
    reasons = []
    if queue.paused:
        reasons.append(Reason(PAUSED, f"waits because queue {queue.name!r} is paused"))
    if queue.concurrency is not None and place.running >= queue.concurrency:
        named = ", ".join(map(str, place.holders)) + (", …" if place.running > len(place.holders) else "")
        words = f"waits for queue {queue.name!r}, of which {place.running} of at most {queue.concurrency} tasks run: {named}"
        reasons.append(Reason(QUEUE_LIMIT, words))
    if queue.rate is not None and place.free_at is not None and place.free_at > now:
        pace = f"which starts {queue.rate:g} tasks a second at most"
        words = f"waits for queue {queue.name!r}, {pace}: the next {_due(place.free_at - now)}"
        reasons.append(Reason(RATE, words))
    if blocking := in_its_way(task, place.key_holders):
        named = "; ".join(_holder(holder, now) for holder in blocking[:HOLDERS_MAX]) + (
            "; …" if len(blocking) > HOLDERS_MAX else ""
        )
        reasons.append(Reason(KEY, f"waits for serialization key {task.key!r}, held by {named}"))
    before = f"{place.ahead} or more" if place.ahead >= AHEAD_MAX else place.ahead or "no"
    tasks = "task stands" if place.ahead == 1 else "tasks stand"
    reasons.append(Reason(WORKER, f"waits for a worker; {before} {tasks} before it in queue {queue.name!r}"))
    return reasons


def _holder(holder: KeyHolder, now: int) -> str:
    if holder.since is None:
        return f"task {holder.id}, which keeps it until its next attempt"
    return f"task {holder.id} for {_span(now - holder.since)}"


def _limits(task: Task, now: int) -> list[Reason]:
    """What will end the waiting, if nothing else does."""
    moments = (("deadline", "must have ended", task.options.deadline_at), ("expires", "must have started", task.options.expires_at))
    return [Reason(code, f"{words} {_due(at - now)}") for code, words, at in moments if at is not None]


def _due(left: int) -> str:
    return f"in {_span(left)}" if left > 0 else "now"


def _span(us: int) -> str:
    """Return a duration in one unit."""
    seconds = max(0, us) / US
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
