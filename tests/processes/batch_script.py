"""A script as users write it, to be killed: PLACE RUN COUNT PLAIN. It runs a batch, and submits tasks of its own meanwhile."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from taskpool import Pool
from tests.processes import evidence


def main(place: str, run: str, count: str, plain: str) -> None:
    """Go on with the batch where it stands, and print `done` at the end of all."""
    with Pool(os.path.join(place, "x.db"), workers=2, durability="process") as pool:
        evidence.append(os.path.join(place, "supervisors"), str(pool.pid))
        evidence.drive(pool, place, int(run), int(count), int(plain))
        evidence.finish(pool)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
