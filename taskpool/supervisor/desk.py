"""What clients ask for: each request becomes an event for the scheduler, or a reading that is answered after the turn's commit.

The desk knows who waits for which task, and tells them when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from typing import assert_never

import msgspec

from taskpool import faults
from taskpool.core import events as ev
from taskpool.core import queues
from taskpool.core.commands import Agree, CancelLive, Respond
from taskpool.core.directory import Directory, route
from taskpool.core.scheduler import Scheduler
from taskpool.errors import (
    InvalidTask,
    QueueNotRegistered,
    StoreError,
    TaskpoolError,
)
from taskpool.model import Filter, Stats
from taskpool.store.conditions import StoreBusy, StoreFull
from taskpool.store.store import Store
from taskpool.supervisor.lending import Lending
from taskpool.supervisor.readings import BULK_MAX, Read, Readings
from taskpool.supervisor.server import Connection, Server, refusal
from taskpool.supervisor.submits import Submits, retry_of
from taskpool.supervisor.watchers import Watchers
from taskpool.timetable import check
from taskpool.wire import messages as wire
from taskpool.wire.messages import Refused, Reply

HELD_MAX = 10_000  # requests kept while the store takes no writes; further ones are refused …
HELD_BYTES_MAX = 64 << 20  # … and so are further tasks
HELD_TASK_BYTES = 500  # of a task in memory, beside its payload

Written = wire.RegisterQueue | wire.PauseQueues | wire.Acknowledge  # what is stored at once, beside the turns
Held = (  # what waits meanwhile
    wire.Submit
    | wire.Cancel
    | wire.Retry
    | wire.Update
    | wire.AddSchedule
    | wire.ChangeSchedule
    | wire.Find
    | wire.Execute
    | wire.Executed
    | Written
)
SCHEDULE_VERBS = ("cancel", "pause", "resume", "run")


class Desk:
    """Serves the clients of one supervisor. `events` are taken by the loop; `after_commit` follows each commit."""

    def __init__(self, store: Store, scheduler: Scheduler, stats: Callable[[], Stats]) -> None:
        self._store = store
        self._scheduler = scheduler
        self.server: Server
        self.events: list[ev.Event] = []
        self.on_hello: Callable[[Connection], None] = lambda connection: None
        self.on_stop: Callable[[float | None], None] = lambda grace_s: self.events.append(ev.StopAsked(grace_s))
        self.on_find: Callable[[], None] = lambda: None  # somebody asks for what may lie in the inbox
        self.on_prune: Callable[[int, wire.Prune], None] = lambda client, request: None
        self.refusal: Refused | None = None  # set: no new work, and why
        self.follow_asked = False  # somebody began to follow: the loop looks at once, and takes this back
        self.watchers = Watchers(store, self._send)
        self.readings = Readings(store, scheduler, stats, self.watchers, self._send)
        self._stuck: StoreError | None = None  # set: the store takes no writes for now
        self._held: list[tuple[Connection, wire.Request]] = []
        self._later: list[tuple[Connection, Written]] = []  # found the write lock taken
        self._held_bytes = 0
        self.directory = Directory()
        self.lending = Lending(store, scheduler)
        self.submits = Submits(store, scheduler.room, self.directory, self.readings, self.watchers, self._send)

    # ---- requests come in -------------------------------------------------------------------------------------------

    def on_request(self, connection: Connection, request: wire.Request) -> None:
        """Take one request of a client."""
        client = connection.number
        try:
            if self._stuck is not None and (isinstance(request, Held) or (type(request) is wire.Speak and request.seq)):
                self._hold(connection, request, self._stuck)
                return
            if isinstance(request, Read):
                self.readings.ask(client, request)
                return
            match request:
                case wire.Submit():
                    faults.point("submit.read")
                    if not self._is_refused(client, request):
                        self.submits.submit(client, request, self.events)
                case wire.Find():
                    self.on_find()
                    self.readings.ask(client, request)
                case wire.Hello():
                    self._hello(connection, request)
                case wire.Cancel():
                    self._cancel(client, request)
                case wire.Retry():
                    self._retry(client, request)
                case wire.Follow():
                    connection.follows = set(request.ids)
                    self.follow_asked = True
                    self.server.send(client, Reply(request.seq))
                case wire.AddSchedule():
                    self._add_schedule(client, request)
                case wire.ChangeSchedule(seq=seq, verb=verb, name=name):
                    if verb not in SCHEDULE_VERBS:
                        raise InvalidTask(f"nobody knows how to {verb} a schedule")
                    self.events.append(ev.CronAsked(client, seq, verb, name))
                case wire.Stop():
                    self.on_stop(request.grace_s)
                    self.server.send(client, Reply(request.seq))
                case wire.RegisterQueue() | wire.PauseQueues() | wire.Acknowledge():
                    self._write(connection, request)
                case wire.Heed():
                    self.readings.heed(client, request)
                case wire.Update():
                    self._update(client, request)
                case wire.Execute() | wire.Executed() | wire.Speak():
                    if client in self.server.connections:  # else it left while this was held
                        self.events += self.lending.on_request(connection, request, self.readings.waiting)
                case wire.Prune():
                    self.on_prune(client, request)
                case wire.GetHandlers(seq=seq, name=name):
                    known = self.directory.all() if name is None else [(name, self.directory.find(name))]
                    self.server.send(client, Reply(seq, handlers=known))
                case wire.BindHandler(seq=seq):
                    self._bind(request)
                    self.server.send(client, Reply(seq))
                case _:
                    assert_never(request)
        except TaskpoolError as error:
            self._refuse(client, getattr(request, "seq", 0), error)

    # ---- while the store takes no writes ----------------------------------------------------------------------------

    def hold(self, why: StoreError) -> None:
        """From now on keep what changes tasks until `release`. What was asked before waits too: its turn is not stored."""
        if self._stuck is None:
            self.readings.hold()
        self._stuck = why

    def release(self) -> None:
        """Take what was kept, in its order."""
        self._stuck = None
        self.readings.release()
        held, self._held, self._held_bytes = self._held, [], 0
        for connection, request in held:
            self.on_request(connection, request)

    def _hold(self, connection: Connection, request: Held | wire.Speak, why: StoreError) -> None:
        if isinstance(request, wire.Submit):
            self._held_bytes += sum(HELD_TASK_BYTES + len(spec.payload) for spec in request.specs)
            if isinstance(why, StoreFull) or self._held_bytes > HELD_BYTES_MAX:
                raise why
        elif len(self._held) >= HELD_MAX:
            raise why
        self._held.append((connection, request))

    # ---- requests, one by one ---------------------------------------------------------------------------------------

    def _is_refused(self, client: int, request: wire.Submit | wire.AddSchedule) -> bool:
        """Refuse new work if there is to be no more; return whether that is so."""
        if self.refusal is not None:
            self.server.send(client, Refused(request.seq, self.refusal.code, self.refusal.message, self.refusal.hint))
        return self.refusal is not None

    def _add_schedule(self, client: int, request: wire.AddSchedule) -> None:
        if self._is_refused(client, request):
            return
        schedule = request.schedule
        check(schedule.spec, schedule.tz, time.time_ns() // 1000)
        schedule = msgspec.structs.replace(schedule, options=msgspec.structs.replace(schedule.options, recurrence=schedule.name))
        verb = "replace" if request.replace else "add"
        self.events.append(ev.CronAsked(client, request.seq, verb, schedule.name, schedule))

    def take_events(self) -> list[ev.Event]:
        """Return what has come since the last call."""
        events, self.events = self.events, []
        self.submits.taken()
        return events

    @property
    def busy(self) -> bool:
        """Whether something waits for the next turn."""
        return bool(self.events or self.readings.waiting)

    def _hello(self, connection: Connection, request: wire.Hello) -> None:
        if request.protocol != wire.PROTOCOL:
            words = f"this supervisor speaks protocol {wire.PROTOCOL}, the client {request.protocol}"
            self.server.send(connection.number, Refused(0, "protocol", words, "use one version of taskpool on both sides"))
            return
        connection.pid = request.pid
        self.on_hello(connection)

    # ---- queues -----------------------------------------------------------------------------------------------------

    def _write(self, connection: Connection, request: Written) -> None:
        """Store what has a transaction of its own, and pass it on; once more by timer while a guest holds the write lock."""
        try:
            match request:
                case wire.RegisterQueue():
                    rules = [self._store.register_queue(queues.check(request.queue), replace=request.replace)]
                case wire.PauseQueues():
                    rules = self._store.pause_queues(request.names, request.paused)
                case wire.Acknowledge(seq=seq, mailbox=mailbox, seqs=seqs):
                    self.server.send(connection.number, Reply(seq, ids=self._store.acknowledge(mailbox, seqs)))
                    return
                case _:
                    assert_never(request)
        except StoreBusy:
            if len(self._later) >= HELD_MAX:
                raise
            self._later.append((connection, request))
            return
        self.submits.know_queues(rules)
        self.events += [ev.QueueSet(queue) for queue in rules]
        self.readings.ask(connection.number, wire.GetQueues(request.seq))

    def forget(self, client: int) -> None:
        """A client has left: it waits for nothing any more."""
        self.readings.forget(client)
        self.events.append(ev.CallerGone(client))

    def _bind(self, request: wire.BindHandler) -> None:
        if not any(state.registered for state in self._store.queues() if state.name == request.queue):
            raise QueueNotRegistered(f"queue {request.queue!r} is not registered", hint="register_queue(Queue(…)) comes first")
        self.directory.bind(route(request.queue, request.task_type), request.name)

    @property
    def waits_for_lock(self) -> bool:
        """Whether something is to be tried again that found the store's write lock taken."""
        return bool(self._later)

    def try_again(self) -> None:
        """Try what found the write lock taken, in its order."""
        later, self._later = self._later, []
        for connection, request in later:
            self.on_request(connection, request)

    def _cancel(self, client: int, request: wire.Cancel) -> None:
        ids = self._matching(request.filter)
        if request.dry_run:
            self.server.send(client, Reply(request.seq, ids=ids))
            return
        absent = [task_id for task_id in ids if not self._scheduler.knows(task_id)]
        self.events.append(
            ev.CancelAsked(client, request.seq, ids, self._store.rows(absent), request.reason, request.grace_s, request.force)
        )

    def _retry(self, client: int, request: wire.Retry) -> None:
        ids = self._matching(request.filter)
        if request.dry_run:
            self.server.send(client, Reply(request.seq, ids=ids))
            return
        ids.sort()  # parents before their children
        self.events.append(retry_of(self._store, client, request.seq, ids, force=request.force))

    def _update(self, client: int, request: wire.Update) -> None:
        rows = [] if self._scheduler.knows(request.id) else self._store.rows([request.id])
        row = rows[0] if rows else None
        options = None if request.options is None else self.submits.options(request.options)
        asked = (request.priority, request.scheduled_at, options)
        self.events.append(
            ev.UpdateAsked(client, request.seq, request.id, request.version, row, *asked, self._store.is_held(request.id))
        )

    def _matching(self, wanted: Filter) -> list[int]:
        if wanted == Filter(ids=wanted.ids):
            return list(wanted.ids)
        return self._store.match(wanted, BULK_MAX)

    # ---- after the commit -------------------------------------------------------------------------------------------

    def respond(self, command: Respond, refused: Set[int] = frozenset()) -> None:
        """Tell a client what its cancel or retry did. refused: what was not stored of the turn, be it of a task that is named."""
        done, not_done = command.ids, command.refused
        if refused:
            done = [task_id for task_id in done if task_id not in refused]
            not_done = [*not_done, *(task_id for task_id in command.ids if task_id in refused)]
        self.server.send(command.client, Reply(command.seq, ids=done, refused=not_done))

    def agree(self, command: Agree, refused: Set[int]) -> None:
        """Tell a client what became of its request."""
        if command.code:
            answer: wire.Answer = Refused(command.seq, command.code, command.message, command.hint)
        elif any(task_id in refused for task_id in command.ids):
            answer = Refused(command.seq, "error", "there is no room for the task")
        else:
            answer = Reply(command.seq, ids=command.ids)
        self.server.send(command.client, answer)

    def tell_pruned(self, client: int, seq: int, gone: Mapping[str, int]) -> None:
        """Tell a client what was pruned, by status."""
        self.server.send(client, Reply(seq, pruned=dict(gone)))

    def cancel_live(self, command: CancelLive) -> ev.CancelAsked:
        """Return the event that cancels what a schedule made before, with the rows that memory lacks."""
        absent = [task_id for task_id in command.ids if not self._scheduler.knows(task_id)]
        return ev.CancelAsked(0, 0, command.ids, self._store.rows(absent), command.reason)

    def _send(self, client: int, message: wire.Answer) -> None:
        self.server.send(client, message)

    def _refuse(self, client: int, seq: int, error: TaskpoolError) -> None:
        self.server.send(client, refusal(seq, error))
