"""Tasks that wait for others: what their edges ask for, and what becomes of them. Pure.

An edge leads from a parent to a child, under a condition on how the parent ends. While a parent lives its edge is open; when it has
ended otherwise than the condition asks, the edge is broken. The store keeps both counts of each child beside its row, and changes
them in the transaction that stores a parent's end. A child with a broken edge is cancelled, and with it, by the same rule, what
waits for its success; one without open edges may start. The store finds both by the counts after each commit, and tells the
scheduler first thing in the next turn: the counts are the durable list of what is to be done, so a restart is no special case.

A child that waits is pending. It stands in no line, unless it has a deadline or expires: then it waits, as far as the line of the
delayed is concerned, for that moment, at which it ends. (A mark in memory for each waiting child was rejected: graphs are as large
as the store.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from taskpool.clock import Instant
from taskpool.core import settle
from taskpool.core.commands import Command, End, Move, Place
from taskpool.core.events import DueStep, TaskRow
from taskpool.core.lifecycle import CANCELLED, FAILED, PENDING, QUEUED, SUCCEEDED, TERMINAL
from taskpool.errors import InvalidTask
from taskpool.model import FlowSpec, Options, StepSpec, TaskError, TaskSpec

ON_SUCCESS: Final = 0  # the parent must succeed
ON_ANY: Final = 1  # … must end
ON_FAILED: Final = 2  # … must end, and not well: failed, cancelled or interrupted
CONDITIONS: Final = {"success": ON_SUCCESS, "any": ON_ANY, "failed": ON_FAILED}

HELD_AT: Final = (1 << 62) + 1  # the time of a task that waits for its parents without a limit: never
INPUT_BYTES_MAX: Final = 32 << 20  # results that one task may be given as arguments, together
PATH_MAX: Final = 20  # steps of a cycle that are named


def is_open(status: str) -> bool:
    """Return whether an edge from a parent in this status still waits."""
    return status not in TERMINAL


def is_broken(condition: int, status: str) -> bool:
    """Return whether an edge can never be what its condition asks, by the parent's status."""
    if status not in TERMINAL or condition == ON_ANY:
        return False
    return (status == SUCCEEDED) == (condition == ON_FAILED)


def counted(edges: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """Return how many edges, each (condition, the parent's status), are open and how many broken."""
    return sum(is_open(status) for _, status in edges), sum(is_broken(*edge) for edge in edges)


# ---- coming in ------------------------------------------------------------------------------------------------------


def placed(step: StepSpec, flow: FlowSpec | None, ids: Sequence[int], due_at: int, options: Options) -> tuple[Place, int]:
    """Return where a new task stands, and its scheduled_at. ids: of the submit's tasks up to this one, its own last."""
    parents = [(ids[-ref - 1] if ref < 0 else ref, condition, is_argument) for ref, condition, is_argument in step.parents]
    place = Place(step.label, parents, due_at)
    if flow is not None:
        place.flow_id = ids[0]
        if len(ids) == 1:
            place.opens = flow
    return place, limit(options, begun=False) if parents else due_at


def takes_results(spec: TaskSpec) -> bool:
    """Return whether results of others are among a task's arguments."""
    return spec.step is not None and any(is_argument for _, _, is_argument in spec.step.parents)


def limit(options: Options, *, begun: bool) -> int:
    """Return until when (wall µs) a task may wait for its parents. begun: a body of it has, so that it cannot expire."""
    if options.deadline_at is None and options.expires_at is None:
        return HELD_AT
    moments = (options.deadline_at, None if begun else options.expires_at)
    return min((at for at in moments if at is not None), default=HELD_AT)


def hold(row: TaskRow, renewed: Move) -> None:
    """Let a task whose new round begins wait for its parents, ended or not: the store's counts say what becomes of it."""
    renewed.held = True
    until = limit(row.options, begun=settle.has_begun(row))
    if until != HELD_AT:
        until += row.round  # µs: in its line may still be its place of an older round, and no place may be there twice
    renewed.scheduled_at = row.scheduled_at = until


# ---- going on -------------------------------------------------------------------------------------------------------


def is_free(row: TaskRow, step: DueStep, now: Instant) -> bool:
    """Return whether a waiting task may start in this very turn."""
    return not step.culprit and step.size <= INPUT_BYTES_MAX and step.due_at + row.round <= now.wall


def decided(row: TaskRow, step: DueStep, now: Instant) -> Move:
    """Return what becomes of a waiting task: it is cancelled for a culprit, fails for too large an input, or may start."""
    if step.culprit:
        command = settle.move(row, CANCELLED, now, error=TaskError("upstream", why(step), False), finish_reason="upstream")
    elif step.size > INPUT_BYTES_MAX:
        words = f"the results that it takes as arguments have {step.size / 2**20:.1f} MiB, the limit is {INPUT_BYTES_MAX >> 20} MiB"
        command = settle.move(row, FAILED, now, error=TaskError("decode", words, False))
    else:
        due_at = step.due_at + row.round  # µs, as in `hold`
        late = due_at > now.wall
        command = settle.move(row, PENDING if late else QUEUED, now, scheduled_at=due_at if late else now.wall)
    command.held = False
    return command


def ended_well(commands: Iterable[Command]) -> dict[int, int]:
    """Return the tasks that succeed by the commands of a turn, with the bytes of their results: their children may start in it too.

    None if something else happens in it on which children depend, for then it is not worth the thought: the store says in the next.
    """
    found: dict[int, int] = {}
    for command in commands:
        kind = type(command)
        if kind is End:
            if command.to == SUCCEEDED:  # type: ignore[union-attr]  # mypy does not narrow by `type(x) is`
                report = command.report  # type: ignore[union-attr]
                found[command.id] = len(report.value or b"") if report is not None else 0  # type: ignore[union-attr]
            elif command.to in TERMINAL:  # type: ignore[union-attr]
                return {}
        elif kind is Move and (command.to in TERMINAL or command.clear_error):  # type: ignore[union-attr]
            return {}
    return found


def why(step: DueStep) -> str:
    """Return in words why a task cannot start any more."""
    relation = "with whose failure its flow ends" if step.by_flow else "which it depends on"
    return f"task {step.culprit} ({step.culprit_name}), {relation}, has ended {step.culprit_status}"


# ---- before anything is sent ----------------------------------------------------------------------------------------


def order(parents: Sequence[Sequence[int]], name: Callable[[int], str]) -> list[int]:
    """Return the numbers of the steps such that each comes after its parents, else as they are. parents: numbers, by step.

    Raises InvalidTask, naming the path, if they form a cycle.
    """
    if all(parent < step for step, mine in enumerate(parents) for parent in mine):
        return list(range(len(parents)))
    sorted_steps: list[int] = []
    state = [0] * len(parents)  # 1: on the path, 2: placed
    for root in range(len(parents)):
        if state[root]:
            continue
        state[root] = 1
        path = [(root, iter(parents[root]))]
        while path:
            step, rest = path[-1]
            parent = next(rest, None)
            if parent is None:
                path.pop()
                state[step] = 2
                sorted_steps.append(step)
            elif state[parent] == 1:
                raise _cycle([one for one, _ in path], parent, name)
            elif not state[parent]:
                state[parent] = 1
                path.append((parent, iter(parents[parent])))
    return sorted_steps


def _cycle(path: Sequence[int], back: int, name: Callable[[int], str]) -> InvalidTask:
    """Return the error for a path of steps, each a child of the next, that comes back to one of them."""
    steps = [name(step) for step in path[path.index(back) :]]
    steps.reverse()  # from parent to child
    steps = [steps[-1], *steps]
    if len(steps) > PATH_MAX:
        steps = [*steps[: PATH_MAX // 2], f"… ({len(steps) - PATH_MAX} more)", *steps[-PATH_MAX // 2 :]]
    return InvalidTask(f"the steps wait for each other: {' → '.join(steps)}", hint="take one of these edges away")
