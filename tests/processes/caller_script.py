"""A caller that runs what waits, to be killed: PLACE. It asks for one task after the other, whatever becomes of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from taskpool import IllegalTransition, NoServer, PoolStopped, Task, connect, controller
from taskpool.model import Filter
from tests.processes import evidence


def execute(task: Task) -> int:
    """Leave evidence, and a row with the success."""
    evidence.note(place, "begin")
    controller().on_success("INSERT INTO shop_done VALUES(?)", (task.id,))
    time.sleep(0.005)
    evidence.note(place, "end")
    return task.id


def main() -> None:
    """Run tasks until it is killed."""
    while True:
        try:
            with connect(Path(place, "x.db"), timeout=5) as client:
                while True:
                    tasks = client.list(Filter(statuses=("queued", "pending")), limit=5)
                    for task in tasks:
                        try:
                            client.execute_and_advance(task.id, execute)
                        except IllegalTransition:
                            continue  # somebody else has it
                    if not tasks:
                        time.sleep(0.005)
        except (NoServer, PoolStopped):
            time.sleep(0.01)


place = sys.argv[1]
if __name__ == "__main__":
    main()
