"""See one seed of the simulation again: `python -m tests.sim SEED [--real] [--steps N] [--tail LINES]`.

Prints what went through the scheduler, then the digest, or which promise was broken.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from taskpool.testing.simulation.fates import LawBroken
from taskpool.testing.simulation.trace import Trace
from taskpool.testing.simulation.world import STEPS, Simulated, simulate


def _real(seed: int, steps: int, trace: Trace) -> Simulated:
    from .real_parts import RealShell, real_parts

    with tempfile.TemporaryDirectory() as directory, real_parts(Path(directory)) as store:
        return simulate(seed, steps=steps, shell=RealShell, store=store, trace=trace)


def main() -> int:
    """Run one seed, in words; return 1 if it breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=STEPS, help="how long chance rules (default: %(default)s)")
    parser.add_argument("--tail", type=int, default=0, metavar="LINES", help="print only the last lines of the story")
    parser.add_argument("--real", action="store_true", help="with the supervisor's own loop, desk and store")
    parser.add_argument("--digest", action="store_true", help="print the digest alone")
    asked = parser.parse_args()
    trace = Trace(keep=not asked.digest)
    try:
        run = _real(asked.seed, asked.steps, trace) if asked.real else simulate(asked.seed, steps=asked.steps, trace=trace)
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
