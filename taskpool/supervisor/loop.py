"""The loop: wait, make events, ask the scheduler, store its saves in one transaction, then act.

Durable before visible: nothing is sent to a worker or a client before the commit of the turn that decided it. Kills do not wait
for the disk: the engine's killer is a thread of its own. Costs are per turn: one poll, one transaction, one frame a
worker, one a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import assert_never

from taskpool import faults
from taskpool.clock import NS, Clock, Instant
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.lifecycle import TERMINAL
from taskpool.core.scheduler import Scheduler
from taskpool.engines.engine import Engine, Limits
from taskpool.model import Progress, TaskSpec
from taskpool.store.conditions import StoreBusy, StoreFull
from taskpool.store.store import Store
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.server import Server
from taskpool.wire.messages import Job, News
from taskpool.wire.poller import Poller

SPEC_BYTES_MAX = 64 << 20  # payloads of waiting tasks kept in memory; the others are read when they start
BUSY_RETRY_S = 0.002  # between tries of a commit while a guest holds the write lock
BUSY_RETRY_S_MAX = 0.05
BUSY_WARN_S = 1.0
FULL_RETRY_S = 0.5
NEWS_S = 0.1  # between looks at progress and output while somebody follows
SAVE_PROGRESS_S = 1.0  # between savings of progress while something runs

_DISPATCH = ev.Dispatch()


class Loop:
    """One supervisor's loop. `run` returns when everything has stopped; `reason` says why."""

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        scheduler: Scheduler,
        desk: Desk,
        server: Server,
        poller: Poller,
        clock: Clock,
        log: Callable[[str], None],
    ) -> None:
        self._store = store
        self._engine = engine
        self._scheduler = scheduler
        self._desk = desk
        self._server = server
        self._poller = poller
        self._clock = clock
        self._log = log
        self._events: list[ev.Event] = []
        self._specs: dict[int, TaskSpec] = {}  # of tasks that wait to be sent for the first time
        self._spec_bytes = 0
        self._progress_at = 0  # monotonic ns of the next look at progress
        self._progress: dict[int, Progress] = {}
        self._progress_saved_at = 0
        self.turns = 0
        self.ended = False
        self.reason = ""

    def deliver(self, event: ev.Event) -> None:
        """Add an event to the next turn."""
        self._events.append(event)

    def run(self) -> None:
        """Turn until the scheduler halts."""
        while not self.ended:
            self._poller.wait(self._timeout())
            self.turn()

    def turn(self) -> None:
        """Take all that has arrived through one transaction."""
        mark = self._engine.collect()
        events, self._events = self._events, []
        events += self._desk.take_events()
        now = self._clock.now()
        handle = self._scheduler.handle
        commands: list[cmd.Command] = []
        for event in events:
            commands += handle(event, now)
        commands += handle(_DISPATCH, now)
        self.turns += 1
        if commands:
            self._apply(commands, now)
        self._engine.committed(mark)
        self._desk.answer_readings()
        self._look_at_progress(now)
        self._store.tidy()  # nobody waits for it: all that this turn had to say is said

    def _timeout(self) -> float | None:
        if self._events or self._desk.busy:
            return 0.0
        now = self._clock.now()
        timer = self._scheduler.next_timer(now)
        if self._progress_at:
            look = max(0.0, (self._progress_at - now.mono) / NS)
            return look if timer is None else min(timer, look)
        return timer

    # ---- one turn's commands ----------------------------------------------------------------------------------------

    def _apply(self, commands: list[cmd.Command], now: Instant) -> None:
        saves: list[cmd.Save] = []
        starts: list[cmd.Start] = []
        ended: list[cmd.End | cmd.Move] = []
        acts: list[cmd.Act] = []
        specs = self._specs
        for command in commands:
            kind = type(command)
            if kind is cmd.Start:
                saves.append(command)  # type: ignore[arg-type]  # mypy does not narrow by `type(x) is`
                starts.append(command)  # type: ignore[arg-type]
            elif kind is cmd.End or kind is cmd.Move:
                saves.append(command)  # type: ignore[arg-type]
                if command.to in TERMINAL:  # type: ignore[union-attr]
                    ended.append(command)  # type: ignore[arg-type]
            elif kind is cmd.Insert:
                saves.append(command)  # type: ignore[arg-type]
                specs[command.id] = command.spec  # type: ignore[union-attr]
                self._spec_bytes += len(command.spec.payload)  # type: ignore[union-attr]
            elif kind is cmd.Checkpoint:
                saves.append(command)  # type: ignore[arg-type]
            elif kind is cmd.Kill:
                self._engine.kill(command.worker, command.n, command.why)  # type: ignore[union-attr]  # kills wait for nothing
            else:
                acts.append(command)  # type: ignore[arg-type]
        faults.point("commit.before")
        refused = self._commit(saves, now) if saves else frozenset()
        faults.point("commit.after")
        if refused:
            self._events.append(ev.Dropped(sorted(refused)))
            starts = [start for start in starts if start.id not in refused]
            ended = [end for end in ended if end.id not in refused]
        if starts:
            self._send(starts)
        faults.point("start.after")
        for act in acts:
            self._act(act, refused)
        faults.point("reply.before")
        if ended:
            for end in ended:
                specs.pop(end.id, None)
            self._desk.settle(ended)
        if self._spec_bytes > SPEC_BYTES_MAX:
            specs.clear()  # all of them are in the store
            self._spec_bytes = 0

    def _commit(self, saves: list[cmd.Save], now: Instant) -> frozenset[int]:
        """Store the turn; wait for a guest's lock or for room on the disk. Return the ids whose writes were refused."""
        waited, pause, warned = 0.0, BUSY_RETRY_S, False
        refused: set[int] = set()
        while True:
            try:
                refused.update(self._store.commit(saves, now.wall))
                if warned:
                    self._log("the store takes writes again")
                return frozenset(refused)
            except StoreBusy:
                if waited > BUSY_WARN_S and not warned:
                    warned = True
                    self._log(
                        "another connection has held the store's write lock for over a second; nothing can be stored meanwhile"
                    )
            except StoreFull as error:
                # What is new is refused, so that its client can tell; what was computed is held until there is room.
                new = {save.id for save in saves if isinstance(save, cmd.Insert)}
                refused |= new
                saves = [save for save in saves if save.id not in new]
                if not saves:
                    return frozenset(refused)
                if not warned:
                    warned = True
                    self._log(f"{error}; results are held until there is room")
                pause = FULL_RETRY_S
            time.sleep(pause)
            waited += pause
            pause = min(pause * 2, max(BUSY_RETRY_S_MAX, pause))

    def _send(self, starts: list[cmd.Start]) -> None:
        """Send what was started, one batch a worker."""
        tasks, specs = self._scheduler.tasks, self._specs
        stored = [start.id for start in starts if start.attempt > 1 or start.id not in specs]
        payloads = self._store.payloads(stored) if stored else {}
        batches: dict[int, tuple[list[Job], list[Limits]]] = {}
        for start in starts:
            batch = batches.get(start.worker)
            if batch is None:
                batch = batches[start.worker] = ([], [])
            jobs, limits = batch
            task_id = start.id
            if task_id in payloads:
                codec, payload, packed, name, checkpoint = payloads[task_id]
                job = Job(start.n, task_id, start.attempt, name, codec, payload, packed, checkpoint)
            else:
                spec = specs.pop(task_id)
                self._spec_bytes -= len(spec.payload)
                job = Job(start.n, task_id, start.attempt, spec.name, spec.codec, spec.payload, spec.options)
            jobs.append(job)
            options = tasks[task_id].options
            if options.timeout_s or options.deadline_at or options.soft_timeout_s or options.heartbeat_timeout_s:
                limits.append(
                    Limits(start.n, options.timeout_s, options.soft_timeout_s, options.deadline_at, options.heartbeat_timeout_s)
                )
        for index, (worker, (jobs, limits)) in enumerate(batches.items()):
            if index:
                faults.point("start.half")
            self._engine.send(worker, jobs, limits)

    def _act(self, command: cmd.Act, refused: frozenset[int]) -> None:
        match command:
            case cmd.Accept():
                self._desk.accept(command, refused)
            case cmd.Respond():
                self._desk.respond(command)
            case cmd.Spawn():
                self._engine.spawn(command.worker)
            case cmd.TakeBack():
                self._engine.take_back(command.worker, command.above, command.running_ns)
            case cmd.Signal():
                self._engine.signal(command.worker, command.n, command.grace_s, command.why)
            case cmd.Kill():
                self._engine.kill(command.worker, command.n, command.why)
            case cmd.Refill():
                rows, more = self._store.refill(command.queue, command.after, command.n)
                # First in the next turn: what comes after it must find the line as the store had it.
                self._events.insert(0, ev.Refilled(command.queue, rows, more))
            case cmd.Halted():
                self.ended = True
                self.reason = command.reason
            case _:
                assert_never(command)

    # ---- progress ---------------------------------------------------------------------------------------------------

    def _look_at_progress(self, now: Instant) -> None:
        """Pass on and save what running bodies report; costs nothing while nothing runs."""
        if self._progress_at and now.mono < self._progress_at and not self._desk.follow_asked:
            return
        self._desk.follow_asked = False
        running = any(box.sent for box in self._scheduler.workers.values())
        if not running:
            self._progress_at = 0
            return
        followers = [one for one in self._server.connections.values() if one.follows is not None]
        self._progress_at = now.mono + round((NEWS_S if followers else SAVE_PROGRESS_S) * NS)
        changed = dict(self._engine.progress())
        self._progress.update(changed)
        if followers:
            self._tell_followers(changed)
        if self._progress and now.mono - self._progress_saved_at >= SAVE_PROGRESS_S * NS:
            self._progress_saved_at = now.mono
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
                if task_id in follows or (not follows and connection.number in self._desk.watchers.get(task_id, ()))
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
