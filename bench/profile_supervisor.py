"""Where the supervisor's time goes under the load of a row: `python -m bench.profile_supervisor [P1|P2|P3|P17] [--process]`.

The supervisor is not touched: the pool is started with another interpreter command, a script that runs the same entry under a
profiler. By default a timer signal samples the stack every millisecond of CPU time (bodies of C functions count for their caller,
small functions are not exaggerated); with --cprofile every call is counted, which makes Python functions look dearer than they are.
Shares are turned into µs per task by the CPU time that the kernel counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.001
START_SIGNAL = signal.SIGUSR2  # from the caller, when the load begins: what came before is not sampled
_OUT = "TASKPOOL_BENCH_PROFILE"
_KIND = "TASKPOOL_BENCH_PROFILE_KIND"

# A pool starts `python -P -c CODE --fd N PATHS`; everything else that is started keeps the real interpreter.
_WRAPPER = """#!/bin/sh
if [ "$1 $2" = "-P -c" ]; then
    shift 3
    exec {python} -P -c "{code}" "$@"
fi
exec {python} "$@"
"""
_CODE = """import sys; sys.path[:] = ['{root}', *sys.path, *sys.argv[3:]]
from bench.profile_supervisor import inside; sys.exit(inside(sys.argv[1:3]))"""


class Sampler:
    """Counts, per function and per line, on how many samples it was on the stack, and on how many at its top."""

    def __init__(self) -> None:
        self.samples = 0
        self.top: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.anywhere: Counter[str] = Counter()

    def start(self) -> None:
        """Sample the main thread from now on, every INTERVAL_S of this process's CPU time."""
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def stop(self) -> None:
        """Sample no more."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.samples += 1
        name = _name_of(frame)
        self.top[name] += 1
        self.lines[f"{name}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_name_of(frame))
            frame = frame.f_back
        self.anywhere.update(seen)


def _name_of(frame: FrameType) -> str:
    code = frame.f_code
    place = Path(code.co_filename)
    return f"{place.parent.name}/{place.name}:{code.co_qualname}"


def inside(argv: list[str]) -> int:
    """Run the supervisor's entry under a profiler and write what was found at its end."""
    from taskpool.supervisor.start import main as supervise

    out = Path(os.environ[_OUT])
    if os.environ[_KIND] == "cprofile":
        import cProfile

        profile = cProfile.Profile()
        try:
            return profile.runcall(supervise, argv)
        finally:
            profile.dump_stats(out)
    sampler = Sampler()
    signal.signal(START_SIGNAL, lambda number, frame: sampler.start())
    try:
        return supervise(argv)
    finally:
        sampler.stop()
        found = {"samples": sampler.samples, "top": sampler.top, "lines": sampler.lines, "anywhere": sampler.anywhere}
        out.write_text(json.dumps(found))


def profiled(kind: str, contender: str, tasks: int, out: Path, row: str) -> float:
    """Run the load of a row (P17: in 1,000 queues) with a profiled supervisor; return the CPU µs per task that it took in all."""
    from bench import p03_efficiency, p17_counts, processes
    from bench.contenders import opened
    from bench.harness import ROOT
    from bench.p01_noop import load
    from bench.tasks import noop

    wrapper = out.parent / "python"
    wrapper.write_text(_WRAPPER.format(python=sys.executable, code=_CODE.format(root=ROOT)))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    os.environ[_OUT], os.environ[_KIND] = str(out), kind
    real, sys.executable = sys.executable, str(wrapper)
    try:
        with opened(contender) as found:
            pid = found.pool.stats().pid
            if kind == "sample":
                os.kill(pid, START_SIGNAL)
            before = processes.cpu_ns(pid)
            if row == "P1":
                load(found, tasks)
            elif row == "P17":
                p17_counts.load(found, tasks, "queue", p17_counts.QUEUES_MANY)
            elif row == "P2":
                for _ in range(tasks):
                    found.result(found.submit(noop))
            else:
                p03_efficiency.load(found, tasks, p03_efficiency.calibrate({})["steps_1ms"])
            return (processes.cpu_ns(pid) - before) / 1000 / tasks
    finally:
        sys.executable = real


def _print_samples(out: Path, cpu_us: float, rows: int) -> None:
    found = json.loads(out.read_text())
    samples = found["samples"]
    for title, key in (("own time, by function", "top"), ("own time, by line", "lines"), ("with callees", "anywhere")):
        print(f"\n{title}: µs per task, of {cpu_us:.1f}")
        for name, count in Counter(found[key]).most_common(rows):
            print(f"  {count / samples * cpu_us:6.2f}  {name}")


def main() -> int:
    """Profile, and print where the time went."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile_supervisor", description=__doc__)
    parser.add_argument("--cprofile", action="store_true", help="count every call instead of sampling")
    parser.add_argument("--process", action="store_true", help="durability process instead of power")
    parser.add_argument("row", nargs="?", default="P1", choices=("P1", "P2", "P3", "P17"))
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=25, help="lines of each list")
    arguments = parser.parse_args()
    from bench.contenders import POWER, PROCESS

    kind = "cprofile" if arguments.cprofile else "sample"
    with tempfile.TemporaryDirectory(prefix="bench-profile-") as place:
        out = Path(place, "profile")
        cpu_us = profiled(kind, PROCESS if arguments.process else POWER, arguments.tasks, out, arguments.row)
        if kind == "sample":
            _print_samples(out, cpu_us, arguments.rows)
        else:
            import pstats

            print(f"{cpu_us:.1f} µs of CPU per task, profiler included")
            pstats.Stats(str(out)).sort_stats("tottime").print_stats(arguments.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
