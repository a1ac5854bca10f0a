"""P8: one task dies amid a hundred good ones. Who else loses, and how soon is it told?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from bench.contenders import MPP, PEBBLE, POWER, PPE, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.tasks import die_by_exit, die_by_kill, die_by_segv, doze
from bench.watch import Watcher

DEATHS: tuple[Callable[[int], None], ...] = (die_by_exit, die_by_segv, die_by_kill)
PATIENCE_S = 5.0  # a pool that has not answered for this long after everything else never will


class _Answers:
    """Collects how each handle ends, each waited for in a thread of its own, so that one that never answers holds up no other."""

    def __init__(self, result: Callable[[Any], Any], handles: list[Any]) -> None:
        self.good = [False] * len(handles)
        self.at_ns = [0] * len(handles)
        self._result = result
        self._threads = [
            threading.Thread(target=self._wait, args=(index, handle), daemon=True) for index, handle in enumerate(handles)
        ]
        for thread in self._threads:
            thread.start()

    def _wait(self, index: int, handle: Any) -> None:
        try:
            self._result(handle)
            self.good[index] = True
        except BaseException:
            pass
        self.at_ns[index] = time.monotonic_ns()

    def wait(self) -> None:
        """Wait until all have answered, or PATIENCE_S after the last one that did."""
        until = time.monotonic() + PATIENCE_S
        answered = 0
        while time.monotonic() < until and answered < len(self.at_ns):
            time.sleep(0.01)
            now = sum(at > 0 for at in self.at_ns)
            if now > answered:
                answered, until = now, time.monotonic() + PATIENCE_S


def _amid(contender: str, death: Callable[[int], None], tasks: int, index: int) -> dict[str, float]:
    """Return how many good tasks were lost or charged with the death, and the ms from the bad body's last word to its error."""
    watcher = Watcher()
    with opened(contender) as found:
        handles = []
        bad = tasks // 2
        for number in range(tasks + 1):
            try:
                handles.append(found.submit(death, index) if number == bad else found.submit(doze, 0.01))
            except Exception:
                break  # the pool is broken already
        answers = _Answers(found.result, handles)
        answers.wait()
        good = [number for number in range(len(handles)) if number != bad]
        lost = tasks - sum(answers.good[number] for number in good)
        charged = 0
        if contender == POWER:
            charged = sum(found.pool.get(handles[number].id).charged > 1 for number in good)
        if contender == MPP:
            found.pool.terminate()  # it would wait for ever for the answer that never comes
    begun, _ = watcher.stop()
    told = (
        (answers.at_ns[bad] - begun[index]) / 1e6 if bad < len(handles) and answers.at_ns[bad] and index in begun else float("inf")
    )
    return {"lost": lost, "charged": charged, "error_ms": min(told, 60_000.0)}


def measure(contender: str, params: Params) -> Measured:
    """Return the worst over the three ways to die."""
    found = [_amid(contender, death, params["tasks"], index) for index, death in enumerate(DEATHS)]
    figures = {name: max(at[name] for at in found) for name in ("lost", "charged", "error_ms")}
    if contender != POWER:
        del figures["charged"]
    return Measured(figures)


ROW = Row(
    id="P8",
    title="A crash amid good tasks",
    text="One task of 101 leaves by `os._exit`, SIGSEGV or SIGKILL; worst of the three. An error that had not come after 60 s "
    "counts as 60 s.",
    contenders=(POWER, PPE, MPP, PEBBLE),
    figures=(
        Figure("lost", "tasks", "good tasks lost, of 100", "lower"),
        Figure("charged", "tasks", "good tasks charged with it", "lower"),
        Figure("error_ms", "ms", "from the death to its error", "lower"),
    ),
    measure=measure,
    params={"tasks": 100},
    quick={"tasks": 100},
    headline="lost",
    targets=(
        Target("good tasks lost", lambda at: at[POWER]["lost"], at_most=0, unit="tasks"),
        Target("good tasks charged", lambda at: at[POWER]["charged"], at_most=0, unit="tasks"),
        Target("error after the death", lambda at: at[POWER]["error_ms"], at_most=50, unit="ms"),
    ),
)
