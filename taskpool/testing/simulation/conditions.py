"""The weather of one run: which faults there are, and how often. Each seed has its own, so that rare ones meet each other."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from taskpool.model import Queue


class Conditions(msgspec.Struct, frozen=True):
    """Sizes, and chances (0..1) per occasion."""

    size: int
    spares: int
    depth_max: int
    line_max: int
    queues: tuple[str, ...]
    tasks_max: int  # no submits while so many are alive
    haste: float  # chance that the supervisor turns at a step, though nothing calls for it
    crash: float  # of a body, per step
    endless: float  # of a body: it ends only when it is made to
    idle_death: float  # of an idle worker, per step
    boot_failure: float  # of a worker that starts
    kill: float  # of the supervisor, between any two steps of a turn
    reboot: float  # given a kill: of the machine
    late: float  # of a message: it comes a turn later, with all behind it
    echo: float  # of a message, per turn: it comes again
    busy: float  # of a commit: it has to wait
    full: float  # of a commit: there is no room for what is new
    twice: float  # of a submit: its client sends it twice
    jump: float  # of the wall clock, per step
    stop: float  # per request of a client
    guests: float  # of a submit: it is a transaction of a guest's
    rules: tuple[Queue, ...]  # of some of the queues
    pause: float  # per request of a client: of a queue, or its end
    graphs: float  # per submit: that its tasks depend on others
    size_max: int  # to so many workers the pool grows
    cpus: float  # of the machine, for tasks that say how many they need; 0: no limit, and none says so …
    memory: int  # … and its memory
    callers: float  # per request of a client: that it wants to run these tasks itself
    labels: int  # workers with the label that tasks may name; 0: none does
    schedules: int = 0  # cron schedules that the store has
    prune: float = 0.0  # per turn: that what has ended is pruned
    children: float = 0.0  # of a body that succeeds: it spawns tasks
    keys: tuple[str, ...] = ()  # serialization keys that tasks may have
    uniques: tuple[str, ...] = ()  # … and unique ones

    @property
    def routes(self) -> bool:
        """Whether tasks have targets: not where they need room too, of which a law would have to know who waits for what."""
        return bool(self.labels) and not self.cpus and not self.memory


def conditions(random: Random) -> Conditions:
    """Draw the weather of a seed: each fault is either absent or, mostly, rare."""

    def chance(most: float) -> float:
        return random.choice((0.0, most / 4, most))

    return Conditions(
        size=random.choice((1, 1, 2, 3)),
        spares=random.choice((0, 1)),
        depth_max=random.choice((1, 3, 8, 128)),
        line_max=random.choice((2, 3, 4, 6, 1000)),
        queues=("a", "b", "c")[: random.choice((1, 1, 2, 3))],
        tasks_max=random.choice((4, 12, 24)),
        haste=random.choice((0.0, 0.3)),
        crash=chance(0.08),
        endless=chance(0.2),
        idle_death=chance(0.01),
        boot_failure=chance(0.6),
        kill=chance(0.01),
        reboot=chance(0.6),
        late=chance(0.3),
        echo=chance(0.6),
        busy=chance(0.1),
        full=chance(0.3),
        twice=chance(0.2),
        jump=chance(0.02),
        stop=chance(0.13),
        guests=random.choice((0.0, 0.0, 0.0, 0.4)),
        rules=tuple(_rules(random, name) for name in random.choice(("", "", "", "a", "bc"))),
        pause=chance(0.06),
        graphs=random.choice((0.0, 0.0, 0.0, 0.3, 0.7)),
        size_max=random.choice((0, 0, 0, 3, 5)),
        cpus=random.choice((0, 0, 0, 3)),
        memory=random.choice((0, 10)),
        callers=random.choice((0.0, 0.3, 0.6)),
        labels=random.choice((0, 0, 1, 2)),
        schedules=random.choice((0, 0, 0, 2)),
        keys=random.choice(((), (), (), ("k",), ("k", "l", "m"))),
        uniques=random.choice(((), (), (), ("u",), ("u", "v", "w"))),
    )


def pruning(seed: int) -> float:
    """Draw how often is pruned; beside the others' chances, which stay what they are."""
    return Random(f"prune {seed}").choice((0.0, 0.0, 0.1))


def spawning(seed: int) -> float:
    """Draw how often bodies spawn tasks; beside the others' chances, too."""
    return Random(f"children {seed}").choice((0.0, 0.0, 0.0, 0.3))


def _rules(random: Random, name: str) -> Queue:
    """Draw the rules of a queue."""
    return Queue(
        name,
        concurrency=random.choice((None, 1, 1, 2, 3)),
        max_retry=random.choice((None, 0, 2)),
        retry_delay=random.choice((None, 0.0, 3.0)),
        buffer_size=random.choice((None, 1, 3)),
        paused=random.random() < 0.1,
        **_rate(random),
    )


def _rate(random: Random) -> dict[str, Any]:
    rate = random.choice((None, None, 0.5, 30.0))
    return {} if rate is None else {"rate": rate, "burst": random.choice((None, 1, 2))}
