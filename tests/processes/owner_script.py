"""An owner of an engine, to be killed: it starts workers, gives each a body, says so, and waits.

Arguments: directory, mark, epoch, plan.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests import engine_bodies as bodies
from tests.engine_rig import Rig


def main() -> None:
    directory, mark, epoch, plan = sys.argv[1:]
    run_dir, files = Path(directory) / "run", Path(directory)
    run_dir.mkdir(exist_ok=True)
    rig = Rig(run_dir, mark=mark, epoch=int(epoch))
    rig.ready(1, 2)
    if plan == "family":
        rig.send(1, (bodies.daemonize_and_wait, str(files / "daemon")))
        rig.send(2, (bodies.start_child_and_wait, str(files / "child")))
        rig.until_file(files / "daemon")
        rig.until_file(files / "child")
    elif plan == "records":
        rig.commits = False
        rig.send(1, (bodies.double, 1), (bodies.double, 2))
        rig.report(1, 2)
        rig.turn()
        rig.engine.committed()
        rig.send(
            1, (bodies.double, 3), (bodies.big, 1_000_000), (bodies.save_and_wait, 5, str(files / "saved")), (bodies.double, 6)
        )
        rig.report(1, 4)
        rig.until_file(files / "saved")
    (files / "pids").write_text(" ".join(map(str, [rig.node._nursery.pid, *rig.engine.pids().values()])))
    (files / "up").write_text("up")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
