"""An option's price by simulation, which survives kill -9: run it, kill it, run it again, and the digits are the same.

Each task draws its paths from a generator that is seeded by its number, so a task that is done again gives what it gave before, and
the sum does not depend on what died when. The batch keeps what is done: a second run takes it from the store.

    python examples/montecarlo.py                      # then press Ctrl-C, or kill -9 it, and run it again
    python examples/montecarlo.py --store mc.db --tasks 400 --paths 100000
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass

from taskpool import Pool, task

SPOT, STRIKE, RATE, VOLATILITY, YEARS = 100.0, 105.0, 0.03, 0.2, 1.0


@dataclass(frozen=True)
class Sums:
    """What one task found: number of paths, sum of the payoffs, and of their squares. (A dataclass travels as it is.)"""

    paths: int
    payoffs: float
    squares: float


@task(max_attempts=3, timeout=60)
def simulate(seed: int, paths: int) -> Sums:
    """Draw that many paths, from a generator of this task's own."""
    gauss = random.Random(f"montecarlo {seed}").gauss
    drift = (RATE - VOLATILITY**2 / 2) * YEARS
    spread = VOLATILITY * math.sqrt(YEARS)
    discount = math.exp(-RATE * YEARS)
    payoffs = [discount * max(0.0, SPOT * math.exp(drift + spread * gauss(0.0, 1.0)) - STRIKE) for _ in range(paths)]
    return Sums(paths, math.fsum(payoffs), math.fsum(payoff * payoff for payoff in payoffs))


def exact() -> float:
    """Return the price by the formula of Black and Scholes."""
    spread = VOLATILITY * math.sqrt(YEARS)
    d1 = (math.log(SPOT / STRIKE) + (RATE + VOLATILITY**2 / 2) * YEARS) / spread
    return SPOT * _normal(d1) - STRIKE * math.exp(-RATE * YEARS) * _normal(d1 - spread)


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def main() -> None:
    """Simulate, and print the price with its interval of confidence beside the exact one."""
    parser = argparse.ArgumentParser(description="The price of a call option, by simulation that survives.")
    parser.add_argument("--store", default="montecarlo", help="file (or name) that holds the work; run again, it goes on")
    parser.add_argument("--workers", type=int, help="processes (default: one per usable CPU)")
    parser.add_argument("--tasks", type=int, default=200, help="how many tasks (default: %(default)s)")
    parser.add_argument("--paths", type=int, default=50_000, help="how many paths each (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="simulate all anew")
    args = parser.parse_args()

    began = time.time()
    with Pool(args.store, workers=args.workers) as pool:
        batch = f"{args.paths} paths"
        results = pool.map(simulate, range(args.tasks), [args.paths] * args.tasks, batch=batch, fresh=args.fresh, progress=True)
        sums = list(results)
        done_before = sum((each.finished_at or 0) < began * 1e6 for each in pool.list(batch=batch, limit=1000))

    paths = sum(each.paths for each in sums)
    mean = math.fsum(each.payoffs for each in sums) / paths
    variance = math.fsum(each.squares for each in sums) / paths - mean**2
    print(f"{paths:,} paths in {len(sums)} tasks, {done_before} of them done by an earlier run, {time.time() - began:.1f} s")
    print(f"price {mean:.9f} ± {1.96 * math.sqrt(variance / paths):.6f}   exact {exact():.6f}")


if __name__ == "__main__":
    main()
