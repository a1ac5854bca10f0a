"""Finds the part of a value that cannot be pickled, or written as JSON, so that an error can name it."""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable, Iterator
from typing import Any

DEPTH_MAX = 20
PARTS_MAX = 1000  # of one container; further ones are not tried
FUTURES_STAY = "belongs to its process; wait for its result, and send that"


def culprit(value: Any, dump: Callable[[Any], bytes]) -> str | None:
    """Return "type at place: reason" of the innermost part that `dump` refuses, or None if it takes the whole."""
    reason = _refusal(value, dump)
    if reason is None:
        return None
    place = ""
    for _ in range(DEPTH_MAX):
        for step, part in _parts(value):
            inner = _refusal(part, dump)
            if inner is not None:
                value, reason, place = part, inner, place + step
                break
        else:
            break
    where = f" at {place}" if place else ""
    return f"a {type(value).__qualname__}{where}: {reason}"


def _refusal(value: Any, dump: Callable[[Any], bytes]) -> str | None:
    try:
        dump(value)
        return None
    except RecursionError:
        return "it is nested too deeply"
    except Exception as error:
        return f"it {FUTURES_STAY}" if is_future(value) else _words(error)


def is_future(value: Any) -> bool:
    """Return whether a value is a future, an executor's or asyncio's, that has not been taught how to travel (as ours are)."""
    cls = type(value)
    base = getattr(sys.modules.get("concurrent.futures._base"), "Future", ())
    if not (issubclass(cls, base) or hasattr(cls, "_asyncio_future_blocking")):
        return False
    own = any(getattr(cls, name) is not getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))
    return not own and cls not in copyreg.dispatch_table


def is_reference(value: Any) -> bool:
    """Return whether a value stands for the result of a task, as our own futures and the steps of flows do."""
    return bool(getattr(type(value), "_is_reference", False))


def _words(error: Exception) -> str:
    try:
        return f"{error}"[:300]
    except Exception:
        return type(error).__qualname__


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if is_future(value) or is_reference(value):
        return
    if isinstance(value, dict):
        pairs = [(f"[{_key(key)}]", part) for key, part in list(value.items())[:PARTS_MAX]]
    elif isinstance(value, list | tuple):
        pairs = [(f"[{i}]", part) for i, part in enumerate(value[:PARTS_MAX])]
    else:
        held = getattr(value, "__dict__", None)
        pairs = [(f".{name}", part) for name, part in list(held.items())[:PARTS_MAX]] if isinstance(held, dict) else []
    yield from pairs


def _key(key: Any) -> str:
    return f"{key!r:.40}" if isinstance(key, str | int) else type(key).__qualname__
