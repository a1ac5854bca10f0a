"""`@task`: a function that is still that function, and can also run in a pool under options that it carries."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from taskpool.core.directory import route
from taskpool.core.queues import DEFAULT
from taskpool.core.registry import Registry, default_registry, one_or_several
from taskpool.doors.client import current_pool
from taskpool.doors.future import TaskFuture
from taskpool.doors.options import NOTHING_SAID, Said, TaskOptions
from taskpool.doors.submitter import Submitter
from taskpool.errors import InvalidTask
from taskpool.model import Controller
from taskpool.protocols import Handler
from taskpool.wire.description import MAIN_NAMES, main_is_importable
from taskpool.worker.controller import current

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskFunction(Generic[P, R]):
    """A handler: a function with a name and options. Called, it just runs here; submitted, it becomes a task.

    `submit` and its kin use the pool that was entered last (`with Pool(…)`); `pool.submit(handler, …)` uses that one.
    """

    __taskpool__ = True
    __wrapped__: Callable[..., R]
    __name__: str
    __qualname__: str

    def __init__(
        self, fn: Callable[..., R], name: str, decorated: Said, wants_controller: bool, given: Said = NOTHING_SAID
    ) -> None:
        """decorated: what the decorator says, given: what `options` says, which also wins over a pool's view."""
        functools.update_wrapper(self, fn)
        self.name = name
        self._decorated = decorated
        self._given = given
        self._said = given.over(decorated)
        self._wants_controller = wants_controller

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now. One that wants a controller is given the running task's, or one that does nothing."""
        given: tuple[object, ...] = args
        if self._wants_controller and not (given and _is_controller(given[0])):
            return self.__wrapped__(current(), *args, **kwargs)
        return self.__wrapped__(*args, **kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Run it as a task; durable when this returns. As `pool.submit`."""
        return current_pool().submit(self, *args, **kwargs)

    def submit_nowait(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Run it as a task, durable within a moment. As `pool.submit_nowait`."""
        return current_pool().submit_nowait(self, *args, **kwargs)

    def submit_many(self, items: Iterable[Any]) -> list[TaskFuture[R]]:
        """Run it for each item as a task of its own. As `pool.submit_many`."""
        one: Any = self  # of one argument, if it is called so
        return current_pool().submit_many(one, items)

    def map(self, *iterables: Iterable[Any], **how: Any) -> Iterator[R]:
        """Return an iterator over its results for the items. As `pool.map`, with the same keywords."""
        return current_pool().map(self, *iterables, **how)

    def options(self, **options: Unpack[TaskOptions]) -> TaskFunction[P, R]:
        """Return this handler under further options. Raises InvalidTask, naming the option."""
        return TaskFunction(self.__wrapped__, self.name, self._decorated, self._wants_controller, self._given.plus(options))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Make it a method of classes, as a function is."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it by its name, as a function; under further options, by that and them; in a session with its function."""
        if self.__module__ in MAIN_NAMES and not main_is_importable():
            return TaskFunction, (self.__wrapped__, self.name, self._decorated, self._wants_controller, self._given)
        return _rebuild, (self.__module__, self.__qualname__, self._given._values)

    def __repr__(self) -> str:
        return f"<task {self.name}>" if self._said == NOTHING_SAID else f"<task {self.name}, {self._said!r}>"


def _rebuild(module: str, qualname: str, values: dict[str, Any]) -> TaskFunction[Any, Any]:
    import importlib

    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    if not values:
        return found  # type: ignore[no-any-return]
    return TaskFunction(found.__wrapped__, found.name, found._decorated, found._wants_controller, Said(values))


def _is_controller(value: object) -> bool:
    return hasattr(value, "raise_if_cancelled") and hasattr(value, "checkpoint")


class _Decorator:
    """What `@task(…)` with options decorates with."""

    def __init__(self, name: str | None, aliases: Iterable[str], registry: Registry, said: Said) -> None:
        self._name, self._aliases, self._registry, self._said = name, one_or_several(aliases), registry, said

    @overload
    def __call__(self, fn: Callable[Concatenate[Controller, P], R], /) -> TaskFunction[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> TaskFunction[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> TaskFunction[..., Any]:
        handler = self._registry.register(fn, name=self._name, aliases=self._aliases, options=self._said)
        return TaskFunction(handler.fn, handler.name, self._said, handler.description.wants_controller)


@overload
def task(fn: Callable[Concatenate[Controller, P], R], /) -> TaskFunction[P, R]: ...


@overload
def task(fn: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(
    *,
    name: str | None = None,
    type: str | None = None,
    aliases: Iterable[str] = (),
    registry: Registry = ...,
    **options: Unpack[TaskOptions],
) -> _Decorator: ...


def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    type: str | None = None,
    aliases: Iterable[str] = (),
    registry: Registry = default_registry,
    **options: Unpack[TaskOptions],
) -> Any:
    """Make a function a handler: `@task`, or `@task(queue="cpu", max_attempts=3, timeout=60)`.

    name: under which it is stored (its module and qualified name, unless told); type: with queue=, what `publish` calls its tasks;
    aliases: older names that stored tasks may carry; the rest: options of all its tasks, which a submit may override. A first
    parameter annotated Controller is filled in by the worker and is no argument of the task. Raises InvalidTask for options,
    DuplicateHandler for a name that is taken.
    """
    if type is not None:
        if name is not None:
            raise InvalidTask("a handler has a name, or a type in a queue", hint="aliases= gives it further names")
        name = route(options.get("queue", DEFAULT), type)
    decorator = _Decorator(name, aliases, registry, NOTHING_SAID.plus(options))
    return decorator if fn is None else decorator(fn)


def register(
    handler: Callable[..., Any] | Handler,
    /,
    *,
    name: str | None = None,
    type: str | None = None,
    aliases: Iterable[str] = (),
    registry: Registry = default_registry,
    **options: Unpack[TaskOptions],
) -> TaskFunction[..., Any]:
    """Make a function or a handler object (its `type` is its name) a handler, at module level; the same as decorating with `task`.

    Return it as something that can be submitted. The same again is fine. Raises DuplicateHandler, InvalidHandler, InvalidTask.
    """
    made: TaskFunction[..., Any] = task(name=name, type=type, aliases=aliases, registry=registry, **options)(handler)  # type: ignore[arg-type]
    return made


__all__ = ["Submitter", "TaskFunction", "register", "task"]
