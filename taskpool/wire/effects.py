"""Effects: statements that a body hands over with `on_success`, to be applied in the transaction that records its success.

They are looked at here, at the call, as far as that is possible without a database: one statement, of those that change rows, with
the parameters that it names. What only the tables can tell is told when it is applied (`taskpool.store.effects`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.errors import InvalidPayload
from taskpool.wire.limits import EFFECT_BYTES_MAX, EFFECTS_MAX, MIB

Value = Any  # int, float, str, bytes or None: a union of which msgspec decodes only untyped

VERBS: Final = ("INSERT", "UPDATE", "DELETE", "REPLACE", "WITH")
INT_MAX: Final = 2**63
# What may hold anything: texts, quoted names, comments. What is left can be read word by word.
_OPAQUE: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_COMMENT: Final = ("--", "/*")
_PARAMETER: Final = re.compile(r"\?(\d*)|[:@$](\w+)")
_HINT: Final = "one INSERT, UPDATE, DELETE or REPLACE (WITH … too), on tables of your own"


class Effect(msgspec.Struct, array_like=True, gc=False):
    """One statement and its parameters: a list for `?`, a mapping for `:name`."""

    sql: str
    params: list[Value] | dict[str, Value] = []


def checked(sql: object, params: object, before: Sequence[Effect], bytes_before: int) -> tuple[Effect, int]:
    """Return an effect, and its size in bytes. before: those that the attempt has handed over. Raises InvalidPayload."""
    if not isinstance(sql, str):
        raise InvalidPayload(f"an effect is a text in SQL, not a {type(sql).__name__}", hint=_HINT)
    _check_text("the statement", sql)
    if isinstance(params, Mapping):
        values: list[Value] | dict[str, Value] = {_name(name): _value(f":{name}", value) for name, value in params.items()}
    elif isinstance(params, Sequence) and not isinstance(params, str | bytes | bytearray):
        values = [_value(f"{number}", value) for number, value in enumerate(params, 1)]
    else:
        raise InvalidPayload(
            f"the parameters of an effect are a sequence or a mapping, not a {type(params).__name__}", hint="(value,) for one"
        )
    _check_statement(sql, values)
    if len(before) >= EFFECTS_MAX:
        raise InvalidPayload(
            f"an attempt may have {EFFECTS_MAX} effects", hint="one statement can change many rows, by json_each(?)"
        )
    size = len(sql.encode()) + sum(_size(value) for value in (values.values() if isinstance(values, dict) else values))
    if bytes_before + size > EFFECT_BYTES_MAX:
        raise InvalidPayload(f"the effects of an attempt may take {EFFECT_BYTES_MAX // MIB} MiB", hint="write big values to files")
    return Effect(sql, values), size


def _check_statement(sql: str, values: list[Value] | dict[str, Value]) -> None:
    bare = _OPAQUE.sub(lambda found: " " if found[0].startswith(_COMMENT) else " '' ", sql).strip().rstrip("; \t\r\n")
    first = re.match(r"\w*", bare)
    assert first is not None
    if first[0].upper() not in VERBS:
        raise InvalidPayload(f"an effect cannot be {sql.strip()[:60]!r}", hint=_HINT)
    if ";" in bare:
        raise InvalidPayload("an effect is one statement", hint="call on_success once for each; they are applied together")
    wanted = list(_PARAMETER.finditer(bare))
    named = [found[2] for found in wanted if found[2] is not None]
    if isinstance(values, dict):
        missing = [name for name in named if name not in values]
        if missing or len(named) < len(wanted):
            raise InvalidPayload(f"the effect has no value for {f':{missing[0]}' if missing else '?'}")
        return
    if named:
        raise InvalidPayload(f"the effect has no value for :{named[0]}", hint="give a mapping of names to values")
    count = highest = 0
    for found in wanted:
        count = int(found[1]) if found[1] else highest + 1
        highest = max(highest, count)
    if highest != len(values):
        raise InvalidPayload(f"the effect has {highest} parameters, and was given {len(values)}")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidPayload(f"a parameter's name is a text, not {name!r:.60}")
    return name


def _value(name: str, value: Any) -> Value:
    """Return a value that SQLite keeps as it is."""
    kind = type(value)
    if kind is bytes or value is None:
        return value
    if isinstance(value, str):
        _check_text(f"parameter {name}", value)
        return str(value)
    if isinstance(value, int):
        if not -INT_MAX <= value < INT_MAX:
            raise InvalidPayload(f"parameter {name} is over 64 bits: {value!r:.60}")
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise InvalidPayload(f"parameter {name} is NaN, which SQLite would keep as NULL", hint="pass None to mean NULL")
        return float(value)
    if isinstance(value, bytearray | memoryview | bytes):
        return bytes(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:  # numpy's scalars
        return _value(name, item())
    raise InvalidPayload(
        f"parameter {name} is a {kind.__name__}, which SQLite has no type for",
        hint="int, float, str, bytes or None; or json.dumps(…)",
    )


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPayload(f"{what} is no valid Unicode: {error}") from None
    if "\0" in text and what == "the statement":
        raise InvalidPayload("the statement contains a zero character")


def _size(value: Value) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8
