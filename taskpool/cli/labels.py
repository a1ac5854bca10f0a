"""A task's call as people read it: name(arguments), also where nobody said a label.

Small payloads are looked into, and never run: msgpack and JSON are data, and of a pickle only plain values are taken (numbers,
texts, lists, …), for which no class is looked up and no code is called.
"""

from __future__ import annotations

import io
import reprlib
from typing import TYPE_CHECKING, Any

import msgspec

from taskpool.model import Codec, Task

if TYPE_CHECKING:
    from taskpool.store.reading import Reader

PAYLOAD_BYTES_MAX = 4096  # larger ones are not looked into
LISTED_MAX = 1000  # tasks of a listing whose payloads are read


def arguments(task: Task) -> str:
    """Return the task's arguments in short; an empty text if nothing is known of them."""
    if task.options.label or not task.payload or len(task.payload) > PAYLOAD_BYTES_MAX:
        return task.options.label
    try:
        args, kwargs = _decoded(task.codec, task.payload)
        shown = [_repr(value) for value in args]
        return ", ".join(shown + [f"{key}={_repr(value)}" for key, value in kwargs.items()])
    except Exception:  # whatever bytes can do to a decoder: then there is nothing to say
        return ""


def with_payloads(reader: Reader, tasks: list[Task]) -> list[Task]:
    """Return the tasks of a listing, which has no payloads, with those that `arguments` looks into."""
    wanted = [task.id for task in tasks if not task.options.label and not task.payload][:LISTED_MAX]
    found = reader.payloads(wanted) if wanted else {}
    return [msgspec.structs.replace(task, payload=found[task.id][1] or b"") if task.id in found else task for task in tasks]


def label(task: Task) -> str:
    """Return the call: name(arguments)."""
    return f"{task.name}({arguments(task)})"


def _decoded(codec: int, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    if codec == Codec.MSGPACK:
        return msgspec.msgpack.decode(payload, type=tuple[list[Any], dict[str, Any]])
    if codec == Codec.JSON:
        call = msgspec.json.decode(payload, type=dict[str, Any])
        return call.get("args", []), call.get("kwargs", {})
    if codec == Codec.PICKLE:
        args, kwargs = _plain_pickle(payload)
        return list(args), dict(kwargs)
    return [], {}


def _plain_pickle(payload: bytes) -> Any:
    import pickle

    class Plain(pickle.Unpickler):
        """Reads plain values only."""

        def find_class(self, module: str, name: str) -> Any:
            raise pickle.UnpicklingError(f"{module}.{name} is no plain value")

    return Plain(io.BytesIO(payload)).load()


def _repr(value: Any) -> str:
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 40
_short.maxlevel = 3
