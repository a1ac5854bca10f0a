"""What truly happens in the model world, whoever knows of it: the measure for what the scheduler comes to believe."""

from __future__ import annotations

from taskpool.wire.jobs import Report

CRASH = "crash"  # the worker died by itself while the body ran
GONE = "gone"  # the caller that ran it itself left
LOST = "lost"  # the supervisor died before the body's end was stored
REPORTED = "reported"  # the body ended and its record is whole in the ring


class LawBroken(AssertionError):
    """The scheduler broke one of its promises; the message says which, and how to see it again."""


def obey(holds: object, words: str) -> None:
    """Raise LawBroken with these words unless the law holds."""
    if not holds:
        raise LawBroken(words)


class Fate:
    """What became of one attempt: was its body begun, and how did that end (REPORTED, CRASH, LOST, the why of a kill, or "")."""

    __slots__ = ("begun", "end", "orphan", "report", "told_to_stop", "void")

    def __init__(self) -> None:
        self.begun = False
        self.end = ""
        self.report: Report | None = None
        self.told_to_stop = False
        self.orphan = False  # its supervisor died before it was closed
        self.void = False  # the machine was booted anew: nobody can know any more how far it came


class Fates:
    """The fates of all attempts, by (task, attempt)."""

    def __init__(self) -> None:
        self.all: dict[tuple[int, int], Fate] = {}

    def of(self, task_id: int, attempt: int) -> Fate:
        """Return the fate of an attempt, which may not have come to anything yet."""
        fate = self.all.get((task_id, attempt))
        if fate is None:
            fate = self.all[task_id, attempt] = Fate()
        return fate

    def lose(self, task_id: int, attempt: int, *, void: bool) -> None:
        """The supervisor died while the store had that attempt running."""
        fate = self.of(task_id, attempt)
        fate.orphan = True
        fate.void = fate.void or void
        if fate.begun and fate.report is None:
            fate.end = LOST
