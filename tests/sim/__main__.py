"""See one seed of the simulation again: `python -m tests.sim SEED [--steps N] [--tail LINES]`.

Prints what went through the scheduler, then the digest, or which promise was broken.
"""

from __future__ import annotations

import argparse

from taskpool.testing.simulation.fates import LawBroken
from taskpool.testing.simulation.trace import Trace
from taskpool.testing.simulation.world import STEPS, simulate


def main() -> int:
    """Run one seed, in words; return 1 if it breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=STEPS, help="how long chance rules (default: %(default)s)")
    parser.add_argument("--tail", type=int, default=0, metavar="LINES", help="print only the last lines of the story")
    parser.add_argument("--digest", action="store_true", help="print the digest alone")
    asked = parser.parse_args()
    trace = Trace(keep=not asked.digest)
    try:
        run = simulate(asked.seed, steps=asked.steps, trace=trace)
    except LawBroken as error:
        code, last = 1, f"BROKEN: {error}"
    else:
        code, last = 0, run.digest if asked.digest else str(run)
    for line in (trace.lines or [])[-asked.tail :]:
        print(line)
    print(last)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
