"""Why a body failed, as data.

Everything here is wary: an exception is an object of the user's, whose `__str__` may raise, exit or give 100 MB, whose chain may be
a circle, whose class may not survive pickling, and which may claim to be of another (hence no isinstance). Whatever it does short
of ending the process, a TaskError comes out.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from taskpool.core.retry import said_by
from taskpool.errors import RetryableError
from taskpool.model import SECONDS_MAX, Options, TaskError
from taskpool.wire.limits import CAUSES_MAX, EXCEPTION_BYTES_MAX, MESSAGE_BYTES_MAX, TRACEBACK_BYTES_MAX
from taskpool.worker.interrupt import call_body

FRAMES_MAX = 200  # of one traceback: the first few and the last
FRAMES_FIRST = 20

# Past what a class may define in their place.
_get_cause, _get_context, _get_traceback, _is_suppressed = (
    vars(BaseException)[name].__get__ for name in ("__cause__", "__context__", "__traceback__", "__suppress_context__")
)


def handler_error(error: BaseException, options: Options) -> TaskError:
    """Return the TaskError of an exception that a handler raised. options: whose retry_on and no_retry_on apply."""
    try:
        return TaskError(
            kind="handler",
            message=message_of(error),
            retryable=is_retryable(error, options),
            type_name=type_name(type(error)),
            traceback=formatted(error),
            exception=_pickled(error),
            cause=_cause_of(error),
            backoff_s=_backoff_of(error),
        )
    except BaseException:  # something more hostile than all that was thought of
        return TaskError(kind="handler", message="(the exception cannot be described)", type_name=type_name(type(error)))


def final_error(kind: str, error: BaseException, message: str = "") -> TaskError:
    """Return a TaskError that no retry can help: the call could not be read or made, or its result not be sent."""
    return TaskError(kind=kind, message=message or message_of(error), retryable=False, type_name=type_name(type(error)))


def is_retryable(error: BaseException, options: Options) -> bool:
    """Return whether another attempt may help: as it says, or what it was raised from, else by the task's options, else yes."""
    said = said_by(error)
    if said is not None:
        return issubclass(type(said), RetryableError)
    if not options.retry_on and not options.no_retry_on:
        return True
    names = {name for cls in type(error).__mro__ for name in (type_name(cls), _text(cls.__name__), _full_name(cls))}
    if names.intersection(options.no_retry_on):
        return False
    return not options.retry_on or bool(names.intersection(options.retry_on))


def message_of(error: BaseException) -> str:
    """Return an exception's own words, cut to MESSAGE_BYTES_MAX."""
    return _cut(_safe_str(error), MESSAGE_BYTES_MAX)


def type_name(cls: type) -> str:
    """Return the qualified name of a class; bare for builtins."""
    name = _full_name(cls)
    return name.removeprefix("builtins.")


def _full_name(cls: type) -> str:
    try:
        module, qualname = _text(cls.__module__), _text(cls.__qualname__)
    except BaseException:
        return "builtins.object"
    return f"{'__main__' if module == '__mp_main__' else module}.{qualname}"[:300]


def _safe_str(value: Any) -> str:
    try:
        return _text(str(value))
    except BaseException as problem:
        return f"(its __str__ raised {type_name(type(problem))})"


def _text(value: Any) -> str:
    """Return a plain str that can be encoded, of whatever subclass or content it was."""
    text = str.__str__(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    """Return the text with its middle left out, if it takes more than `limit` bytes."""
    if len(text) <= limit and (text.isascii() or len(text.encode()) <= limit):
        return text
    half = limit // 2 - 20
    data = text.encode() if len(text) < 4 * limit else (text[: 2 * limit] + text[-2 * limit :]).encode()
    return f"{data[:half].decode(errors='ignore')}\n… cut …\n{data[-half:].decode(errors='ignore')}"


# ---- chains and tracebacks ------------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield the error and what led to it, each with the words that stand between it and the one before; circles end."""
    seen: set[int] = set()
    current: BaseException | None = error
    words = ""
    while current is not None and id(current) not in seen and len(seen) < CAUSES_MAX:
        seen.add(id(current))
        yield current, words
        cause = _get_cause(current)
        if cause is not None:
            current, words = cause, "The above exception was the direct cause of the following exception:"
        elif not _is_suppressed(current):
            current, words = _get_context(current), "During handling of the above exception, another exception occurred:"
        else:
            current = None


def formatted(error: BaseException) -> str:
    """Return the traceback as Python prints it, causes first, without the worker's own frames and without locals, cut."""
    blocks = []
    for link, words in _chain(error):
        if words:
            blocks.append(f"\n{words}\n\n")
        blocks.append(_one(link))
    return _cut("".join(reversed(blocks)), TRACEBACK_BYTES_MAX)


def _one(error: BaseException) -> str:
    lines = []
    trace = _user_part(_get_traceback(error))
    if trace is not None:
        lines.append("Traceback (most recent call last):\n")
        frames = list(traceback.walk_tb(trace))
        if len(frames) > FRAMES_MAX:
            frames[FRAMES_FIRST : len(frames) - FRAMES_MAX + FRAMES_FIRST] = []
        lines += traceback.StackSummary.extract(iter(frames)).format()
    message = message_of(error)
    name = type_name(type(error))
    lines.append(f"{name}: {message}\n" if message else f"{name}\n")
    lines += [f"{_cut(_safe_str(note), MESSAGE_BYTES_MAX)}\n" for note in _notes(error)]
    if issubclass(type(error), BaseExceptionGroup):
        for i, part in enumerate(_members(error)):
            lines.append(f"  +-- {i + 1}: {type_name(type(part))}: {message_of(part)}\n")
            inner = _user_part(_get_traceback(part))
            if inner is not None:
                lines += [f"  | {line}" for line in traceback.format_tb(inner, FRAMES_FIRST)]
    return "".join(_text(line) for line in lines)


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from below `call_body` on, or all of it if that is not in it."""
    link = trace
    while link is not None:
        if link.tb_frame.f_code is call_body.__code__:
            return link.tb_next
        link = link.tb_next
    return trace


def _notes(error: BaseException) -> list[Any]:
    try:
        notes = getattr(error, "__notes__", [])
        return list(notes)[:CAUSES_MAX] if isinstance(notes, list | tuple) else []
    except BaseException:
        return []


def _members(group: Any) -> list[BaseException]:
    try:
        return [part for part in group.exceptions[:CAUSES_MAX] if issubclass(type(part), BaseException)]
    except BaseException:
        return []


def _cause_of(error: BaseException) -> TaskError | None:
    found: TaskError | None = None
    for link, _ in reversed(list(_chain(error))[1:]):
        found = TaskError(kind="handler", message=message_of(link), type_name=type_name(type(link)), cause=found)
    return found


def _backoff_of(error: BaseException) -> float | None:
    said = said_by(error)
    backoff = getattr(said, "backoff", None) if said is not None and issubclass(type(said), RetryableError) else None
    return float(backoff) if isinstance(backoff, int | float) and 0 <= backoff <= SECONDS_MAX else None


def _pickled(error: BaseException) -> bytes | None:
    """Return the exception pickled, if it comes back from that as what it was."""
    try:
        data = pickle.dumps(error, 5)
        if len(data) <= EXCEPTION_BYTES_MAX and type(pickle.loads(data)) is type(error):
            return data
    except BaseException:
        pass  # a class that cannot be pickled, or not be rebuilt: its words have to do
    return None
