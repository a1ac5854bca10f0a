"""What running bodies report of themselves: told to those who follow, and saved, at a pace of its own beside the turns."""

from __future__ import annotations

from taskpool.clock import NS, Instant
from taskpool.core.scheduler import Scheduler
from taskpool.engines.engine import Engine
from taskpool.model import Progress
from taskpool.store.store import Store
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.server import Server
from taskpool.wire.messages import News

NEWS_S = 0.1  # between looks at progress and output while somebody follows
SAVE_PROGRESS_S = 1.0  # between savings of progress while something runs …
QUIET_PROGRESS_S = 2.5  # … and says nothing: a look costs a wake-up, 0.2 ms


class Newsroom:
    """Looks at progress and output. next_look: monotonic ns of the next time, 0 while nothing runs."""

    def __init__(self, store: Store, engine: Engine, scheduler: Scheduler, desk: Desk, server: Server) -> None:
        self._store = store
        self._engine = engine
        self._scheduler = scheduler
        self._desk = desk
        self._server = server
        self._progress: dict[int, Progress] = {}
        self._saved_at = 0
        self.next_look = 0

    def look(self, now: Instant) -> None:
        """Pass on and save what running bodies report, if it is time; costs nothing while nothing runs."""
        if self.next_look and now.mono < self.next_look and not self._desk.follow_asked:
            return
        self._desk.follow_asked = False
        running = any(box.sent for box in self._scheduler.workers.values())
        if not running:
            self.next_look = 0
            return
        followers = [one for one in self._server.connections.values() if one.follows is not None]
        changed = dict(self._engine.progress()) | self._desk.lending.take_progress()
        pause_s = NEWS_S if followers else SAVE_PROGRESS_S if changed else QUIET_PROGRESS_S
        self.next_look = now.mono + round(pause_s * NS)
        self._progress.update(changed)
        if followers:
            self._tell_followers(changed)
        if self._progress and now.mono - self._saved_at >= SAVE_PROGRESS_S * NS:
            self._saved_at = now.mono
            # What has ended meanwhile left its last word in its report, and that is newer.
            tasks = self._scheduler.tasks
            self._store.save_progress([(task_id, at) for task_id, at in self._progress.items() if task_id in tasks])
            self._progress.clear()

    def _tell_followers(self, changed: dict[int, Progress]) -> None:
        output = self._engine.output_news()
        begun = {row.id: box.pid for box in self._scheduler.workers.values() for row in list(box.sent.values())[:1]}
        for connection in list(self._server.connections.values()):
            follows = connection.follows
            if follows is None:
                continue
            mine = [
                task_id
                for task_id in {*changed, *begun, *(task_id for task_id, _ in output)}
                if task_id in follows or (not follows and connection.number in self._desk.watchers.of(task_id))
            ]
            if mine:
                self._server.send(
                    connection.number,
                    News(
                        {task_id: changed[task_id] for task_id in mine if task_id in changed},
                        [(task_id, data) for task_id, data in output if task_id in mine],
                        {task_id: begun[task_id] for task_id in mine if task_id in begun},
                    ),
                )
