"""Calls of handlers that this process knows by name only: arguments travel as JSON, options are the handler's and the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec

from taskpool.core.registry import default_registry, is_handler_object
from taskpool.doors.options import NOTHING_SAID, Said, heard
from taskpool.errors import HandlerNotFound, InvalidHandler, InvalidPayload
from taskpool.model import Codec
from taskpool.wire.arity import Arity
from taskpool.wire.limits import MIB, PAYLOAD_BYTES_MAX
from taskpool.wire.messages import GetHandlers
from taskpool.wire.unpicklable import FUTURES_STAY, culprit, is_future, is_reference

if TYPE_CHECKING:
    from taskpool.doors.link import Link
    from taskpool.doors.submitter import Plan
    from taskpool.model import StepSpec

LABEL_CHARACTERS_MAX = 200


class NamedPlan:
    """How calls of one name travel; in the place of a Plan."""

    description = None

    def __init__(self, name: str, said: Said, arity: Arity | None = None) -> None:
        """arity: what is known of its parameters."""
        self.fn = self.name = name
        self.said = said
        self._arity = arity
        self.queue, self.priority = said.queue, said.priority
        self.fixed = said.fixed
        self.after = said.after
        self.names_of = said.names_of

    def travel(self) -> tuple[bytes, int]:
        """Return (packed options, scheduled_at) for now."""
        return self.fixed or self.said.packed()

    def call(self, link: Link, args: Sequence[Any]) -> tuple[int, bytes, StepSpec | None]:
        """Return (codec, payload) of a call, and what it depends on, if on anything."""
        if not self.after:
            return (*self.encode(args), None)
        from taskpool.doors.flow import dependent

        return dependent(link, cast("Plan", self), args, {})

    def check_count(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgCountError if it is known that the handler cannot be called so."""
        if self._arity is not None:
            self._arity.check(len(args), kwargs)

    def encode(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Return (codec, payload). InvalidPayload, ArgCountError."""
        self.check_count(args, kwargs or {})
        try:
            data = marshal_payload({"args": list(args), "kwargs": dict(kwargs or {}), "strict": True})
        except InvalidPayload as error:
            names = [] if self._arity is None else [slot.name for slot in self._arity.slots if slot.positional]
            parts = {names[i] if i < len(names) else f"number {i + 1}": value for i, value in enumerate(args)} | dict(kwargs or {})
            for name, value in parts.items():
                if found := culprit(value, _dump):
                    words = f"argument {name!r} of {self.name} cannot be written as JSON: {found}"
                    raise InvalidPayload(words) from error.__cause__
            raise
        return int(Codec.JSON), data


def plan_by_name(link: Link, name: str, said: Said) -> NamedPlan:
    """Return how calls of a name travel. HandlerNotFound, with the nearest names."""
    known = link.request(lambda seq: GetHandlers(seq, name)).handlers
    assert known
    info = known[0][1]
    return NamedPlan(info.name, said.over(NOTHING_SAID if info.said is None else heard(info.said)), info.arity)


def name_of(handler: Callable[..., Any] | str) -> str:
    """Return the name under which a handler is registered. InvalidHandler if it is none."""
    if isinstance(handler, str):
        return handler
    if is_handler_object(handler):
        return str(getattr(handler, "type"))  # noqa: B009  # mypy sees a callable
    from taskpool.wire.description import describe

    description = describe(handler)
    try:
        registered = default_registry.get(description.name)
    except HandlerNotFound:
        registered = None
    if registered is None or not description.registered:
        raise InvalidHandler(f"{description.name} is a plain function", hint="decorate it with @task, so that workers know it")
    return registered.name


def marshal_payload(payload: Any) -> bytes:
    """Return a value as JSON, as `publish` and calls by name send it. InvalidPayload if it cannot be."""
    try:
        data = msgspec.json.encode(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayload(f"the payload cannot be written as JSON: {culprit(payload, _dump) or error}") from error
    if b"null" in data and (lost := _not_finite(payload)) is not None:  # msgspec writes it as null
        raise InvalidPayload(
            f"the payload cannot be written as JSON, which has no {lost}", hint="pass None, or submit the function"
        )
    if len(data) > PAYLOAD_BYTES_MAX:
        raise InvalidPayload(
            f"the payload takes {len(data) / MIB:.1f} MiB, the limit is {PAYLOAD_BYTES_MAX // MIB} MiB",
            hint="pass the path of a file",
        )
    return data


def _dump(value: Any) -> bytes:
    """Return a value as JSON; TypeError, which says of futures what becomes of them."""
    return msgspec.json.encode(value, enc_hook=_refuse)


def _refuse(value: Any) -> NoReturn:
    name = type(value).__qualname__
    if is_reference(value):
        hint = "submit the function, or wait for the result, and send that"
        raise TypeError(f"the result that a {name} stands for has no place in JSON; {hint}")
    if is_future(value):
        raise TypeError(f"it holds a {name}, which {FUTURES_STAY}")
    raise TypeError(f"JSON has nothing for a {name}")


def _not_finite(payload: Any) -> float | None:
    """Return the first number of a payload that JSON has not: nan, inf."""
    left = [msgspec.to_builtins(payload)]
    while left:
        value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return value
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
    return None


def unmarshal_payload(data: bytes | str, type: Any = Any) -> Any:
    """Return a value from its JSON, as a type says (a dataclass, a Struct, …). InvalidPayload if it does not fit."""
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise InvalidPayload(f"the payload cannot be read: {error}") from error
