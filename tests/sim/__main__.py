"""See one seed of the simulation again: `python -m tests.sim SEED [--steps N] [--tail LINES]`.

Prints what went through the scheduler, then the digest, or which promise was broken.
"""

from __future__ import annotations

import argparse

from taskpool.testing.simulation.fates import LawBroken
from taskpool.testing.simulation.trace import Trace
from taskpool.testing.simulation.world import STEPS, simulate


def main() -> int:
    """Run one seed, in words."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=STEPS, help="how long chance rules (default: %(default)s)")
    parser.add_argument("--tail", type=int, default=0, metavar="LINES", help="print only the last lines of the story")
    parser.add_argument("--digest", action="store_true", help="print the digest alone")
    asked = parser.parse_args()
    trace = Trace(keep=not asked.digest)
    broken = ""
    try:
        run = simulate(asked.seed, steps=asked.steps, trace=trace)
    except LawBroken as error:
        broken = str(error)
    for line in (trace.lines or [])[-asked.tail :]:
        print(line)
    if broken:
        print(f"BROKEN: {broken}")
        return 1
    print(run.digest if asked.digest else run)
    return 0


raise SystemExit(main())
