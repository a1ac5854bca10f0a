"""What the last owner left behind becomes events: rows that ran, what the pages of their workers say of them, and what waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from taskpool.clock import Clock
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.engines import recovery as old_pages
from taskpool.engines.recovery import OldPage
from taskpool.model import Queue
from taskpool.store.store import Store
from taskpool.supervisor.opening import patiently
from taskpool.wire import jobs


class Left(NamedTuple):
    """What was left. events: for the scheduler, in their order."""

    events: list[ev.Event]
    pages: list[OldPage]

    def forget(self) -> None:
        """Remove the pages: what they told is stored."""
        old_pages.forget(self.pages)


def left_behind(store: Store, rules: Sequence[Queue], clock: Clock, log: Callable[[str], None]) -> Left:
    """Read what was left behind, and store the checkpoints among it. rules: of the store's queues. Raises StoreError."""
    running = {row.id: row for row in store.running()}
    events: list[ev.Event] = []
    schedules = store.schedule_rows()
    pages = old_pages.recover(store.places.run, store.epoch)
    begun: set[tuple[int, int]] = set()
    saved: dict[int, cmd.Checkpoint] = {}
    for page in pages:
        if page.current is not None:
            begun.add(page.current)
        for record in page.records:
            if isinstance(record, jobs.Report):
                row = running.get(record.task_id)
                if row is not None and row.attempt == record.attempt:
                    events.append(ev.Recovered(running.pop(record.task_id), True, record))
            elif isinstance(record, jobs.Checkpointed) and record.task_id in running:
                saved[record.task_id] = cmd.Checkpoint(record.task_id, record.attempt, record.data)
    if saved:
        patiently(lambda: store.commit(list(saved.values()), clock.now().wall))
    # An owner settles all that ran before it starts a worker, so what runs now is of the last one that had workers.
    last = max((page.epoch for page in pages), default=0)
    known = {page.worker for page in pages if page.epoch == last and not page.void}
    for row in running.values():
        # Without a page of this boot nobody knows how far it came: what was sent counts as begun.
        events.append(ev.Recovered(row, (row.id, row.attempt) in begun or row.worker not in known))
    if events:
        log(f"tasks that ran when the last owner died: {len(events)}")
    opened = ev.Opened(store.next_id(), store.queues_waiting())
    spent = store.rates_full_at()
    queues = [ev.QueueSet(queue, spent.get(queue.name, 0)) for queue in rules]
    return Left([*queues, ev.Scheduled(schedules), ev.KeysKept(store.kept_keys()), *events, opened], pages)
