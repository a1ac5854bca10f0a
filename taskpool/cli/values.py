"""What a task returned, as people and programs see it. Only the verbs that print results decode them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec

from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import portable

REPR_CHARACTERS_MAX = 100_000
DEPTH_MAX = 100


class Shown(NamedTuple):
    """One value. json: the same as JSON where that is exact (else None); is_json tells whether it is; text: of bytes in UTF-8."""

    type: str
    repr: str
    json: Any
    is_json: bool
    text: str | None = None


def decode(task_id: int, codec: int, data: bytes | None) -> Any:
    """Return a task's result. CliError if this program cannot rebuild it, such as an object of a module that is not there."""
    from taskpool.wire.codec import DecodeError, decode_result

    try:
        return decode_result(codec, data)
    except DecodeError as error:
        hint = "run it where its modules can be imported, or take the bytes as they are with -o FILE --raw"
        raise CliError(
            f"the result of task {task_id} cannot be rebuilt here: {error.message}", Exit.REFUSED, "decode", hint
        ) from error


def shown(value: Any) -> Shown:
    """Return a value for people and programs; one whose repr fails is described."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr raises {type(error).__qualname__}>"
    if len(text) > REPR_CHARACTERS_MAX:
        text = text[: REPR_CHARACTERS_MAX - 1] + "…"
    exact = is_json(value)
    return Shown(type(value).__qualname__, text, value if exact else None, exact, _text(value))


def _text(value: Any) -> str | None:
    """Return what bytes say as text, such as the output of a command; None for anything else."""
    try:
        return value.decode() if type(value) is bytes else None
    except UnicodeDecodeError:
        return None


def is_json(value: Any, depth: int = 0) -> bool:
    """Return whether JSON gives the value back as it is: no tuples, no sets, no NaN, text keys only."""
    kind = type(value)
    if kind in (str, bool, int, type(None)):
        return True
    if kind is float:
        return value == value and value not in (float("inf"), float("-inf"))
    if depth >= DEPTH_MAX:
        return False
    if kind is list:
        return all(is_json(item, depth + 1) for item in value)
    return kind is dict and all(type(key) is str and is_json(item, depth + 1) for key, item in value.items())


def to_bytes(value: Any) -> tuple[bytes, str]:
    """Return what a file should hold of a value, and how: bytes and text as they are, what JSON can hold as JSON, else a pickle."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), "bytes"
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape"), "text"
    if is_json(value):
        return json.dumps(portable(value)).encode() + b"\n", "JSON"
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value) + b"\n", "JSON"
    import pickle

    return pickle.dumps(value, 5), "pickle"
