"""Whether and when a failed task runs again: pure functions of its options, its error and its counts.

Jitter is a hash of (task, attempt), so that a replay of the same events sees the same delays.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from taskpool.clock import US
from taskpool.core.digest import digest
from taskpool.errors import NonRetryableError, RetryableError
from taskpool.model import Options, Queue, RetryPolicy, TaskError

# Another attempt would meet the same fate: only a policy that names the kind, or a retry by hand, brings such a task back …
RETRIED_IF_SAID: Final = frozenset(("decode", "unknown_handler", "arg_count", "arg_type", "result", "effect"))
# … or nobody wants it: by hand alone.
NEVER_RETRIED: Final = RETRIED_IF_SAID | {"cancelled", "deadline", "expired", "upstream"}
KINDS: Final = NEVER_RETRIED | {"handler", "panic", "timeout", "memory", "heartbeat", "interrupted"}  # of failures

DELAY_S_BASE: Final = 5.0  # without a policy: 2^charged · 5 s …
DELAY_S_MAX: Final = 600.0  # … capped at ten minutes
BACKOFF_S_MAX: Final = 10 * 366 * 86400.0  # what a handler may ask for; a bound that keeps instants in 64 bits

CAUSES_MAX: Final = 50  # links of a chain of exceptions that are looked at
_get_cause = vars(BaseException)["__cause__"].__get__  # past what a class may define in its place

LATE: Final = 0  # answer of `after_failure`: a retry is due, but could only start when the deadline has passed


def next_delay(policy: RetryPolicy, attempt: int) -> float:
    """Return the seconds to wait after the attempt-th charged attempt: exponential, capped, without jitter; 0 for attempt ≤ 0."""
    if attempt <= 0:
        return 0.0
    try:
        delay = policy.initial_interval * policy.backoff_coefficient ** (attempt - 1)
    except OverflowError:
        delay = math.inf if policy.initial_interval > 0 else 0.0
    return max(0.0, min(delay, policy.maximum_interval))


def should_retry(policy: RetryPolicy, error: TaskError, attempt: int) -> bool:
    """Return whether a failed attempt (the attempt-th charged one) warrants another. The first rule that applies decides."""
    if policy.maximum_attempts == 0 and error.retryable:
        return True
    if attempt >= policy.maximum_attempts:
        return False
    if not error.retryable:
        return False
    return error.kind not in policy.non_retryable_error_kinds


def max_attempts(options: Options, queue: Queue | None = None) -> int:
    """Return how many charged attempts the task may have (0: any number): its own, its policy's, one and its queue's retries, 1."""
    if options.at_most_once:
        return 1
    if options.max_attempts is not None:
        return max(1, options.max_attempts)
    if options.retry is not None:
        return options.retry.maximum_attempts
    return 1 + queue.max_retry if queue is not None and queue.max_retry is not None else 1


def said_by(error: BaseException) -> BaseException | None:
    """Return the RetryableError or NonRetryableError that an exception is, or that it was raised `from`: the outermost of them.

    What was merely being handled when it was raised says nothing of it. Wary: the exception may be anybody's.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < CAUSES_MAX:
        if issubclass(type(link), RetryableError | NonRetryableError):
            return link
        seen.add(id(link))
        link = _get_cause(link)
    return None


def is_retryable(error: BaseException) -> bool:
    """Return whether an exception is a RetryableError, or was raised from one (and not from a NonRetryableError before that)."""
    said = said_by(error)
    return said is not None and issubclass(type(said), RetryableError)


def backoff_for(error: BaseException, attempt: int) -> float:
    """Return the seconds before the next attempt: those of its RetryableError, else 2^attempt · 5 s, at most ten minutes."""
    said = said_by(error)
    backoff = getattr(said, "backoff", None)
    if isinstance(backoff, int | float) and 0 <= backoff < math.inf:
        return float(backoff)
    return default_delay(attempt)


def default_delay(attempt: int) -> float:
    """Return the seconds after the attempt-th charged attempt where no policy says otherwise."""
    return min(2.0 ** min(max(0, attempt), 62) * DELAY_S_BASE, DELAY_S_MAX)


def jittered(delay_s: float, fraction: float, uid: bytes | int, attempt: int) -> float:
    """Return the delay less up to `fraction` of it, by a hash of the task (its uid or id) and the attempt."""
    if fraction <= 0 or delay_s <= 0:
        return delay_s
    task = uid if isinstance(uid, bytes) else b"%d" % uid
    drawn = digest(b"%d:%b" % (attempt, task), 8)
    return delay_s * (1.0 - min(fraction, 1.0) * int.from_bytes(drawn, "little") / 2**64)


def delay_after(options: Options, error: TaskError, charged: int, uid: bytes | int, queue: Queue | None = None) -> float:
    """Return the seconds until the next attempt: what the handler asked for, by its policy, by its queue, or doubling."""
    if error.backoff_s is not None:
        # min and max pass NaN through by the order of their arguments: written so that NaN becomes 0.
        return min(max(0.0, error.backoff_s), BACKOFF_S_MAX)
    if options.retry is None:
        if queue is not None and queue.retry_delay is not None:
            return queue.retry_delay
        return default_delay(charged)
    return min(jittered(next_delay(options.retry, charged), options.retry.jitter, uid, charged), BACKOFF_S_MAX)


def after_failure(
    options: Options, error: TaskError, charged: int, crashes: int, uid: bytes | int, now_wall: int, queue: Queue | None = None
) -> int | None:
    """Return when a failed task is due again (wall µs), None when the failure is final, or LATE (falsy too).

    LATE: another attempt is warranted but could only start at or after `deadline_at`; the task ends with `past_deadline(error)`.
    charged and crashes include this failure; uid is whatever names the task for ever; queue: its queue's rules, if it has any.
    """
    if options.at_most_once:
        return None
    if error.kind in NEVER_RETRIED:
        if options.retry is None or error.kind not in options.retry.retryable_error_kinds:
            return None
        error = msgspec.structs.replace(error, retryable=True)
    if error.kind == "panic" and crashes >= options.crash_limit:
        return None
    policy = options.retry or _BARE
    limit = max_attempts(options, queue)
    if limit != policy.maximum_attempts:
        policy = RetryPolicy(maximum_attempts=limit, non_retryable_error_kinds=policy.non_retryable_error_kinds)
    if not should_retry(policy, error, charged):
        return None
    due = now_wall + round(delay_after(options, error, charged, uid, queue) * US)
    if options.deadline_at is not None and due >= options.deadline_at:
        return LATE
    return due


def past_deadline(error: TaskError) -> TaskError:
    """Return the error of a task that has no time left for a retry: kind deadline, with its last real error chained."""
    return TaskError(kind="deadline", message="no time was left to try again before the deadline", retryable=False, cause=error)


_BARE: Final = RetryPolicy(maximum_attempts=1)
