"""What the machine has room for: tasks that say how many processors or how much memory they need start only while the sum fits.

A task that says nothing counts as one processor and no memory. One that needs more than there is runs alone. Who finds no
room is held on to, so that it is not overtaken for ever: while it waits for memory no other that needs memory starts, while it
waits for processors no other at all. What runs is counted anew each turn, so that no counter can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from taskpool.core.events import TaskRow
from taskpool.core.mailbox import Mailbox
from taskpool.errors import InvalidTask
from taskpool.model import Options, Reason

CPUS = "cpus"
MEMORY = "memory"


class Room:
    """The processors and bytes that are left. Those of the machine: at least one processor a worker."""

    def __init__(self, cpus: float, memory: int) -> None:
        """cpus, memory (bytes): what there is for all tasks together; 0: without limit."""
        self.cpus = cpus or float("inf")
        self.memory = memory or float("inf")
        self._cpus_left: float = self.cpus
        self._memory_left: float = self.memory
        self.held: TaskRow | None = None  # the first that found no room
        self._lacks = ""

    def measure(self, boxes: Iterable[Mailbox], still_waits: Callable[[TaskRow], bool]) -> None:
        """Begin a turn: see what is left, and whether the one that found no room still may start."""
        self._cpus_left, self._memory_left = self.cpus, self.memory
        for box in boxes:
            if box.sent and not box.leaving:
                # One body runs at a time, and whoever needs more than others has the mailbox for itself.
                self._count(next(iter(box.sent.values())))
            elif box.sent and box.caller is not None:
                row = next(iter(box.sent.values()))
                if row.options.cpus is not None or row.options.memory is not None:
                    self._count(row)  # else it is no business of the pool what its callers do
        if self.held is not None and not still_waits(self.held):
            self.held = None

    @property
    def is_closed(self) -> bool:
        """Whether one waits for processors, so that nothing is to stand behind what runs."""
        return self.held is not None and self._lacks == CPUS

    def admits(self, row: TaskRow) -> bool:
        """Return whether a task may start now; if it is the first that may not, it is held on to."""
        held = self.held
        if held is not None and held.queue == row.queue:
            self.held = None  # it is this one, or one that came before it in its queue
        elif held is not None and (self._lacks == CPUS or row.options.memory is not None):
            return False
        lacks = self._lack(row)
        if lacks:
            self.held, self._lacks = row, lacks
        return not lacks

    def obstacle(self, row: TaskRow) -> str:
        """Return in words what a task finds too little of that says what it needs, or ""; after `measure`."""
        if row.options.cpus is None and row.options.memory is None:
            return ""
        reason = self.reason(row)
        return "" if reason is None else reason.detail

    def let_go(self, row: TaskRow) -> None:
        """Hold on to a task no more that is about to need something else, or to stand elsewhere."""
        if self.held is row:
            self.held = None

    def check(self, options: Options) -> None:
        """Raise InvalidTask for a task that this machine can never have room for."""
        if (options.cpus or 0) > self.cpus:
            raise InvalidTask(f"the task needs {options.cpus:g} cpus; this pool has {self.cpus:g}", hint="nothing was stored")
        if (options.memory or 0) > self.memory:
            needs, has = (options.memory or 0) / 1e9, self.memory / 1e9
            raise InvalidTask(f"the task needs {needs:.1f} GB of memory; this machine has {has:.1f} GB", hint="nothing was stored")

    def reason(self, row: TaskRow) -> Reason | None:
        """Return in words what a waiting task finds too little of, None if that is nothing."""
        held, options = self.held, row.options
        lacks = self._lack(row)
        if lacks == CPUS:
            left = f"{max(0.0, self._cpus_left):g} of {self.cpus:g} are free"
            return Reason(CPUS, f"waits for processors: it needs {options.cpus or 1.0:g}, {left}")
        if lacks == MEMORY:
            left = f"{max(0, self._memory_left) / 1e9:.2f} of {self.memory / 1e9:.2f} GB are not spoken for"
            return Reason(MEMORY, f"waits for memory: it needs {(options.memory or 0) / 1e9:.2f} GB, {left}")
        if held is not None and held is not row and (self._lacks == CPUS or options.memory is not None):
            return Reason(self._lacks, f"waits behind task {held.id}, which is next and waits for {self._lacks}")
        return None

    def take(self, row: TaskRow) -> None:
        """Count a task that starts on an idle worker."""
        self._count(row)
        if self.held is row:
            self.held = None

    def _count(self, row: TaskRow) -> None:
        self._cpus_left -= min(row.options.cpus or 1.0, self.cpus)
        self._memory_left -= min(row.options.memory or 0, self.memory)

    def _lack(self, row: TaskRow) -> str:
        """Return what there is too little of for a task."""
        options = row.options
        if min(options.cpus or 1.0, self.cpus) > self._cpus_left:
            return CPUS
        if options.memory is not None and min(options.memory, self.memory) > self._memory_left:
            return MEMORY
        return ""
