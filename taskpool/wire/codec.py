"""Arguments and results as bytes, encoded by the caller and in the worker; nobody between the two ever decodes them.

Which way a call travels (`Codec`): by msgpack if its handler is annotated throughout and every value survives it unchanged; else
by pickle, the function by name; else, for a lambda, a closure or a function of an interactive session, function and arguments
together by pickle or dill. No arguments and a result of None are no bytes at all. A value arrives as what it was, with one
exception: numpy's scalars where a handler is annotated bool, int or float arrive as Python's, as the annotation promises.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from taskpool.errors import ArgTypeError, HandlerNotFound, InvalidHandler, InvalidPayload, TaskpoolError
from taskpool.model import Codec
from taskpool.wire import references
from taskpool.wire.annotations import plain_scalar
from taskpool.wire.description import MAIN_NAMES, Description, describe, is_importable, main_is_importable, unwrapped
from taskpool.wire.limits import DEPTH_MAX, MIB, PAYLOAD_BYTES_MAX, RESULT_BYTES_MAX
from taskpool.wire.unpicklable import culprit

_MSGPACK, _PICKLE, _CALL, _JSON = (int(codec) for codec in (Codec.MSGPACK, Codec.PICKLE, Codec.CALL, Codec.JSON))
_PROTOCOL = 5

_encoder = msgspec.msgpack.Encoder()
_NO_NAMES: dict[str, Any] = {}


class DecodeError(TaskpoolError):
    """The bytes of a call or result cannot be read here; the message says why."""

    code = "decode"


# ---- calls, in the caller -------------------------------------------------------------------------------------------


class CallEncoder:
    """Encodes calls of one function. name: as it is stored with the task; by_value: the function travels along.

    by_value None: decide by whether workers can import the function. InvalidHandler for what is not callable.
    """

    def __init__(self, fn: Callable[..., Any], by_value: bool | None = None) -> None:
        self.description = describe(fn)
        self.name = self.description.name
        self._fn = unwrapped(fn)
        self._main_travels = main_is_importable()  # what is defined in `__main__` can be named
        self.by_value = self._must_travel(fn) if by_value is None else by_value
        self._msgpack = self.description.msgpack and self.description.registered and not self.by_value

    def _must_travel(self, fn: Callable[..., Any]) -> bool:
        """Return whether workers cannot find the function: not even a handler, if an interactive session defined it."""
        if self.description.registered:
            return not self._main_travels and getattr(self._fn, "__module__", None) in MAIN_NAMES
        return not is_importable(fn)

    def encode(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NO_NAMES) -> tuple[int, bytes]:
        """Return (codec, payload). Raises ArgCountError, ArgTypeError, InvalidPayload; nothing was sent then."""
        description = self.description
        description.check_count(args, kwargs)
        if references.are_among(args, kwargs):  # what they will be, only the worker can check
            return self._pickled(tuple(args), dict(kwargs))
        if not args and not kwargs and not self.by_value:
            return (_MSGPACK if self._msgpack else _PICKLE), b""
        if self._msgpack and description.is_exact(args, kwargs):
            try:
                return _MSGPACK, self._limited(_encoder.encode((args, kwargs)), args, kwargs)
            except (OverflowError, UnicodeEncodeError, RecursionError):
                pass  # ints over 64 bits, lone surrogates, deep nesting: pickle can
        elif description.registered:
            description.validate_args(args, kwargs)
            plain = description.plain(args, kwargs)
            if self._msgpack and description.is_exact(*plain):
                return self.encode(*plain)
            args, kwargs = plain
        return self._pickled(tuple(args), dict(kwargs))

    def _pickled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, bytes]:
        if not self.by_value:
            try:
                data = pickle.dumps((args, kwargs), _PROTOCOL)
                if self._main_travels or b"__main__" not in data:
                    return _PICKLE, self._limited(data, args, kwargs)
            except InvalidPayload:
                raise
            except Exception:
                pass  # a lambda among the arguments, say: dill may know how
        try:
            data = dump_by_value((self._fn, args, kwargs))
        except references.OutOfPlace:
            raise
        except Exception as error:
            raise self._unencodable(args, kwargs, error) from error
        return _CALL, self._limited(data, args, kwargs)

    def _limited(self, data: bytes, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        if len(data) > PAYLOAD_BYTES_MAX:
            raise InvalidPayload(
                f"the arguments of {self.name} take {len(data) / MIB:.1f} MiB, the limit is {PAYLOAD_BYTES_MAX // MIB} MiB",
                hint="pass the path of a file, or split the work",
            )
        return data

    def _unencodable(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> TaskpoolError:
        names = [p.name for p in self.description.parameters or () if p.positional]
        parts = {names[i] if i < len(names) else f"number {i + 1}": value for i, value in enumerate(args)} | kwargs
        for name, value in parts.items():
            found = culprit(value, dump_by_value)
            if found is not None:
                return InvalidPayload(f"argument {name!r} of {self.name} cannot be sent: {found}")
        found = culprit(self._fn, dump_by_value)
        return InvalidHandler(f"{self.name} cannot be sent by value: {found or _reason(error)}")


def encode_call(
    fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NO_NAMES, by_value: bool | None = None
) -> tuple[str, int, bytes]:
    """Return (name, codec, payload) of one call; for many calls of one function keep a CallEncoder. Errors as there."""
    encoder = CallEncoder(fn, by_value)
    return (encoder.name, *encoder.encode(args, kwargs))


def dump_by_value(value: Any) -> bytes:
    """Return the value pickled such that functions and classes that nobody can import travel as code.

    Globals that such a function uses travel too, if it is of `__main__` or of no module at all (`exec`); those of an imported
    module are the worker's own.
    """
    try:
        data = pickle.dumps(value, _PROTOCOL)
        if main_is_importable() or b"__main__" not in data:
            return data
    except references.OutOfPlace:
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
        pass
    from taskpool.wire import by_dill

    function = value[0] if isinstance(value, tuple) and value else value
    module = getattr(function, "__module__", None)
    in_main = module in ("__main__", "__mp_main__") or module not in sys.modules  # else dill would take all there are
    return by_dill.dumps(value, recurse=in_main)


# ---- calls, in the worker -------------------------------------------------------------------------------------------


def decode_args(description: Description, codec: int, payload: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return (args, kwargs) of a call of a function that is known by name. DecodeError, ArgCountError, ArgTypeError."""
    if not payload:
        description.check_count((), _NO_NAMES)
        return (), _NO_NAMES
    if codec == _PICKLE:
        args, kwargs = _unpickled_pair(payload)
        if description.registered:
            description.validate_args(args, kwargs)
        else:
            description.check_count(args, kwargs)
        return args, kwargs
    if codec == _MSGPACK:
        return _from_msgpack(description, payload)
    if codec == _JSON:
        return _from_json(description, payload)
    raise DecodeError(f"nothing is known of codec {codec}")


def decode_call(
    name: str, codec: int, payload: bytes, resolve: Callable[[str], Description]
) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """Return (function, args, kwargs). resolve gives the Description of a name and may raise HandlerNotFound.

    DecodeError, ArgCountError, ArgTypeError otherwise; nothing else.
    """
    if codec == _CALL:
        return decode_by_value(payload)
    description = resolve(name)
    args, kwargs = decode_args(description, codec, payload)
    return description.fn, args, kwargs


def decode_by_value(payload: bytes) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return (function, args, kwargs) of a Codec.CALL payload. DecodeError."""
    loaded = loads(payload)
    if not (isinstance(loaded, tuple) and len(loaded) == 3 and callable(loaded[0])):
        raise DecodeError("the payload is no (function, args, kwargs)")
    return loaded


def loads(data: bytes) -> Any:
    """Unpickle bytes of the same user; what they refer to as `__mp_main__` is this process's `__main__`. DecodeError."""
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    try:
        return pickle.loads(data)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise DecodeError(f"unpickling raised {type(error).__name__}") from error
        if not isinstance(error, Exception):
            raise  # Cancelled, SoftTimeout
        raise DecodeError(f"it cannot be unpickled: {_reason(error)}") from error


def _unpickled_pair(payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    loaded = loads(payload)
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], tuple) and isinstance(loaded[1], dict)):
        raise DecodeError("the payload is no (args, kwargs)")
    return loaded


def _from_msgpack(description: Description, payload: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    try:
        given, named = description.call_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _explained(description, payload, error) from error
    args: tuple[Any, ...] = msgspec.structs.astuple(given)
    if args and args[-1] is msgspec.UNSET:
        args = tuple(value for value in args if value is not msgspec.UNSET)
    kwargs = _NO_NAMES if named == description.no_keywords else _given_names(named)
    description.check_count(args, kwargs)
    return args, kwargs


def _given_names(named: msgspec.Struct) -> dict[str, Any]:
    pairs = ((field.encode_name, getattr(named, field.name)) for field in msgspec.structs.fields(named))
    return {name: value for name, value in pairs if value is not msgspec.UNSET}


def _explained(description: Description, payload: bytes, error: Exception) -> TaskpoolError:
    """Return the most telling error for a payload that does not fit the function as it is now."""
    try:
        args, kwargs = msgspec.msgpack.decode(payload, type=tuple[list[Any], dict[str, Any]])
        description.check_count(args, kwargs)
    except TaskpoolError as wrong:
        return wrong
    except (msgspec.MsgspecError, ValueError, RecursionError) as unreadable:
        return DecodeError(f"the payload is no msgpack of [args, kwargs]: {unreadable}")
    return ArgTypeError(f"the arguments do not fit {description.name}: {error}", hint=description.usage)


def _from_json(description: Description, payload: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if not description.registered:
        raise HandlerNotFound(
            f"{description.name} is no handler; JSON arguments are for handlers only", hint="decorate it with @task"
        )
    try:
        call = msgspec.json.decode(payload)
        args, kwargs, strict = call.get("args", []), call.get("kwargs", {}), call.get("strict", False)
        if _depth(call) > DEPTH_MAX:
            raise DecodeError(f"the arguments are nested deeper than {DEPTH_MAX}")
    except (msgspec.MsgspecError, ValueError, RecursionError, AttributeError) as error:
        raise DecodeError(f"the payload is no JSON of args and kwargs: {error}") from error
    description.check_count(args, kwargs)
    types = {p.name: p.annotation for p in description.parameters or ()}
    places = [p for p in description.parameters or () if p.positional]
    converted = [_converted(description, p.name, v, p.annotation, strict) for p, v in zip(places, args, strict=False)]
    named = {name: _converted(description, name, value, types.get(name, Any), strict) for name, value in kwargs.items()}
    return (*converted, *args[len(converted) :]), named


def _converted(description: Description, name: str, value: Any, annotation: Any, strict: bool) -> Any:
    try:
        # From a command line all is text: "7" for an int, "true" for a bool.
        return msgspec.convert(value, annotation, strict=strict or not isinstance(value, str), str_keys=True)
    except msgspec.ValidationError as error:
        raise ArgTypeError(f"argument {name!r} of {description.name}: {error}", hint=description.usage) from error
    except TypeError:  # an annotation that msgspec does not know: the value goes in as JSON has it
        return value


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


# ---- results --------------------------------------------------------------------------------------------------------


def encode_result(value: Any, description: Description | None = None, limit: int = RESULT_BYTES_MAX) -> tuple[int, bytes | None]:
    """Return (codec, bytes) of what a handler returned; None is no bytes. description: of a handler known by name.

    InvalidPayload if it cannot be encoded or takes more than `limit` bytes; the message names type and place.
    """
    if value is None:
        return _PICKLE, None
    codec = _PICKLE
    data: bytes | None = None
    if description is not None and description.registered:
        value = plain_scalar(value, description.result_type)
        if description.msgpack:
            data = _by_annotation(value, description)
            codec = _PICKLE if data is None else _MSGPACK
    if data is None:
        try:
            data = pickle.dumps(value, _PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError, OverflowError) as error:
            data = _last_resort(value, description, error)
    if len(data) > limit:
        raise InvalidPayload(
            f"the result, a {type(value).__qualname__}, takes {len(data) / MIB:.1f} MiB, the limit is {limit / MIB:.1f} MiB",
            hint="write it to a file and return the path",
        )
    return codec, data


def _by_annotation(value: Any, description: Description) -> bytes | None:
    try:
        if description.exact_result is not None and description.exact_result(value):
            return _encoder.encode(value)
    except (OverflowError, UnicodeEncodeError, RecursionError):
        pass
    return None


def _last_resort(value: Any, description: Description | None, error: Exception) -> bytes:
    """Return the bytes of a result that only dill can pickle, if its function came by value too (so dill is there)."""
    if description is None and not isinstance(error, RecursionError):
        try:
            return dump_by_value(value)
        except Exception as second:
            error = second
    found = culprit(value, lambda part: pickle.dumps(part, _PROTOCOL)) or f"a {type(value).__qualname__}: {_reason(error)}"
    raise InvalidPayload(f"the result cannot be sent: {found}") from error


def decode_result(codec: int, data: bytes | None, description: Description | None = None) -> Any:
    """Return a result. Without the function's description a msgpack result comes as msgpack's own types. DecodeError."""
    if data is None:
        return None
    if codec != _MSGPACK:
        return loads(data)
    try:
        return msgspec.msgpack.decode(data) if description is None else description.result_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"the result does not fit its annotation: {error}") from error


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"[:500]
    except Exception:
        return type(error).__qualname__
