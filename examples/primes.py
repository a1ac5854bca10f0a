"""How many primes are there below N, while somebody kills the workers at random? Exactly as many as ever.

A segment of the numbers is a task: it sieves its numbers a block at a time, and saves a checkpoint after each. A thread of this
program kills a worker with -9 now and then. Whatever segment that one had is charged with the crash and tried again, from its last
checkpoint; all others do not notice. In the end the count is right, and the attempts tell what happened.

    python examples/primes.py
    python examples/primes.py --below 1_000_000_000 --kills-per-second 8
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import threading
import time

from taskpool import Controller, NoServer, Pool, PoolStopped, RetryPolicy, task

BLOCK = 1 << 19  # numbers sieved at a time
KNOWN = {10**4: 1229, 10**5: 9592, 10**6: 78498, 10**7: 664579, 10**8: 5761455, 2 * 10**8: 11078937, 10**9: 50847534}

# Its process may die as often as it likes.
AGAIN_AND_AGAIN = RetryPolicy(initial_interval=0.01, maximum_interval=0.1, maximum_attempts=0)


def small_primes(limit: int) -> list[int]:
    """Return the primes up to a limit."""
    sieve = bytearray([1]) * (limit + 1)
    sieve[0:2] = b"\0\0"[: limit + 1]
    for n in range(2, math.isqrt(limit) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    return [n for n in range(limit + 1) if sieve[n]]


def count_block(start: int, end: int, divisors: list[int]) -> int:
    """Return how many primes there are from start up to, but without, end."""
    sieve = bytearray([1]) * (end - start)
    for prime in divisors:
        if prime * prime >= end:
            break
        first = max(prime * prime, -(-start // prime) * prime)
        sieve[first - start :: prime] = bytes(len(range(first, end, prime)))
    return sum(sieve) - sum(1 for n in (0, 1) if start <= n < end)


@task(retry=AGAIN_AND_AGAIN, crash_limit=1_000_000)
def count_segment(ctl: Controller, start: int, end: int) -> int:
    """Count the primes of a segment, going on where an earlier attempt was killed."""
    at, found = ctl.last_checkpoint or (start, 0)
    if at > start:
        ctl.log(f"attempt {ctl.attempt} goes on at {at:,}")
    divisors = small_primes(math.isqrt(end))
    while at < end:
        found += count_block(at, min(at + BLOCK, end), divisors)
        at = min(at + BLOCK, end)
        ctl.checkpoint((at, found))
        ctl.progress(at - start, end - start)
    return found


class Killer(threading.Thread):
    """Kills a random busy worker of a pool, about so many times a second, until it is stopped."""

    def __init__(self, pool: Pool, per_second: float) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self._pool = pool
        self._pause = 1 / per_second
        self._random = random.Random(1)
        self._over = threading.Event()

    def run(self) -> None:
        """Kill, and wait a little."""
        while not self._over.wait(self._random.expovariate(1 / self._pause)):
            try:
                busy = [worker.pid for worker in self._pool.stats().workers if worker.task_id is not None]
            except (PoolStopped, NoServer):
                return
            if busy:
                os.kill(self._random.choice(busy), signal.SIGKILL)
                self.kills += 1

    def stop(self) -> None:
        """Have mercy."""
        self._over.set()
        self.join()


def main() -> None:
    """Count, be killed, and print the count and what it took."""
    parser = argparse.ArgumentParser(description="Count primes while workers are killed.")
    parser.add_argument("--below", type=int, default=200_000_000, help="count the primes below it (default: %(default)s)")
    parser.add_argument("--segments", type=int, default=8, help="tasks (default: %(default)s)")
    parser.add_argument("--kills-per-second", type=float, default=4.0, help="0: none (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per usable CPU)")
    args = parser.parse_args()

    bounds = [args.below * n // args.segments for n in range(args.segments + 1)]
    began = time.monotonic()
    with Pool(workers=args.workers) as pool:
        killer = Killer(pool, args.kills_per_second) if args.kills_per_second else None
        if killer:
            killer.start()
        found = sum(pool.map(count_segment, bounds[:-1], bounds[1:], progress="counting primes"))
        if killer:
            killer.stop()
        tasks = pool.list(limit=1000)
        attempts = [attempt for each in tasks for attempt in pool.attempts(each.id)]
        resumed = sum(attempt.output.count("goes on at") for attempt in attempts)
        print(f"{found:,} primes below {args.below:,}, in {time.monotonic() - began:.1f} s")
        print(f"{killer.kills if killer else 0} workers were killed: {sum(each.crashes for each in tasks)} crashes of tasks,")
        print(f"{resumed} attempts went on from a checkpoint, {pool.stats().restarts} workers were replaced")
    if args.below in KNOWN:
        print("which is right" if found == KNOWN[args.below] else f"WRONG: there are {KNOWN[args.below]:,}")


if __name__ == "__main__":
    main()
