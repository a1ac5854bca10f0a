"""Results of other tasks as arguments: references that a payload holds in their place, wherever in it they stand.

What stands for a result (a future, a step of a flow) pickles itself by `to`, which notes it and leaves its number; so plain pickle
finds it at any depth, and calls without any cost nothing but a look at an empty list. In the worker the numbers become the results
that came with the job, each decoded once, when it is first met.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskpool.errors import InvalidPayload


class OutOfPlace(InvalidPayload, TypeError):
    """A future was to be pickled that is no argument of a task."""


class _Notes(threading.local):
    """What one thread encodes or decodes at the moment."""

    def __init__(self) -> None:
        self.met: list[Any] | None = None
        self.given: list[Callable[[], Any]] = []
        self.values: dict[int, Any] = {}


_notes = _Notes()


class Noted:
    """While it is entered, references may be pickled; it yields a list that tells which were met, in the order of their numbers.

    (A class: a flow enters it once a step, and a generator takes three times as long.)
    """

    __slots__ = ("_before",)

    def __enter__(self) -> list[Any]:
        self._before, _notes.met = _notes.met, []
        return _notes.met

    def __exit__(self, *_: object) -> None:
        _notes.met = self._before


def to(target: Any) -> tuple[Any, ...]:
    """Return what pickles a reference to the result of a target. OutOfPlace outside of the arguments of a task."""
    met = _notes.met
    if met is None:
        raise OutOfPlace(
            f"a {type(target).__name__} belongs to its process; only as an argument of submit does it travel, as its result",
            hint="send its id, and use pool.future(id) there",
        )
    for number, known in enumerate(met):
        if known is target:
            return result, (number,)
    met.append(target)
    return result, (len(met) - 1,)


def are_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether one of the arguments themselves is a reference."""
    if _notes.met is None:
        return False
    for value in args:
        if getattr(type(value), "_is_reference", False):
            return True
    return bool(kwargs) and any(getattr(type(value), "_is_reference", False) for value in kwargs.values())


def give(results: Sequence[Callable[[], Any]]) -> None:
    """Tell the results that references stand for from now on, in this thread: functions that decode them."""
    _notes.given, _notes.values = list(results), {}


def result(number: int) -> Any:
    """Return the result that a reference stands for; called by pickle."""
    if number not in _notes.values:
        _notes.values[number] = _notes.given[number]()
    return _notes.values[number]
