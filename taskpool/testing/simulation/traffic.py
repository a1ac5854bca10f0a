"""What clients ask for, drawn by chance: tasks of all kinds, cancels, retries by hand."""

from __future__ import annotations

from random import Random

import msgspec

from taskpool.clock import US
from taskpool.core.lifecycle import SUCCEEDED
from taskpool.model import FlowSpec, Missed, OnInterrupt, Options, RetryPolicy, Schedule, StepSpec, TaskSpec
from taskpool.testing.simulation.conditions import Conditions

HANDLERS = ("short", "short", "middle", "long", "new")
ON_INTERRUPT: tuple[OnInterrupt, ...] = ("rerun", "hold", "hold", "hold", "fail")
RETRIES = (
    None,
    RetryPolicy(initial_interval=9.0, maximum_attempts=9, jitter=0.5),
    RetryPolicy(initial_interval=0.01, maximum_attempts=0, retryable_error_kinds=("effect",)),
    RetryPolicy(initial_interval=30.0, maximum_attempts=4, non_retryable_error_kinds=("timeout",)),
)


LABEL = "gpu"
RARE = ("retrying", "queued", "pending", "interrupted")


def rarity(status: str) -> int:
    """Rank a status low if tasks are seldom found in it, so that what is rare is met often enough."""
    return RARE.index(status) if status in RARE else len(RARE)


class Traffic:
    """Draws what clients send."""

    def __init__(self, random: Random, conditions: Conditions) -> None:
        self._random = random
        self._conditions = conditions
        self._uids = 0

    def graph(
        self, pairs: list[tuple[TaskSpec, Options]], stored: list[int]
    ) -> tuple[list[tuple[TaskSpec, Options]], FlowSpec | None]:
        """Return the tasks of a submit such that some wait for others of it, or for stored ones; mostly they are a flow."""
        random = self._random
        if random.random() >= self._conditions.graphs:
            return pairs, None
        steps = []
        for number, (spec, options) in enumerate(pairs):
            before = [*range(-number, 0), *random.sample(stored, min(len(stored), random.choice((0, 0, 0, 1))))]
            parents = random.sample(before, min(len(before), random.choice((0, 1, 1, 2, 3))))
            edges = [(parent, random.choice((0, 0, 0, 1, 2)), random.random() < 0.5) for parent in parents]
            steps.append((msgspec.structs.replace(spec, step=StepSpec(str(number), edges), unique=None), options))
        return steps, FlowSpec("flow", random.random() < 0.5) if random.random() < 0.8 else None

    def specs(self, now_wall: int) -> list[tuple[TaskSpec, Options]]:
        """Return the tasks of one submit, with their options decoded."""
        options = self.options(now_wall)
        packed = msgspec.msgpack.encode(options)
        return [(self._spec(packed, now_wall), options) for _ in range(self._random.choice((1, 1, 2, 3, 8)))]

    def _spec(self, options: bytes, now_wall: int) -> TaskSpec:
        random = self._random
        self._uids += 1
        delay_s = random.choice((None, None, None, -1.0, 0.0, 0.01, 2.0, 40.0))
        return TaskSpec(
            uid=self._uids.to_bytes(16, "big"),
            name=random.choice(HANDLERS),
            codec=1,
            payload=b"",
            options=options,
            queue=random.choice(self._conditions.queues),
            priority=random.choice((0, 0, 0, 1, -1)),
            scheduled_at=0 if delay_s is None else now_wall + round(delay_s * US),
            key=random.choice((None, None, *self._conditions.keys)) if self._conditions.keys else None,
            unique=random.choice((None, None, *self._conditions.uniques)) if self._conditions.uniques else None,
        )

    def options(self, now_wall: int) -> Options:
        """Return what a client may say of tasks."""
        random = self._random
        if random.random() < 0.2:
            return Options()
        return Options(
            max_attempts=random.choice((None, None, 0, 2, 9)),
            retry=random.choice(RETRIES),
            timeout_s=random.choice((None, None, 0.05, 1.0)),
            heartbeat_timeout_s=random.choice((None, None, None, 0.5)),
            deadline_at=self._at(now_wall),
            expires_at=self._at(now_wall),
            on_interrupt=random.choice(ON_INTERRUPT),
            at_most_once=random.random() < 0.25,
            crash_limit=random.choice((1, 2, 3)),
            max_interruptions=random.choice((1, 2, 20)),
            reply_to=random.choice(("", "", "box")),
            cpus=random.choice((None, None, 0.5, 2.0, 9.0)) if self._conditions.cpus else None,
            memory=random.choice((None, 3, 6, 8)) if self._conditions.memory else None,
            target=random.choice(("", LABEL)) if self._conditions.routes else "",
            key_limit=random.choice((1, 1, 2)) if self._conditions.keys else 1,
            key_on_retry=random.choice(("block", "block", "yield")) if self._conditions.keys else "block",
            on_conflict=random.choice(("existing", "raise", "replace")) if self._conditions.uniques else "existing",
            unique_period_s=random.choice((None, None, 0.5, 50.0)) if self._conditions.uniques else None,
        )

    def _at(self, now_wall: int) -> int | None:
        seconds = self._random.choice((None, None, None, -0.1, 0.05, 1.0, 10.0, 60.0))
        return None if seconds is None else now_wall + round(seconds * US)

    def schedule(self, number: int) -> Schedule:
        """Return a schedule: of a period that passes while the world turns, or of one that only jumps of the clock pass."""
        random = self._random
        missed: Missed = random.choice(("last", "skip", "all"))
        period_s = random.choice((1, 1, 400)) if missed != "all" else random.choice((400, 7 * 3600))
        return Schedule(
            name=f"schedule-{number}",
            spec=f"@every {period_s}s",
            handler=random.choice(HANDLERS),
            missed=missed,
            overlap=random.choice(("skip", "allow", "queue", "cancel_previous")),
            jitter_s=random.choice((0.0, 0.0, 3.0)),
            payload=b"",
            options=Options(recurrence=f"schedule-{number}", max_attempts=random.choice((None, 3))),
            queue=random.choice(self._conditions.queues),
        )

    def targets(self, statuses: dict[int, str]) -> list[int]:
        """Return tasks for a cancel or a retry: first a status by chance, so that rare ones are met, then tasks of that status."""
        random = self._random
        there = sorted(set(statuses.values()))
        if not there or random.random() < 0.03:
            return [1_000_000 + random.randrange(3)]  # there is no such task
        status = statuses[random.choice(list(statuses))] if random.random() < 0.6 else min(random.choices(there, k=3), key=rarity)
        of_it = [task_id for task_id, one in statuses.items() if one == status]
        return random.sample(of_it, min(len(of_it), random.choice((1, 2, 4))))

    def forces(self, statuses: dict[int, str], ids: list[int]) -> bool:
        """Return whether a retry is forced: a succeeded task may run again only then."""
        return self._random.random() < (0.5 if any(statuses.get(task_id) == SUCCEEDED for task_id in ids) else 0.1)
