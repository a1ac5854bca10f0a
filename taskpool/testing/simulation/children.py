"""Children in the model world: some bodies spawn tasks with their success, and these exist if, and only if, it was recorded.

What an attempt spawns follows from its number, not from the run's chance: so the other seeds stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final

import msgspec

from taskpool.model import Options, TaskSpec
from taskpool.testing.simulation.conditions import Conditions
from taskpool.wire.jobs import Report

HANDLERS: Final = ("short", "middle")
MARK: Final = b"chil"  # with which the uids of all children begin


def drawn(conditions: Conditions, task_id: int, attempt: int) -> list[TaskSpec] | None:
    """Return what a body spawns with its success: mostly nothing, and fewer children than there are parents."""
    if not conditions.children:
        return None
    random = Random(f"children of {task_id} {attempt}")
    if random.random() >= conditions.children:
        return None
    packed = msgspec.msgpack.encode(Options(parent_id=task_id))
    return [
        TaskSpec(
            MARK + task_id.to_bytes(5, "big") + attempt.to_bytes(5, "big") + number.to_bytes(2, "big"),
            random.choice(HANDLERS),
            0,
            b"",
            random.choice((b"", packed)),
            random.choice(conditions.queues),
            random.choice((0, 0, 1, -1)),
        )
        for number in range(random.choice((1, 1, 3)))
    ]


def expected(report: Report | None) -> Iterable[bytes]:
    """Return the uids of what a success leaves."""
    return [spec.uid for spec in (report.children if report is not None else None) or ()]


def found(uids: Iterable[bytes]) -> set[bytes]:
    """Return those that are children's."""
    return {uid for uid in uids if uid.startswith(MARK)}
