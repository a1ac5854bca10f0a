"""Requests as nobody should send them: bytes of chance, frames of ours with a few bits changed, typed ones with odd values."""

from __future__ import annotations

import random
import struct
import typing
from typing import Any

import msgspec

from taskpool.model import Options, TaskSpec
from taskpool.wire import messages as wire

_NUMBERS = (0, 1, -1, 2, 7, 1 << 31, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63))
_REALS = (0.0, -0.0, 1.0, -1.0, 0.01, 1e-320, 1e10, 1e308, float("inf"), float("nan"))
_TEXTS = (
    "",
    "default",
    "os:system",
    "../x",
    "tests.no:thing",
    "a\0b",
    "'; DROP TABLE task; --",
    "%",
    "\x1b]0;x\x07",
    "\u202e",
    "é" * 3000,
    "x" * 70_000,
)
_BYTES = (b"", b"\0", b"x" * 16, b"\xff" * 16, b"x" * 15, b"y" * 5000, b"\x80\x05.", msgspec.msgpack.encode([[], {}]))


def requests(chance: random.Random, count: int) -> typing.Iterator[wire.Request]:
    """Yield typed requests; Stop, which is obeyed, is not among them."""
    kinds = [kind for kind in typing.get_args(wire.Request) if kind is not wire.Stop]
    for _ in range(count):
        yield _struct(chance, chance.choice(kinds))


def _struct(chance: random.Random, kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    made = {}
    for field in msgspec.structs.fields(kind):
        if not field.required and chance.random() < 0.4:
            continue
        if (kind, field.name) == (TaskSpec, "options"):
            made[field.name] = chance.choice([b"", msgspec.msgpack.encode(_struct(chance, Options)), b"\xc1", b"\x91" * 5000])
        elif (kind, field.name) == (TaskSpec, "uid") and chance.random() < 0.7:
            made[field.name] = chance.randbytes(16)
        else:
            made[field.name] = _value(chance, hints[field.name])
    try:
        return kind(**made)
    except (TypeError, ValueError):  # those that check themselves
        return _struct(chance, kind)


def _value(chance: random.Random, kind: Any) -> Any:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return chance.choice([None, 1, 2.5, "x", b"y", [], {"n": [1]}])
    if kind is bool:
        return chance.random() < 0.5
    if kind is int:
        return chance.choice(_NUMBERS) if chance.random() < 0.7 else chance.randrange(-5, 300)
    if kind is float:
        return chance.choice(_REALS)
    if kind is str:
        return chance.choice(_TEXTS)
    if kind is bytes:
        return chance.choice(_BYTES)
    if origin in (list, tuple):
        size = chance.choice([0, 1, 1, 2, 3, 20, 3000 if inside[0] is int else 30])
        return origin(_value(chance, inside[0]) for _ in range(size))
    if origin is dict:
        return {_value(chance, inside[0]): _value(chance, inside[1]) for _ in range(chance.randrange(3))}
    if origin is typing.Literal:
        return chance.choice(inside)
    if inside:  # a union
        return _value(chance, chance.choice(inside))
    if kind is type(None):
        return None
    assert issubclass(kind, msgspec.Struct), kind
    return _struct(chance, kind)


def frames(chance: random.Random, count: int) -> typing.Iterator[bytes]:
    """Yield what each of `count` connections says: many kinds of garbage, headers included."""
    good = [wire.encoder.encode(request) for request in requests(chance, 50)]
    for _ in range(count):
        body = bytearray(chance.choice(good))
        match chance.randrange(8):
            case 0:  # anything
                yield chance.randbytes(chance.choice([1, 3, 4, 5, 100, 70_000]))
            case 1:  # anything, in a frame
                yield framed(chance.randbytes(chance.choice([0, 1, 2, 50, 5000])))
            case 2:  # a few bits changed
                for _ in range(chance.randrange(1, 5)):
                    if body:
                        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
                yield framed(bytes(body))
            case 3:  # cut short, in a frame
                yield framed(bytes(body[: chance.randrange(len(body))]))
            case 4:  # cut short, so that the frame is torn
                yield framed(bytes(body))[: chance.randrange(len(body) + 4)]
            case 5:  # more than one value in a frame, or a length that is not that of the frame
                yield struct.pack("<I", len(body) + chance.choice([-1, 1, 300])) + bytes(body) * 2
            case 6:  # nested deep, or lengths that promise much
                yield framed(
                    chance.choice(
                        [
                            b"\x91" * 100_000,
                            b"\x81\xa1x" * 50_000,
                            b"\xdd\xff\xff\xff\xff",
                            b"\xc6\xff\xff\xff\xff",
                            b"\xdf\xff\xff\xff\xff",
                        ]
                    )
                )
            case 7:  # a header that announces too much, or another protocol
                yield chance.choice(
                    [
                        struct.pack("<I", 1 << 30),
                        b"\xff\xff\xff\xff",
                        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                        b"\x16\x03\x01\x02\x00\x01",
                        b"\x00\x00\x00\x00" * 3,
                    ]
                )


def framed(body: bytes) -> bytes:
    """Return a frame."""
    return struct.pack("<I", len(body)) + body
