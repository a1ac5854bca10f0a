"""What an annotation says about a value: whether msgspec gives precisely it back, and whether it fits at all.

msgspec encodes what resembles a type (a tuple where a list is annotated, a subclass of a dict, a datetime with any zone) and
decodes the annotated type itself. A value must not come out otherwise than it went in, so `exact` compiles an annotation into a
test that only such values pass as survive unchanged; all others travel by pickle. `misfit` is the slow and thorough judge of
arguments.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import sys
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

Check = Callable[[Any], bool]

_NONE = type(None)
# Types of which any instance (of the very type, not of a subclass) comes back as it was, alone or in a container.
_LEAVES = frozenset({bool, int, float, str, bytes, bytearray, _NONE, decimal.Decimal, uuid.UUID, datetime.date, datetime.timedelta})
_TOLD_APART = frozenset({bool, int, float, str, bytes, _NONE})  # each has its own mark in msgpack, so a union of them is clear
_KEYS = (str, int)
_UNIONS = (typing.Union, types.UnionType)


def exact(annotation: Any) -> Check | None:
    """Return a test for values that msgpack by this annotation gives back unchanged; None where there can be none."""
    try:
        check = _exact(annotation, {})
        if check is not None:
            msgspec.msgpack.Decoder(annotation)
        return check
    except (TypeError, NameError, AttributeError, ValueError, RecursionError):
        return None


def _exact(annotation: Any, seen: dict[type, list[Check]]) -> Check | None:
    leaves = _leaf_types(annotation)
    if leaves is not None:
        return _one_of(leaves)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        return _exact_optional(args, seen)
    if origin is typing.Literal:
        allowed = {(type(value), value) for value in args}
        return lambda value: type(value) in (str, int, _NONE) and (type(value), value) in allowed
    if origin in (list, set, frozenset) and len(args) == 1:
        return _exact_elements(origin, args[0], seen)
    if origin is dict and args and args[0] in _KEYS:
        return _exact_dict(args[0], args[1], seen)
    if origin is tuple and args:
        return _exact_tuple(args, seen)
    if origin is None and isinstance(annotation, type):
        return _exact_class(annotation, seen)
    return None


def _leaf_types(annotation: Any) -> frozenset[type] | None:
    """Return the types of a leaf, or of a union of leaves that msgpack tells apart."""
    if annotation is None:
        return frozenset({_NONE})
    if isinstance(annotation, type) and annotation in _LEAVES:
        return frozenset({annotation})
    if typing.get_origin(annotation) in _UNIONS and all(arg in _TOLD_APART for arg in typing.get_args(annotation)):
        return frozenset(typing.get_args(annotation))
    return None


def _one_of(leaves: frozenset[type]) -> Check:
    if len(leaves) == 1:
        (only,) = leaves
        return lambda value: type(value) is only
    return lambda value: type(value) in leaves


def _exact_optional(args: tuple[Any, ...], seen: dict[type, list[Check]]) -> Check | None:
    rest = [arg for arg in args if arg is not _NONE]
    inner = _exact(rest[0], seen) if len(rest) == 1 else None
    return None if inner is None else lambda value: value is None or inner(value)


def _each(annotation: Any, seen: dict[type, list[Check]]) -> Check | None:
    """Return a test of all elements of an iterable; for leaves it runs in C."""
    leaves = _leaf_types(annotation)
    if leaves is not None:
        return lambda values: leaves.issuperset(map(type, values))
    inner = _exact(annotation, seen)
    return None if inner is None else lambda values: all(map(inner, values))


def _exact_elements(container: type, element: Any, seen: dict[type, list[Check]]) -> Check | None:
    each = _each(element, seen)
    return None if each is None else lambda value: type(value) is container and each(value)


def _exact_dict(key: type, element: Any, seen: dict[type, list[Check]]) -> Check | None:
    each_key, each = _each(key, seen), _each(element, seen)
    if each_key is None or each is None:
        return None
    return lambda value: type(value) is dict and each_key(value) and each(value.values())


def _exact_tuple(args: tuple[Any, ...], seen: dict[type, list[Check]]) -> Check | None:
    if len(args) == 2 and args[1] is Ellipsis:
        return _exact_elements(tuple, args[0], seen)
    checks = [_exact(arg, seen) for arg in args]
    if None in checks:
        return None
    sure = typing.cast("list[Check]", checks)
    return lambda value: (
        type(value) is tuple and len(value) == len(sure) and all(check(part) for check, part in zip(sure, value, strict=True))
    )


def _exact_class(cls: type, seen: dict[type, list[Check]]) -> Check | None:
    if cls is datetime.datetime:
        return lambda value: type(value) is cls and value.tzinfo in (None, datetime.UTC) and not value.fold
    if cls is datetime.time:
        return lambda value: type(value) is cls and value.tzinfo is None and not value.fold
    if issubclass(cls, enum.Enum):
        plain = not issubclass(cls, enum.Flag) and all(type(member._value_) in (str, int) for member in cls)
        return (lambda value: type(value) is cls) if plain else None
    names = _field_names(cls)
    if names is None or hasattr(cls, "__post_init__") or hasattr(cls, "__parameters__"):
        return None  # a decoder would run __post_init__ once more than pickle does
    if cls in seen:
        return lambda value: all(check(value) for check in seen[cls])  # a class that holds itself: known once it is compiled
    seen[cls] = []
    hints = typing.get_type_hints(cls)
    checks = [(name, _exact(hints[name], seen)) for name in names]
    if any(check is None for _, check in checks):
        return None
    sure = typing.cast("list[tuple[str, Check]]", checks)

    def check_fields(value: Any) -> bool:
        if type(value) is not cls or len(getattr(value, "__dict__", names)) != len(names):
            return False
        return all(check(getattr(value, name)) for name, check in sure)

    seen[cls].append(check_fields)
    return check_fields


def _field_names(cls: type) -> tuple[str, ...] | None:
    """Return the fields of a Struct, a dataclass whose fields are all arguments, or a NamedTuple."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        return tuple(field.name for field in fields) if all(field.init for field in fields) else None
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "__annotations__"):
        return tuple(cls._fields)
    return None


# ---- does an argument fit? ------------------------------------------------------------------------------------------


def misfit(value: Any, annotation: Any) -> str | None:
    """Return where a value does not fit its annotation ("" for the value itself, else as "[2]['a']"), or None if it fits.

    bool is no int, an int is a float (as in typing), numpy's scalars are what they hold. What cannot be judged at run time fits.
    """
    annotation = _bare(annotation)
    if annotation is Any or annotation is object:
        return None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        found = [misfit(value, arg) for arg in args]
        return None if None in found else max((place for place in found if place is not None), key=len)
    if origin is typing.Literal:
        return None if any(value == arg and type(value) is type(arg) for arg in args) else ""
    if origin is not None:
        return _misfit_generic(value, origin, args)
    return None if _is_instance(value, annotation) else ""


def _bare(annotation: Any) -> Any:
    """Return the annotation without Annotated, NewType, aliases; what means nothing at run time becomes Any."""
    while True:
        if annotation is None:
            return _NONE
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        elif isinstance(annotation, type) or typing.get_origin(annotation) is not None:
            return annotation
        else:
            return Any


def _misfit_generic(value: Any, origin: Any, args: tuple[Any, ...]) -> str | None:
    if not _is_instance(value, origin):
        return ""
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            return ""
        return _first_misfit((f"[{i}]", part, arg) for i, (part, arg) in enumerate(zip(value, args, strict=True)))
    if origin is dict and len(args) == 2:
        return _first_misfit(
            pair for k, v in value.items() for pair in ((f"[{k!r:.40}]", k, args[0]), (f"[{k!r:.40}]", v, args[1]))
        )
    if origin in (list, tuple, set, frozenset) and args:
        leaves = _leaf_types(args[0])
        if leaves is not None and leaves.issuperset(map(type, value)):
            return None
        return _first_misfit((f"[{i}]", part, args[0]) for i, part in enumerate(value))
    return None


def _first_misfit(parts: collections.abc.Iterable[tuple[str, Any, Any]]) -> str | None:
    for place, part, annotation in parts:
        inner = misfit(part, annotation)
        if inner is not None:
            return place + inner
    return None


def _is_instance(value: Any, cls: Any) -> bool:
    if cls is int:
        return (isinstance(value, int) and not isinstance(value, bool)) or is_numpy(value, "integer")
    if cls is float:
        return (isinstance(value, float | int) and not isinstance(value, bool)) or is_numpy(value, "floating", "integer")
    if cls is complex:
        return (isinstance(value, complex | float | int) and not isinstance(value, bool)) or is_numpy(value, "number")
    if cls is bool:
        return isinstance(value, bool) or is_numpy(value, "bool_")
    try:
        return isinstance(value, cls)
    except Exception:  # a protocol that is not for run time, or a class with a mind of its own
        return True


def is_numpy(value: Any, *kinds: str) -> bool:
    """Return whether the value is a scalar of numpy of one of these kinds (integer, floating, …), without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, tuple(getattr(numpy, kind) for kind in kinds))


def plain_scalar(value: Any, annotation: Any) -> Any:
    """Return a numpy scalar given for bool, int or float as the Python scalar it holds; any other value as it is."""
    if type(value).__module__ == "numpy" and annotation in (bool, int, float) and is_numpy(value, "generic"):
        return value.item()
    return value


def spelled(annotation: Any) -> str:
    """Return an annotation as people write it."""
    return (
        annotation.__qualname__
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation).replace("typing.", "")
    )
