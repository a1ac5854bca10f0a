"""P6: import, first result, and what an idle pool costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from bench import facts, processes
from bench.contenders import POWER, PPE, PROCESS, opened
from bench.harness import ROOT, Figure, Measured, Params, Row, Target
from bench.statistics import median

IMPORT_PPE, IMPORT_OURS = "import concurrent.futures.process", "import taskpool"

_IMPORT = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1000)"
_FIRST = {
    # The same start method as ours: processes forked from a clean server that is itself started by exec.
    PPE: """
import time; began = time.perf_counter()
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from bench.tasks import noop
pool = ProcessPoolExecutor({workers}, mp_context=multiprocessing.get_context("forkserver"))
pool.submit(noop).result()
print((time.perf_counter() - began) * 1000, flush=True)
pool.shutdown()
""",
    PROCESS: """
import time; began = time.perf_counter()
from taskpool import Pool
from bench.tasks import noop
with Pool(workers={workers}, durability="process") as pool:
    pool.submit_nowait(noop).result()
    print((time.perf_counter() - began) * 1000, flush=True)
""",
}
_FIRST[POWER] = _FIRST[PROCESS].replace("Pool(workers", "Pool(sys.argv[1], workers").replace('"process"', '"power"')


def _ms_of(script: str, *arguments: str) -> float:
    command = [sys.executable, "-c", "import sys\n" + script, *arguments]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return float(out.split()[0])


def _often(count: int, sample: Callable[[int], float]) -> float:
    return median([sample(number) for number in range(count)])


def _imported(statement: str, count: int) -> float:
    return _often(count, lambda _: _ms_of(_IMPORT.format(statement)))


def _first_result(contender: str, count: int) -> float:
    from bench.contenders import scratch_directory

    script = _FIRST[contender].format(workers=facts.workers())
    with scratch_directory() as directory:
        return _often(count, lambda number: _ms_of(script, str(directory / f"{number}.db")))


def _idle(contender: str, seconds: float) -> dict[str, float]:
    """Return memory, wake-ups and CPU of an idle pool's supervisor, and the memory of one of its workers."""
    with opened(contender) as found:
        pid = found.pool.stats().pid
        idle = processes.idle_cost(pid, seconds)
        stats = found.pool.stats()
        return {
            "supervisor_rss": processes.rss_mb(pid),
            "worker_pss": max(processes.pss_mb(worker.pid) for worker in stats.workers if worker.pid),
            "wakeups": idle.wakeups,
            "idle_cpu": idle.cpu_ms,
        }


def measure(contender: str, params: Params) -> Measured:
    """Return what belongs to one contender: an import, or first result and idle cost."""
    count = params["starts"]
    if contender.startswith("import"):
        return Measured({"import": _imported(contender, count)}, {"versions": facts.versions("taskpool", "msgspec")})
    figures = {"first": _first_result(contender, count)}
    if contender != PPE:
        figures |= _idle(contender, params["idle_s"])
    return Measured(figures, {"versions": facts.versions("taskpool")})


ROW = Row(
    id="P6",
    title="Start and idle cost",
    text="Import in a fresh interpreter; from nothing to the first result, imports included, PPE with the start method of ours "
    "(forkserver); then what an idle pool of 2 workers costs.",
    contenders=(IMPORT_OURS, IMPORT_PPE, POWER, PROCESS, PPE),
    figures=(
        Figure("import", "ms", "import", "lower"),
        Figure("first", "ms", "nothing to first result", "lower"),
        Figure("supervisor_rss", "MB", "idle supervisor, RSS", "lower"),
        Figure("worker_pss", "MB", "idle worker, PSS", "lower"),
        Figure("wakeups", "1/s", "wake-ups of an idle supervisor", "lower"),
        Figure("idle_cpu", "ms/s", "CPU of an idle supervisor", "lower"),
    ),
    measure=measure,
    params={"starts": 11, "idle_s": 10.0},
    quick={"starts": 3, "idle_s": 2.0},
    targets=(
        Target("import taskpool", lambda at: at[IMPORT_OURS]["import"], at_most=100, unit="ms"),
        Target("import ÷ concurrent.futures.process", lambda at: at[IMPORT_OURS]["import"] / at[IMPORT_PPE]["import"], at_most=1.5),
        Target("first result above PPE's, process", lambda at: at[PROCESS]["first"] - at[PPE]["first"], at_most=60, unit="ms"),
        Target("first result above PPE's, power", lambda at: at[POWER]["first"] - at[PPE]["first"], at_most=60, unit="ms"),
        Target("idle supervisor, RSS", lambda at: at[POWER]["supervisor_rss"], at_most=60, unit="MB"),
        Target("idle worker, PSS", lambda at: at[POWER]["worker_pss"], at_most=12, unit="MB"),
        Target("wake-ups of an idle supervisor", lambda at: at[POWER]["wakeups"], at_most=2, unit="1/s"),
    ),
)
