"""Retry decisions: the rules of the specification as properties."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from taskpool import NonRetryableError, RetryableError, backoff_for, is_retryable
from taskpool.clock import US
from taskpool.core import retry
from taskpool.model import Options, RetryPolicy, TaskError, default_retry_policy, no_retry

NOW = 1_700_000_000 * US

policies = st.builds(
    RetryPolicy,
    initial_interval=st.floats(0, 1e6),
    backoff_coefficient=st.floats(1, 100),
    maximum_interval=st.floats(0, 1e6),
    maximum_attempts=st.integers(0, 50),
    non_retryable_error_kinds=st.sampled_from([(), ("handler",), ("panic", "timeout")]),
    jitter=st.floats(0, 1),
)
kinds = st.sampled_from(["handler", "panic", "timeout", "memory", "heartbeat", *sorted(retry.NEVER_RETRIED)])
errors = st.builds(TaskError, kind=kinds, retryable=st.booleans(), backoff_s=st.none() | st.floats(0, 1e9))
attempts = st.integers(1, 60)


def test_default_policy_doubles_from_one_second_to_sixty() -> None:
    """The default policy waits 1, 2, 4, 8, 16 s, and never over 60 s."""
    policy = default_retry_policy()
    assert [policy.next_delay(n) for n in (-1, 0, 1, 2, 3, 4, 5, 7, 5000)] == [0, 0, 1, 2, 4, 8, 16, 60, 60]
    assert policy.should_retry(TaskError("handler"), 4)
    assert not policy.should_retry(TaskError("handler"), 5)
    assert not no_retry().should_retry(TaskError("handler"), 1)


@given(policies, st.integers(-5, 10**6))
def test_delays_are_bounded_and_never_shrink(policy: RetryPolicy, attempt: int) -> None:
    """A delay lies within 0..maximum_interval, is finite, and the next is not shorter."""
    delay = retry.next_delay(policy, attempt)
    assert 0 <= delay <= policy.maximum_interval
    assert math.isfinite(delay)
    assert attempt <= 0 or delay <= retry.next_delay(policy, attempt + 1)


@given(policies, errors, attempts)
def test_rules_short_circuit_in_order(policy: RetryPolicy, error: TaskError, attempt: int) -> None:
    """Unlimited and retryable, then the maximum, then the error's own mark, then the listed kinds."""
    expected = (policy.maximum_attempts == 0 and error.retryable) or (
        attempt < policy.maximum_attempts and error.retryable and error.kind not in policy.non_retryable_error_kinds
    )
    assert retry.should_retry(policy, error, attempt) is expected


@given(policies, errors, attempts, st.binary(min_size=16, max_size=16) | st.integers(1))
def test_decisions_repeat(policy: RetryPolicy, error: TaskError, charged: int, uid: bytes | int) -> None:
    """The same failure decides the same, jitter included, and never before now."""
    options = Options(retry=policy)
    due = retry.after_failure(options, error, charged, 0, uid, NOW)
    assert due == retry.after_failure(options, error, charged, 0, uid, NOW)
    assert due is None or due >= NOW


@given(st.floats(0, 1), st.binary(min_size=16, max_size=16), attempts)
def test_jitter_takes_off_at_most_its_fraction(fraction: float, uid: bytes, attempt: int) -> None:
    """A jittered delay lies between (1 - fraction) and the whole delay."""
    delay = retry.jittered(10.0, fraction, uid, attempt)
    assert 10 * (1 - fraction) - 1e-9 <= delay <= 10


def test_jitter_spreads() -> None:
    """Different tasks and attempts get different delays."""
    assert len({retry.jittered(10, 0.5, task, attempt) for task in range(50) for attempt in range(1, 5)}) == 200


@given(errors, attempts)
def test_never_retried_kinds(error: TaskError, charged: int) -> None:
    """What another attempt cannot help is final even without a limit, and so is all of an at-most-once task."""
    unlimited = RetryPolicy(maximum_attempts=0)
    due = retry.after_failure(Options(retry=unlimited), error, charged, 0, 1, NOW)
    assert (due is None) == (error.kind in retry.NEVER_RETRIED or not error.retryable)
    assert retry.after_failure(Options(retry=unlimited, at_most_once=True), error, charged, 0, 1, NOW) is None


def test_own_max_attempts_wins_over_the_policy() -> None:
    """The task's max_attempts comes first, then its policy's, then one; zero or less means one."""
    assert retry.max_attempts(Options()) == 1
    assert retry.max_attempts(Options(retry=RetryPolicy(maximum_attempts=7))) == 7
    assert retry.max_attempts(Options(retry=RetryPolicy(maximum_attempts=7), max_attempts=2)) == 2
    assert retry.max_attempts(Options(retry=RetryPolicy(maximum_attempts=0), max_attempts=2)) == 2
    assert retry.max_attempts(Options(max_attempts=0)) == 1
    assert retry.max_attempts(Options(retry=RetryPolicy(maximum_attempts=0))) == 0
    assert retry.max_attempts(Options(retry=RetryPolicy(maximum_attempts=0), at_most_once=True)) == 1
    options = Options(max_attempts=3, retry=RetryPolicy(maximum_attempts=0))
    assert retry.after_failure(options, TaskError("handler"), 2, 0, 1, NOW) == NOW + 2 * US
    assert retry.after_failure(options, TaskError("handler"), 3, 0, 1, NOW) is None


def test_kinds_listed_by_the_policy_hold_under_an_own_limit() -> None:
    """max_attempts changes the number, not what the policy forbids."""
    options = Options(max_attempts=3, retry=RetryPolicy(non_retryable_error_kinds=("timeout",)))
    assert retry.after_failure(options, TaskError("timeout"), 1, 0, 1, NOW) is None
    assert retry.after_failure(options, TaskError("handler"), 1, 0, 1, NOW) == NOW + US


def test_delay_without_policy_doubles_from_ten_seconds_to_ten_minutes() -> None:
    """2^charged · 5 s, capped."""
    options = Options(max_attempts=10**6)
    delays = [retry.delay_after(options, TaskError("handler"), n, 1) for n in (1, 2, 3, 6, 7, 100_000)]
    assert delays == [10, 20, 40, 320, 600, 600]


def test_the_handlers_own_backoff_wins() -> None:
    """RetryableError(backoff=) decides the delay; nonsense becomes a bound."""
    options = Options(retry=default_retry_policy())
    assert retry.after_failure(options, TaskError("handler", backoff_s=0.25), 1, 0, 1, NOW) == NOW + US // 4
    assert retry.delay_after(options, TaskError("handler", backoff_s=-3), 1, 1) == 0
    assert retry.delay_after(options, TaskError("handler", backoff_s=math.nan), 1, 1) == 0
    assert retry.delay_after(options, TaskError("handler", backoff_s=math.inf), 1, 1) == retry.BACKOFF_S_MAX


def test_panics_end_at_the_crash_limit() -> None:
    """A task that kills its process is given up at crash_limit though attempts remain; other failures are not."""
    options = Options(max_attempts=10)
    assert retry.after_failure(options, TaskError("panic"), 2, 2, 1, NOW) is not None
    assert retry.after_failure(options, TaskError("panic"), 3, 3, 1, NOW) is None
    assert retry.after_failure(options, TaskError("handler"), 3, 3, 1, NOW) is not None


def test_a_retry_past_the_deadline_is_told_apart() -> None:
    """At or after the deadline: LATE, and the error chains the last real one; a final failure stays None."""
    error = TaskError("handler", "no luck")
    options = Options(retry=default_retry_policy(), deadline_at=NOW + US)
    assert retry.after_failure(options, error, 1, 0, 1, NOW) == retry.LATE
    assert retry.after_failure(options, error, 1, 0, 1, NOW - 1) == NOW + US - 1
    assert retry.after_failure(options, error, 5, 0, 1, NOW) is None
    late = retry.past_deadline(error)
    assert (late.kind, late.retryable, late.cause) == ("deadline", False, error)


def chained(outer: BaseException, inner: BaseException) -> BaseException:
    try:
        raise outer from inner
    except BaseException as error:
        return error


def test_a_retryable_error_is_seen_through_what_was_raised_from_it() -> None:
    inner = RetryableError("busy", backoff=3)
    assert is_retryable(inner)
    assert is_retryable(chained(ValueError(), chained(KeyError(), inner)))
    assert not is_retryable(ValueError())
    assert not is_retryable(chained(NonRetryableError(), inner)), "the outermost word counts"
    assert is_retryable(chained(RetryableError(), NonRetryableError()))
    other = ValueError("another matter")
    other.__context__ = inner
    assert not is_retryable(other), "it was only being handled"
    circle = ValueError()
    circle.__cause__ = circle
    assert not is_retryable(circle)


def test_the_default_backoff_doubles_from_ten_seconds_to_ten_minutes() -> None:
    assert [backoff_for(ValueError(), attempt) for attempt in (0, 1, 2, 6, 7, 10**6)] == [5, 10, 20, 320, 600, 600]
    assert backoff_for(chained(ValueError(), RetryableError(backoff=0.5)), 3) == 0.5
    assert backoff_for(RetryableError(), 1) == 10
    assert backoff_for(RetryableError(backoff=float("nan")), 1) == 10
