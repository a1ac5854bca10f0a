"""The sweep: many seeds, and what they met.

TASKPOOL_SIM_SEEDS scales it (how many seeds), TASKPOOL_SIM_FIRST moves it to seeds that CI has not seen, TASKPOOL_SIM_SEED replays
one, with its story on standard output.
"""

from __future__ import annotations

import os
from collections import Counter

from taskpool.testing.simulation.fates import LawBroken
from taskpool.testing.simulation.trace import NEW, STATUSES, Coverage, Trace
from taskpool.testing.simulation.world import simulate

SEEDS = 2100
BROKEN_MAX = 3  # seeds that fail before the sweep gives up
MET_MIN = 1000  # times that each pair of status and event that can meet must have met, in a full sweep
OF_SCHEDULES = ("Scheduled", "CronAsked")  # only every fourth world has schedules: for these events fewer will do
OF_KEYS = ("KeysKept",)  # and two of five have keys
OF_CALLERS = ("CallerSpoke", "CallerGone")  # and few tasks are run by clients
MET_MIN_SCHEDULES = MET_MIN // 4

MET_MIN_STEPS = 5  # of steps that are due: nearly all are pending, others are met when a flow ends with its first failure

STORED = tuple(status for status in STATUSES if status != NEW)
ENDED = ("succeeded", "failed", "cancelled", "interrupted")

# event → (statuses that can never meet it, why)
CANNOT: dict[str, tuple[tuple[str, ...], str]] = {
    "Scheduled": ((NEW, *ENDED), "names the tasks of schedules that have not ended"),
    "KeysKept": ((NEW, "pending", "running", *ENDED), "names what waits and failed before"),
    "CronAsked": ((NEW,), "names no task, so it meets the stored ones"),
    "Opened": ((NEW,), "names no task, so it meets the stored ones"),
    "QueueSet": ((NEW,), "names no task, so it meets the stored ones"),
    "Recovered": ((NEW, *(status for status in STORED if status != "running")), "only what the store has running is recovered"),
    "StepsDue": ((NEW, *ENDED), "names what waits for its parents, or what lives in a flow that ends"),
    "Submitted": (STORED, "names new tasks only: a uid that is stored is answered by the desk"),
    "Arrived": (STORED, "names new tasks only: a uid that is stored is taken out of the inbox, and that is all"),
    "Reported": ((), ""),  # also what was pruned meanwhile
    "Saved": ((), ""),
    "Passed": ((NEW,), "names no task, so it meets the stored ones"),
    "TakenBack": ((NEW, *(status for status in STORED if status != "running")), "what lies in a mailbox is running"),
    "WorkerReady": ((NEW,), "names no task, so it meets the stored ones"),
    "WorkerFailed": ((NEW,), "names no task, so it meets the stored ones"),
    "WorkerDied": ((NEW, *(status for status in STORED if status != "running")), "what lies in a mailbox is running"),
    "CancelAsked": ((), ""),
    "RetryAsked": ((NEW,), "its rows come from the store"),
    "UpdateAsked": ((), ""),
    "ExecuteAsked": ((), ""),
    "HandlersKnown": ((NEW, *STORED), "comes once, before any worker does; its test is in test_routing.py"),
    "CallerSpoke": ((NEW,), "names no task, so it meets the stored ones"),
    "CallerGone": ((NEW,), "names no task, so it meets the stored ones"),
    "Refilled": ((NEW, "running", *ENDED), "a line holds what waits, and a refill is the first event after its reading"),
    "Dropped": (ENDED, "only a new task is ever refused, and what was to make place for it, which waits"),
    "Dispatch": ((NEW,), "names no task, so it meets the stored ones"),
    "StopAsked": ((NEW,), "names no task, so it meets the stored ones"),
}


class Sweep:
    """What a range of seeds led to."""

    def __init__(self) -> None:
        self.coverage = Coverage()
        self.seeds = 0
        self.broken: list[str] = []
        self.totals: Counter[str] = Counter()

    def run(self, seeds: range) -> None:
        """Run seeds until too many have failed."""
        for seed in seeds:
            self.seeds += 1
            try:
                run = simulate(seed, coverage=self.coverage)
            except LawBroken as broken:
                self.broken.append(str(broken))
                if len(self.broken) == BROKEN_MAX:
                    return
            else:
                self.totals.update(tasks=run.tasks, events=run.steps, supervisors=run.lives)

    def missing(self) -> list[str]:
        """Return the pairs that can meet and did not do so often enough, and those that cannot and did."""
        words = []
        for event, (never, _) in CANNOT.items():
            for status in STATUSES:
                met = self.coverage.met[status, event]
                if status in never and met:
                    words.append(f"{event} met {status} {met} times, which should be impossible")
                elif status not in never and met < _least(event, status):
                    words.append(f"{event} met {status} only {met} times")
        return words

    def report(self) -> str:
        """Return the whole for people."""
        totals = ", ".join(f"{n:,} {what}" for what, n in self.totals.items())
        return f"{self.seeds} seeds: {totals}\n{self.coverage.table()}"


def _least(event: str, status: str) -> int:
    if (event, status) == ("Dropped", "retrying"):
        return 1  # a task that was to be replaced while it waited for its next attempt
    if event == "StepsDue":
        return MET_MIN_STEPS
    return MET_MIN_SCHEDULES if event in (*OF_SCHEDULES, *OF_KEYS, *OF_CALLERS) else MET_MIN


def asked_seeds() -> range:
    """Return the seeds that the environment asks for."""
    if one := os.environ.get("TASKPOOL_SIM_SEED"):
        return range(int(one), int(one) + 1)
    first = int(os.environ.get("TASKPOOL_SIM_FIRST", "0"))
    return range(first, first + int(os.environ.get("TASKPOOL_SIM_SEEDS", SEEDS)))


def story(seed: int) -> tuple[str, str]:
    """Return how one seed went, line by line, and which promise was broken, if any."""
    trace = Trace(keep=True)
    broken = ""
    try:
        simulate(seed, trace=trace)
    except LawBroken as error:
        broken = str(error)
    return "\n".join(trace.lines or []), broken
