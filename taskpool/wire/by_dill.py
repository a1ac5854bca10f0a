"""dill, for what plain pickle refuses: code that nobody can import, and values that hold such code.

It takes more than that. A future of an executor it copies, locks and all, and the copy never hears of the result; so futures are
kept out. And of a lock that is held, or may be taken again, it makes one that nobody ever can take: locks are sent as new ones.
"""

from __future__ import annotations

import functools
import io
import threading
from pickle import PicklingError
from typing import Any

from taskpool.wire.unpicklable import FUTURES_STAY, is_future

_PROTOCOL = 5
_LOCKS = {type(make()): make for make in (threading.Lock, threading.RLock)}


@functools.cache
def _pickler() -> Any:
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]  # dill has no types
        def save_reduce(self, *parts: Any, obj: Any = None, **more: Any) -> None:
            """Look at what dill takes to pieces, which is little of what it writes."""
            if is_future(obj):
                raise PicklingError(f"it holds a {type(obj).__qualname__}, which {FUTURES_STAY}")
            if (make := _LOCKS.get(type(obj))) is not None:
                parts = (make, ())
            super().save_reduce(*parts, obj=obj, **more)

    return Pickler


def dumps(value: Any, *, recurse: bool) -> bytes:
    """Return a value pickled by dill. recurse: of a function's globals only what it uses. PicklingError, or what dill raises."""
    file = io.BytesIO()
    _pickler()(file, _PROTOCOL, recurse=recurse).dump(value)
    return file.getvalue()
