"""Options of tasks are checked where they are said, merged by strength, and packed once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from taskpool.clock import US
from taskpool.core.retry import max_attempts
from taskpool.doors.options import NOTHING_SAID, Said, heard
from taskpool.errors import InvalidTask
from taskpool.model import Options, RetryPolicy

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
NOON_US = 1_893_499_200 * US


class Broken(Exception):
    """Somebody's own exception."""


def said(**given: Any) -> Said:
    return NOTHING_SAID.plus(given)


def unpacked(options: Said) -> Options:
    return msgspec.msgpack.decode(options.packed()[0], type=Options)


def test_saying_nothing_packs_to_nothing() -> None:
    assert NOTHING_SAID.packed() == (b"", 0)
    assert said(queue="q", priority=3).packed() == (b"", 0)
    assert NOTHING_SAID.plus({}) is NOTHING_SAID


def test_each_option_finds_its_field() -> None:
    policy = RetryPolicy(maximum_attempts=3)
    options = said(
        timeout=timedelta(minutes=1),
        soft_timeout=50,
        heartbeat_timeout=5.5,
        max_attempts=0,
        retry=policy,
        retry_on=(OSError, "pkg.Own"),
        no_retry_on=Broken,
        on_interrupt="fail",
        crash_limit=2,
        max_interruptions=4,
        tags="one",
        headers={"a": "b"},
        trace_ctx={"traceparent": "00"},
        label="7",
    )
    assert unpacked(options) == Options(
        timeout_s=60.0,
        soft_timeout_s=50.0,
        heartbeat_timeout_s=5.5,
        max_attempts=1,
        retry=policy,
        retry_on=("OSError", "pkg.Own"),
        no_retry_on=(f"{__name__}.Broken",),
        on_interrupt="fail",
        crash_limit=2,
        max_interruptions=4,
        tags=("one",),
        headers={"a": "b"},
        trace_ctx={"traceparent": "00"},
        label="7",
    )


def test_instants_and_what_counts_from_the_submit() -> None:
    options = said(at=NOON, deadline=NOON + timedelta(hours=1))
    assert options.packed()[1] == NOON_US
    assert unpacked(options).deadline_at == NOON_US + 3600 * US
    relative = said(delay=10, deadline=60, expires=timedelta(seconds=30))
    packed, due = relative.packed()
    instants = msgspec.msgpack.decode(packed, type=Options)
    assert instants.deadline_at is not None
    assert instants.expires_at is not None
    assert instants.deadline_at - due == 50 * US
    assert instants.expires_at - due == 20 * US
    assert relative.fixed is None
    assert said(delay=0).packed() == (b"", 0)


def test_the_stronger_wins() -> None:
    """The handler's decorator, then the pool's view, then the call's own."""
    handler = said(timeout=10, max_attempts=5, queue="slow", delay=30)
    call = said(timeout=20, at=NOON)
    merged = call.over(handler)
    assert (merged.queue, unpacked(merged).timeout_s, unpacked(merged).max_attempts) == ("slow", 20.0, 5)
    assert merged.packed()[1] == NOON_US
    assert unpacked(handler.plus({"timeout": None})).timeout_s is None
    assert NOTHING_SAID.over(handler) is handler


def test_a_policy_that_is_said_later_brings_its_own_number_of_attempts() -> None:
    """The task's own max_attempts or retry goes before the handler's max_attempts or retry, whichever of them each says."""
    few, many, policy = said(max_attempts=2), said(max_attempts=9), said(retry=RetryPolicy(maximum_attempts=7))
    assert max_attempts(unpacked(policy.over(few))) == 7
    assert max_attempts(unpacked(few.plus({"retry": RetryPolicy(maximum_attempts=7)}))) == 7
    assert max_attempts(unpacked(policy.over(few.over(many)))) == 7
    under_own_limit = unpacked(few.over(policy))
    assert (max_attempts(under_own_limit), under_own_limit.retry) == (2, RetryPolicy(maximum_attempts=7))
    assert max_attempts(unpacked(few.plus({"retry": None}))) == 2, "no policy says nothing of a number"
    both = few.plus({"retry": RetryPolicy(maximum_attempts=7), "max_attempts": 3})
    assert max_attempts(unpacked(both)) == 3


def test_at_most_once_holds() -> None:
    assert unpacked(said(at_most_once=True)).on_interrupt == "hold"
    for conflict in ({"max_attempts": 2}, {"retry": RetryPolicy()}, {"on_interrupt": "rerun"}):
        with pytest.raises(InvalidTask, match="at_most_once"):
            said(at_most_once=True).plus(conflict)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"timout": 3}, "did you mean timeout"),
        ({"queue": ""}, "queue must be a name"),
        ({"queue": "a\n"}, "queue must be a name"),
        ({"queue": 3}, "queue must be a name"),
        ({"priority": "high"}, "priority must be a whole number"),
        ({"priority": True}, "priority must be a whole number"),
        ({"timeout": 0}, "timeout must be a number of seconds"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": "60"}, "timeout must be"),
        ({"timeout": 5, "soft_timeout": 5}, "must be shorter than timeout"),
        ({"delay": -1}, "delay must be"),
        ({"delay": 1, "at": NOON}, "exclude each other"),
        ({"at": datetime(2030, 1, 1)}, "must know its time zone"),
        ({"at": 5}, "must be a datetime"),
        ({"deadline": -5}, "deadline must be"),
        ({"deadline": "tomorrow"}, "deadline must be"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number"),
        ({"retry": 3}, "max_attempts= is the short way"),
        ({"retry": RetryPolicy(jitter=2)}, "jitter must be within"),
        ({"retry": RetryPolicy(initial_interval=float("inf"))}, "finite"),
        ({"retry": RetryPolicy(non_retryable_error_kinds=("handlr",))}, "cannot name 'handlr' .*handler"),
        ({"retry": RetryPolicy(non_retryable_error_kinds="handler")}, "must be a tuple of kinds: 'handler'"),  # type: ignore[arg-type]
        ({"retry": RetryPolicy(non_retryable_error_kinds=(5,))}, "cannot name 5"),  # type: ignore[arg-type]
        ({"retry": RetryPolicy(retryable_error_kinds="effect")}, "must be a tuple of kinds"),  # type: ignore[arg-type]
        ({"retry_on": 3}, "takes one or several"),
        ({"retry_on": [int]}, "exception classes"),
        ({"on_interrupt": "stop"}, "'rerun' or 'hold' or 'fail'"),
        ({"at_most_once": "yes"}, "True or False"),
        ({"crash_limit": 0}, "crash_limit must be a whole number from 1"),
        ({"tags": [""]}, "tags must be texts"),
        ({"tags": 3}, "takes one or several"),
        ({"headers": {"a": 1}}, "mapping of texts"),
        ({"label": 7}, "label must be a text"),
    ],
)
def test_nonsense_is_refused_in_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        said(**wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "cpu", "priority": -2, "max_attempts": 3, "tags": ["a", "b"], "label": "x"},
        {"timeout": 60, "soft_timeout": timedelta(seconds=50), "heartbeat_timeout": 5, "headers": {"a": "b"}},
        {"retry": RetryPolicy(maximum_attempts=0, non_retryable_error_kinds=("panic",)), "retry_on": [Broken, KeyError]},
        {"at_most_once": True},
        {"delay": 1, "deadline": timedelta(hours=1), "expires": NOON},
        {"at": NOON},
    ],
)
def test_what_a_decorator_says_can_be_told_to_others(options: dict[str, Any]) -> None:
    """A client that knows only a handler's name hears its options over the wire."""
    known = said(**options)
    told = known.told()
    assert told is not None
    again = heard(msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=type(told)))
    assert (again.queue, again.priority, again._moments) == (known.queue, known.priority, known._moments)
    assert again._options == known._options
    assert NOTHING_SAID.told() is None
