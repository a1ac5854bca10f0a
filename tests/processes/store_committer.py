"""A process that commits turns and acknowledges each: PATH DURABILITY TURNS [CHECKPOINT_COMMITS].

Turn n stores and starts task n and ends task n - 1; when its commit has returned, "ack n" is written to standard output. A full
disk is met as the supervisor meets it: the turn is tried again.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from taskpool.core.commands import Save
from taskpool.store import store as store_module
from taskpool.store.conditions import StoreFull, StoreIOError
from taskpool.store.store import Store
from tests.store_rig import end, insert, start

PAUSE_S = 0.001  # between tries while the disk is full


def commit(store: Store, saves: list[Save]) -> None:
    """Store one turn, however often it takes."""
    while True:
        try:
            assert store.commit(saves) == []
            return
        except StoreFull:
            os.write(1, b"full\n")
            time.sleep(PAUSE_S)


def main(path: str, durability: str, turns: int, checkpoint_commits: int = 1000) -> None:
    """Commit that many turns, go on from where the last process was ended, and end without closing anything."""
    store_module.CHECKPOINT_COMMITS = checkpoint_commits
    store = Store.open(path, durability=durability)
    first = store.next_id()
    for row in store.running():
        if row.id != first - 1:
            raise AssertionError(f"task {row.id} runs, the last is {first - 1}")
    os.write(1, b"open\n")
    for n in range(first, first + turns):
        os.write(1, b"turn %d\n" % n)
        saves: list[Save] = [insert(n), start(n, worker=n % 7)]
        if n > 1:
            saves.append(end(n - 1, value=b"result of %d" % (n - 1)))
        try:
            commit(store, saves)
            os.write(1, b"ack %d\n" % n)
            store.tidy()
        except StoreIOError:
            os.write(1, b"io error\n")
            os._exit(5)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
