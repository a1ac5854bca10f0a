"""The names that tasks share or must not share: `key` and `unique`, said once or computed from a task's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskpool.errors import InvalidTask, TaskpoolError
from taskpool.model import check_key

Name = str | Callable[..., str | None]


class Names:
    """What gives each call its key and its unique key, None where it has none."""

    __slots__ = ("_fixed", "_key", "_unique")

    def __init__(self, key: Name | None, unique: Name | None) -> None:
        self._key = key
        self._unique = unique
        self._fixed = None if callable(key) or callable(unique) else (key, unique)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Return (key, unique key) of a call. InvalidTask."""
        if self._fixed is not None:
            return self._fixed
        return _of("key", self._key, args, kwargs), _of("unique", self._unique, args, kwargs)


def names(
    names_of: Names | None, args: Sequence[Any], kwargs: Mapping[str, Any], *, depends: bool
) -> tuple[str | None, str | None]:
    """Return (key, unique key) of a call; depends: on other tasks. InvalidTask."""
    if names_of is None:
        return None, None
    key, unique = names_of(args, kwargs)
    if depends and unique is not None:
        raise InvalidTask("a task that waits for others has no unique key", hint="leave out unique, or the tasks that it waits for")
    return key, unique


def _of(name: str, value: Name | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        found = value(*args, **kwargs)
    except TaskpoolError:
        raise
    except Exception as error:
        raise InvalidTask(f"the function for {name} fails on these arguments: {type(error).__name__}: {error}") from error
    return None if found is None else check_key(name, found)


def key_or_function(name: str, value: Any) -> Name | None:
    """Return a key as an option keeps it; InvalidTask."""
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    return check_key(name, value)


def computed_elsewhere(name: str) -> Callable[..., str | None]:
    """Return what stands for a function that this process has not got: a call that relies on it says why it cannot."""

    def unknown(*args: Any, **kwargs: Any) -> str | None:
        raise InvalidTask(
            f"this handler computes its {name} from the arguments, which needs its function",
            hint=f"import the handler, or say {name}=",
        )

    return unknown
