"""Errors: what a supervisor refuses with is raised by the client as what it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskpool import errors
from taskpool.doors.refusals import error_of
from taskpool.errors import TaskFailed, TaskpoolError
from taskpool.supervisor.server import refusal


def leaves(cls: type[TaskpoolError] = TaskpoolError) -> Iterator[type[TaskpoolError]]:
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield sub
            yield from leaves(sub)


@pytest.mark.parametrize("cls", [cls for cls in leaves() if not issubclass(cls, TaskFailed)], ids=lambda cls: cls.__name__)
def test_an_error_comes_through_as_itself(cls: type[TaskpoolError]) -> None:
    raised = error_of(refusal(7, cls("what was wrong", hint="what would be right")))
    assert type(raised) is cls
    assert (raised.message, raised.hint) == ("what was wrong", "what would be right")


def test_codes_are_told_apart_and_every_error_is_in_the_tree() -> None:
    found = list(leaves())
    codes = [cls.code for cls in found]
    assert len(set(codes)) == len(codes)
    assert errors.__doc__ is not None
    for cls in found:
        assert cls.__name__ in errors.__doc__, f"{cls.__name__} is not in the figure"
        assert cls.__doc__, f"{cls.__name__} does not say what to do"
