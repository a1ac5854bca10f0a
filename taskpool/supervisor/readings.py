"""What clients want to know: read and answered after the commit of a turn, so that they see what it stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from taskpool.core.commands import End, Move
from taskpool.core.lifecycle import QUEUED
from taskpool.core.scheduler import Scheduler
from taskpool.core.waiting import HANDLER, with_reason
from taskpool.errors import InternalError, TaskpoolError
from taskpool.model import Explanation, Stats, Task
from taskpool.store.store import Store
from taskpool.supervisor.server import refusal
from taskpool.supervisor.watchers import Send, Watchers
from taskpool.wire import messages as wire
from taskpool.wire.messages import Reply

PAGE_MAX = 1_000  # rows of one listing
ID_MAX = 2**63 - 1
BULK_MAX = 1_000_000  # tasks of one bulk verb
HEEDS_MAX = 10_000  # who waits for news in the log of transitions

Read = (
    wire.Watch
    | wire.Get
    | wire.List
    | wire.Ready
    | wire.Count
    | wire.GetAttempts
    | wire.GetStats
    | wire.GetQueues
    | wire.GetFlows
    | wire.GetReplies
    | wire.GetSchedules
    | wire.Explain
)


class Readings:
    """The readings of clients. waiting: (client, request) of those that are answered after the next commit."""

    def __init__(self, store: Store, scheduler: Scheduler, stats: Callable[[], Stats], watchers: Watchers, send: Send) -> None:
        self._store = store
        self._scheduler = scheduler
        self._stats = stats
        self._watchers = watchers
        self._send = send
        self.waiting: list[tuple[int, wire.Request]] = []
        self.finds_more: Callable[[], bool] = lambda: False  # whether the next turn looks into the inbox too
        self.printed: Callable[[int], str] = lambda task_id: ""  # what a task that runs has printed
        self._held: list[tuple[int, wire.Request]] = []
        self._heeds: list[tuple[int, wire.Heed]] = []  # who waits for news in the log of transitions
        self._listeners: dict[str, dict[int, wire.GetReplies]] = {}  # mailbox → client → what it waits for

    def ask(self, client: int, request: wire.Request) -> None:
        """Answer a request after the next commit."""
        self.waiting.append((client, request))

    def heed(self, client: int, request: wire.Heed) -> None:
        """Tell a client when the log of transitions grows. Are there too many, it looks once in vain, and asks again."""
        if len(self._heeds) < HEEDS_MAX:
            self._heeds.append((client, request))
        else:
            self._send(client, Reply(request.seq, next=self._store.logged))

    def forget(self, client: int) -> None:
        """A client has left: it waits for nothing any more."""
        for waiting in self._listeners.values():
            waiting.pop(client, None)
        self._heeds = [heed for heed in self._heeds if heed[0] != client]

    def hold(self) -> None:
        """Keep what was asked until `release`: the turn that it waits for is not stored."""
        self._held, self.waiting = self.waiting, []

    def release(self) -> None:
        """Answer what was kept after the next commit, first."""
        self.waiting[:0] = self._held
        self._held = []

    def settle(self, ended: Sequence[End | Move]) -> None:
        """Tell all who wait that these tasks have ended, or for a mailbox that they reply to."""
        if self._listeners:
            for command in ended:
                if command.reply_to in self._listeners:
                    self.waiting += self._listeners.pop(command.reply_to).items()
        self._watchers.settle(ended)

    def answer(self) -> None:
        """Answer what only reads, now that the turn is stored."""
        readings, self.waiting = self.waiting, []
        if self._heeds:
            self._tell_of_log()
        for client, request in readings:
            try:
                reply = self._read(client, request)
            except TaskpoolError as error:
                self._send(client, refusal(getattr(request, "seq", 0), error))
                continue
            except Exception as error:  # nothing has changed, and nobody else need suffer for it
                words = InternalError(f"{type(error).__name__}: {error}")
                self._send(client, refusal(getattr(request, "seq", 0), words))
                continue
            if reply is not None:
                self._send(client, reply)

    def _tell_of_log(self) -> None:
        """Tell those who wait for it that the log of transitions has grown; they read it in the file, at their own cost."""
        logged, heeds = self._store.logged, self._heeds
        self._heeds = [heed for heed in heeds if heed[1].turn >= logged]
        for client, heed in heeds:
            if heed.turn < logged:
                self._send(client, Reply(heed.seq, next=logged))

    def _read(self, client: int, request: wire.Request) -> wire.Answer | None:
        store = self._store
        match request:
            case wire.Watch(seq=seq, ids=ids):
                self._watchers.add(client, ids)
                return Reply(seq) if seq >= 0 else None
            case wire.Get(seq=seq, id=task_id, uid=uid):
                return Reply(seq, tasks=self._routed([store.task(task_id if task_id else store.id_of(uid))]))
            case wire.List(seq=seq, filter=wanted, limit=limit, before=before, offset=offset):
                limit = min(limit, PAGE_MAX)
                tasks = store.tasks(wanted, limit, before, min(offset, ID_MAX - limit))
                return Reply(seq, tasks=self._routed(tasks), next=tasks[-1].id if tasks and len(tasks) == limit else None)
            case wire.Find(seq=seq, uids=uids):
                found = store.find_uids(uids)
                if len(found) < len(set(uids)) and self.finds_more():
                    self.waiting.append((client, request))
                    return None
                return Reply(seq, ids=[found.get(uid, 0) for uid in uids])
            case wire.Count(seq=seq, filter=wanted):
                return Reply(seq, next=len(store.match(wanted, BULK_MAX)))
            case wire.GetAttempts(seq=seq, id=task_id):
                return Reply(seq, attempts=list(store.attempts(task_id)), printed=self.printed(task_id))
            case wire.GetQueues(seq=seq):
                return Reply(seq, queues=store.queues())
            case wire.Explain(seq=seq, id=task_id):
                return Reply(seq, explanation=self._with_room(store.explain(task_id, time.time_ns() // 1000)))
            case wire.Ready(seq=seq, statuses=statuses, as_of=as_of, after=after_task, limit=limit, descending=descending, key=key):
                limit = min(limit, PAGE_MAX)
                return Reply(seq, tasks=store.ready(statuses, as_of, after_task, limit, descending=descending, key=key))
            case wire.GetFlows(seq=seq, limit=limit, before=before, id=flow_id):
                return Reply(seq, flows=store.flows(min(limit, PAGE_MAX), before, flow_id))
            case wire.GetReplies(seq=seq, mailbox=None):
                return Reply(seq, mailboxes=store.mailboxes())
            case wire.GetReplies(seq=seq, mailbox=str(mailbox), after=after, limit=limit):
                replies = store.replies(mailbox, after, min(limit, PAGE_MAX))
                if request.wait and not replies:
                    self._listeners.setdefault(mailbox, {})[client] = request
                    return None
                return Reply(seq, replies=replies)
            case wire.GetSchedules(seq=seq, name=name, occurrences=count):
                schedules = store.schedules(name)
                latest = store.occurrences(name, min(count, PAGE_MAX)) if name is not None and count > 0 else []
                return Reply(seq, schedules=schedules, occurrences=latest)
            case wire.GetStats(seq=seq):
                return Reply(seq, stats=self._stats())
        return None

    def _with_room(self, explanation: Explanation) -> Explanation:
        """Add what the machine lacks for a task."""
        row = self._scheduler.tasks.get(explanation.id)
        if row is None or row.status != QUEUED:
            return explanation
        reason = self._scheduler.routes.reason(row, self._scheduler.workers.values()) or self._scheduler.room.reason(row)
        return explanation if reason is None else with_reason(explanation, reason)

    def _routed(self, tasks: list[Task]) -> list[Task]:
        """Say of tasks that they wait for their handler: the store cannot know."""
        routes = self._scheduler.routes
        if not routes:
            return tasks
        rows = [self._scheduler.tasks.get(task.id) for task in tasks]
        return [
            msgspec.structs.replace(task, wait_reason=HANDLER)
            if row is not None and row.status == QUEUED and not routes.knows(row)
            else task
            for task, row in zip(tasks, rows, strict=True)
        ]
