"""Graphs in the model world: the edges of each task, and what follows from its parents' rows, looked at anew each time."""

from __future__ import annotations

import copy
from collections.abc import Collection

from taskpool.core.commands import Place
from taskpool.core.events import DueStep, TaskRow
from taskpool.core.graph import HELD_AT
from taskpool.core.lifecycle import CANCELLED, FAILED, PENDING, SUCCEEDED, TERMINAL

SUCCESS, ANY, FAILURE = range(3)


class Stored:
    """One task of the store. `row` is what the scheduler would read; `attempts` maps each number to its outcome."""

    __slots__ = ("attempts", "ended_at", "finish_reason", "result", "row", "uid")

    def __init__(self, uid: bytes, row: TaskRow) -> None:
        self.uid = uid
        self.row = row
        self.attempts: dict[int, str] = {}
        self.result = False
        self.finish_reason: str | None = None
        self.ended_at = 0  # wall µs, of one that has ended


class ModelStep:
    """A task's place among others. held: it waits for its parents."""

    __slots__ = ("held", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.held = bool(place.parents)


class Graphs:
    """The edges, and which flows end with their first failure. No counts: all is read from the tasks' rows."""

    def __init__(self, tasks: dict[int, Stored]) -> None:
        self._tasks = tasks
        self.steps: dict[int, ModelStep] = {}
        self._fail_fast: set[int] = set()
        self._fallen: dict[int, int] = {}  # flow → the step that failed first

    def insert(self, task_id: int, place: Place) -> None:
        """Store where a new task stands."""
        self.steps[task_id] = ModelStep(place)
        if place.opens is not None and place.opens.fail_fast:
            self._fail_fast.add(task_id)

    def ended(self, row: TaskRow) -> None:
        """A task has ended."""
        step = self.steps.get(row.id)
        if step is None:
            return
        step.held = False
        flow = step.place.flow_id
        if row.status == FAILED and flow in self._fail_fast and flow is not None:
            self._fallen.setdefault(flow, row.id)

    def renewed(self, task_id: int) -> None:
        """A task has a new round: its flow goes on."""
        step = self.steps.get(task_id)
        if step is not None and step.place.flow_id is not None:
            self._fallen.pop(step.place.flow_id, None)

    def edges(self, task_id: int) -> list[tuple[int, str]]:
        """Return the edges of a task: (condition, the parent's status)."""
        return [(condition, self._tasks[parent].row.status) for parent, condition, _ in self.steps[task_id].place.parents]

    def counts(self, task_id: int) -> tuple[int, int]:
        """Return how many edges of a task wait, and how many can never be what they ask for."""
        waiting = broken = 0
        for condition, status in self.edges(task_id):
            if status not in TERMINAL:
                waiting += 1
            elif (condition == SUCCESS and status != SUCCEEDED) or (condition == FAILURE and status == SUCCEEDED):
                broken += 1
        return waiting, broken

    def kept(self, going: set[int]) -> set[int]:
        """Return those of these tasks that must stay, because a task that stays depends on them, or their flow is not over."""
        kept = {
            task_id
            for task_id, step in self.steps.items()
            if step.place.flow_id is not None
            and any(other not in going for other, one in self.steps.items() if one.place.flow_id == step.place.flow_id)
        }
        while True:
            more = {
                parent
                for task_id, step in self.steps.items()
                if task_id not in going or task_id in kept
                for parent, _, _ in step.place.parents
            } - kept
            if not more:
                return kept & going
            kept |= more

    def has_parents(self, task_id: int) -> bool:
        """Return whether a task depends on others."""
        return task_id in self.steps and bool(self.steps[task_id].place.parents)

    def is_held(self, task_id: int) -> bool:
        """Return whether a task waits for its parents."""
        return task_id in self.steps and self.steps[task_id].held

    def is_out_of_line(self, row: TaskRow) -> bool:
        """Return whether a waiting task stands in no line, because nothing but its parents makes it go on."""
        return row.status == PENDING and row.scheduled_at == HELD_AT and self.is_held(row.id)

    def dependent(self, ids: list[int]) -> frozenset[int]:
        """Return those of the tasks that depend on others."""
        return frozenset(task_id for task_id in ids if self.has_parents(task_id))

    def culprits(self, task_id: int) -> bool:
        """Return whether a task can be cancelled for another: a parent, or the step whose failure ends its flow."""
        step = self.steps.get(task_id)
        if step is None:
            return False
        return self.counts(task_id)[1] > 0 or step.place.flow_id in self._fallen

    def due(self) -> list[DueStep]:
        """Return the tasks that need not wait any longer, with a culprit if they can never start."""
        culprits: dict[int, int] = {}
        while True:
            before = len(culprits)
            for task_id, step in self.steps.items():
                if not step.held or task_id in culprits:
                    continue
                doomed = [parent for parent, condition, _ in step.place.parents if condition == SUCCESS and parent in culprits]
                if doomed or self.counts(task_id)[1]:
                    culprits[task_id] = (doomed or [step.place.parents[0][0]])[0]
            if len(culprits) == before:
                break
        for task_id, step in self.steps.items():
            row, fallen = self._tasks[task_id].row, self._fallen.get(step.place.flow_id or 0)
            if fallen is not None and row.status not in TERMINAL and row.cancel_requested_at is None:
                culprits.setdefault(task_id, fallen)
        free = [task_id for task_id, step in self.steps.items() if step.held and not any(self.counts(task_id))]
        return [
            DueStep(
                copy.copy(self._tasks[task_id].row),
                self.steps[task_id].place.due_at,
                culprits.get(task_id, 0),
                "short",
                CANCELLED if task_id in culprits else "",
            )
            for task_id in sorted({*culprits, *free})
        ]

    def foreseen(self, ended: Collection[int]) -> list[DueStep]:
        """Return the tasks that may start once these have succeeded, one of them at least a parent."""
        free = []
        for task_id, step in self.steps.items():
            last = {parent: condition for parent, condition, _ in step.place.parents if parent in ended}
            waiting, broken = self.counts(task_id)
            if step.held and last and waiting == len(last) and not broken and FAILURE not in last.values():
                free.append(DueStep(copy.copy(self._tasks[task_id].row), step.place.due_at))
        return sorted(free, key=lambda step: step.row.id)
