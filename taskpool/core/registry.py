"""Handlers by name: what `@task` decorates, and what a worker looks up.

A name belongs to one function. The same function may be registered again (a script is imported once as `__main__` and once as
`__mp_main__`, a module is reloaded): then the newest object counts. Functions that were never registered are found by their
canonical name, which imports their module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from taskpool.core.directory import nearest, route
from taskpool.errors import DuplicateHandler, HandlerNotFound, InvalidHandler
from taskpool.model import Controller
from taskpool.wire.description import MAIN_NAMES, Description, canonical_name, describe, look_up, unwrapped
from taskpool.wire.zygote import HandlerInfo, HandlerOptions

NAME_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Handler:
    """One function under its name. options: what its decorator said of retries, timeouts, queue; opaque but for `told`."""

    name: str
    fn: Callable[..., Any]
    aliases: tuple[str, ...]
    options: Any
    description: Description


class Registry:
    """Handlers by name and alias."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._found: dict[str, Description] = {}

    def register(
        self, fn: Callable[..., Any], *, name: str | None = None, aliases: Iterable[str] = (), options: Any = None
    ) -> Handler:
        """Give a function its name (its canonical one unless told) and aliases, old names that stored tasks may carry.

        fn may also be an object with a `type`, which is its name, and a method `run(task, controller)`. Raises DuplicateHandler if
        another function has one of them, InvalidHandler for what cannot be called.
        """
        fn = unwrapped(fn)
        if is_handler_object(fn):
            name = fn.type if name is None else name  # type: ignore[attr-defined]
            fn = _as_function(fn)
        if not callable(fn):
            raise InvalidHandler(f"{fn!r:.80} of type {type(fn).__qualname__} cannot be called")
        given = _checked(canonical_name(fn) if name is None else name)
        names = (given, *(_checked(alias) for alias in one_or_several(aliases)))
        for taken in names:
            other = self._handlers.get(taken)
            if other is not None and _identity(other.fn) != _identity(fn):
                raise DuplicateHandler(f"{taken!r} is {canonical_name(other.fn)} already", hint="give one of them name=…")
        handler = Handler(given, fn, names[1:], options, self._described(fn, given))
        for each in names:
            self._handlers[each] = handler
        self._found.clear()
        return handler

    def _described(self, fn: Callable[..., Any], name: str) -> Description:
        """Return what is known of a function under its name here. A handler that workers know keeps the name that they know."""
        if self is not default_registry and describe(fn).registered:
            return Description(fn, name, registered=True)
        return describe(fn, name=name, registered=True)

    def bind(self, queue: str, type: str, fn: Any, *, options: Any = None) -> Handler:
        """Register a handler for the tasks of one type in one queue: its name is `queue/type`.

        Raises InvalidQueueName, InvalidTaskType, and what `register` does.
        """
        return self.register(fn, name=route(queue, type), options=options)

    def get(self, name: str) -> Handler:
        """Return the handler of that name or alias, or of that short form: what follows the colon of one name only.

        HandlerNotFound, with the nearest names.
        """
        handler = self.find(name)
        if handler is None:
            same = self._of_short_form(name)
            if len(same) > 1:
                raise HandlerNotFound(f"{name!r} is {' and '.join(map(repr, sorted(same)))}", hint="say which")
            raise HandlerNotFound(f"no handler is called {name!r}", hint=self._suggestion(name))
        return handler

    def find(self, name: str) -> Handler | None:
        """Return the handler of that name, alias or unambiguous short form, if there is one."""
        found = self._handlers.get(name)
        if found is None and ":" not in name:
            same = self._of_short_form(name)
            found = next(iter(same.values())) if len(same) == 1 else None
        return found

    def _of_short_form(self, short: str) -> dict[str, Handler]:
        """Return by name the handlers that are called so behind the colon."""
        if not short:
            return {}
        return {known.name: known for known in self._handlers.values() if known.name.partition(":")[2] == short}

    def names(self) -> tuple[str, ...]:
        """Return the names of all handlers, sorted, without aliases."""
        return tuple(sorted({handler.name for handler in self._handlers.values()}))

    def infos(self) -> tuple[HandlerInfo, ...]:
        """Return what other processes should know of the handlers, by name."""
        return tuple(_info(self._handlers[name]) for name in self.names())

    def said(self) -> dict[str, HandlerOptions]:
        """Return what the decorators said, by name and alias, of those handlers of whose tasks they said anything."""
        told = {name: handler.options.told() for name, handler in self._handlers.items() if handler.options is not None}
        return {name: said for name, said in told.items() if said is not None}

    def resolve(self, name: str) -> Description:
        """Return what runs under that name: a handler, else the function of that canonical name, imported if need be.

        HandlerNotFound, with the reason: also when its module cannot be imported.
        """
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self._search(name)
        return found

    def describe(self, fn: Callable[..., Any]) -> Description:
        """Return a function's name and signature. InvalidHandler if it cannot be called."""
        return describe(fn)

    def validate_args(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgCountError or ArgTypeError unless the handler of that name takes these arguments. HandlerNotFound."""
        self.get(name).description.validate_args(args, kwargs)

    def _search(self, name: str) -> Description:
        known = self.find(name)
        if known is not None:
            return known.description
        try:
            found = look_up(name)
        except LookupError as error:
            raise HandlerNotFound(f"no handler is called {name!r}: {error}", hint=self._suggestion(name)) from error
        except Exception as error:
            raise HandlerNotFound(f"the module of {name!r} cannot be imported: {type(error).__name__}: {error}") from error
        if name in self._handlers:  # importing the module has registered it
            return self._handlers[name].description
        if not callable(found):
            raise HandlerNotFound(f"{name!r} is a {type(found).__qualname__}, no function")
        return describe(found)

    def _suggestion(self, name: str) -> str:
        return nearest(name, self._handlers)


def _identity(fn: Any) -> tuple[Any, ...]:
    """Return what two objects share that are the same function, imported twice."""
    module = getattr(fn, "__module__", None)
    qualname = getattr(fn, "__qualname__", None)
    if module is None or qualname is None:
        return (id(fn),)
    code = getattr(fn, "__code__", None)
    line = code.co_firstlineno if code is not None and "<" in qualname else 0
    return ("__main__" if module in MAIN_NAMES else module, qualname, line)


def is_handler_object(value: Any) -> bool:
    """Return whether it is an object with a `type` and a method `run`, not a function and not a class."""
    if isinstance(value, type) or not callable(getattr(value, "run", None)):
        return False
    return isinstance(getattr(value, "type", None), str)


def _as_function(handler: Any) -> Callable[..., Any]:
    """Return the function that runs a handler object: with the controller, and the payload as its one argument."""

    def run(controller: Controller, payload: Any = None) -> Any:
        task = msgspec.structs.replace(controller.task, payload=payload)
        return handler.run(task, controller)

    cls = type(handler)
    run.__module__, run.__qualname__, run.__name__ = cls.__module__, f"{cls.__qualname__}.run", "run"
    run.__doc__ = cls.__doc__
    result = getattr(cls.run, "__annotations__", {}).get("return", Any)
    if isinstance(result, str):
        try:
            result = inspect.get_annotations(cls.run, eval_str=True).get("return", Any)
        except Exception:  # a name that only a type checker can follow
            result = Any
    run.__annotations__ = {"controller": Controller, "payload": getattr(handler, "payload_type", Any), "return": result}
    return run


def _info(handler: Handler) -> HandlerInfo:
    said = handler.options.told() if handler.options is not None else None
    usage = handler.description.usage.removeprefix("it is called as ")
    words = (inspect.getdoc(handler.fn) or "").partition("\n")[0]
    return HandlerInfo(handler.name, handler.aliases, canonical_name(handler.fn), usage, words, said, handler.description.arity)


def one_or_several(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple: a single text is one name."""
    return (names,) if isinstance(names, str) else tuple(names)


def _checked(name: Any) -> str:
    is_text = isinstance(name, str)
    if not is_text or not name or len(name) > NAME_LENGTH_MAX or not name.isprintable() or name != name.strip():
        raise InvalidHandler(f"{name!r:.80} is no name: printable text of 1 to {NAME_LENGTH_MAX} characters is")
    return str(name)


default_registry = Registry()
