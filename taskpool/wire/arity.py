"""How many arguments a function takes, and under which names: what a caller can check who knows no more of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from taskpool.errors import ArgCountError


class Slot(NamedTuple):
    """One parameter: its name, whether it must be given, and how it may be."""

    name: str
    required: bool
    positional: bool
    keyword: bool


class Arity(msgspec.Struct, array_like=True, frozen=True):
    """The parameters of a function that has this name. more: it takes *args; more_named: it takes **kwargs; usage: for hints."""

    name: str
    slots: tuple[Slot, ...]
    more: bool = False
    more_named: bool = False
    usage: str = ""

    def check(self, given: int, named: Collection[str]) -> None:
        """Raise ArgCountError unless the function can be called with so many arguments by place and these by name."""
        positional = [slot.name for slot in self.slots if slot.positional]
        keywords = {slot.name for slot in self.slots if slot.keyword}
        placed = set(positional[:given])
        twice = [name for name in named if name in placed and name in keywords]
        unknown = [name for name in named if name not in keywords]
        missing = [s.name for s in self.slots if s.required and s.name not in placed and not (s.keyword and s.name in named)]
        if twice:
            raise ArgCountError(f"{self.name} was given {twice[0]!r} twice: by place and by name", hint=self.usage)
        if missing:
            raise ArgCountError(f"{self.name} misses {_listed(missing)}", hint=self.usage)
        if unknown and not self.more_named:
            raise ArgCountError(f"{self.name} has no parameter {_listed(unknown)}", hint=self.usage)
        if given > len(positional) and not self.more:
            raise ArgCountError(f"{self.name} takes {len(positional)} positional arguments, {given} were given", hint=self.usage)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
