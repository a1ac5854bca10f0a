"""One screen of numbers about a supervisor."""

from __future__ import annotations

from taskpool.core.scheduler import Scheduler
from taskpool.model import Stats, WorkerState


def stats_of(
    scheduler: Scheduler,
    counts: dict[str, int],
    *,
    pid: int,
    epoch: int,
    store: str,
    uptime_s: float,
    turns: int,
    cpu_s: float,
    notices: tuple[str, ...],
) -> Stats:
    """Return one screen of numbers from the scheduler's own tables."""
    workers = []
    for box in scheduler.workers.values():
        row = next(iter(box.sent.values()), None)
        state = "starting" if not box.pid else "busy" if row else "idle" if box.active else "spare"
        if box.caller is not None:
            state = "caller"
        workers.append(
            WorkerState(
                box.worker,
                box.pid,
                state,
                row.id if row else None,
                row.name if row else "",
                row.started_at if row else None,
                box.done,
                tuple(sorted(box.labels)),
            )
        )
    return Stats(
        pid,
        epoch,
        store,
        counts,
        tuple(workers),
        scheduler.table.finished,
        scheduler.attempts.count,
        scheduler.fleet.restarts,
        uptime_s,
        turns,
        cpu_s,
        notices,
    )
