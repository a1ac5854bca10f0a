"""What callers hold: ways to hand in tasks (`submitter`), to look at them, and to change their fate.

A Client speaks over a connection to a supervisor that somebody else owns. The connection, futures and the codec are imported when
a client is made: a Pool does that while its supervisor is starting.
"""

from __future__ import annotations

import builtins
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, TypedDict, TypeVar, Unpack

import msgspec

from taskpool.config import interval as checked_interval
from taskpool.config import socket_path, store_path
from taskpool.doors.amending import TaskId
from taskpool.doors.executing import Executing
from taskpool.doors.options import NOTHING_SAID
from taskpool.doors.retaining import Retaining
from taskpool.doors.selection import FilterFields, Wanted, filter_of, meant
from taskpool.doors.submitter import Submitter
from taskpool.errors import InvalidTask, NoServer, NotFound, PoolStopped
from taskpool.model import Attempt, Explanation, FlowState, Occurrence, Queue, QueueState, Schedule, Stats, Status, Task
from taskpool.wire import messages as wire
from taskpool.wire.messages import News

if TYPE_CHECKING:
    from concurrent.futures import Future

    from taskpool.doors.cron import CronOptions
    from taskpool.doors.future import TaskFuture
    from taskpool.doors.link import Link

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
WAIT_INTERVAL_S = 0.1  # between looks at a status that no message announces
CONNECT_AGAIN_S = 0.01  # between tries while the supervisor has more connections to accept than it may keep waiting


class Bulk(NamedTuple):
    """What a bulk verb did: the tasks it changed, and those it could not."""

    ids: list[int]
    refused: list[int]


class QueueSettings(TypedDict, total=False):
    """What a queue may be told: the fields of Queue."""

    concurrency: int | None
    max_retry: int | None
    retry_delay: float | None
    buffer_size: int | None
    max_backlog: int | None
    paused: bool
    rate: float | None
    burst: int | None


class Client(Executing, Retaining):
    """A connection to a supervisor. Leaving it ends the connection, not the tasks: they go on without it."""

    def __init__(self, link: Link) -> None:
        super().__init__(NOTHING_SAID)
        self._connection = link

    @property
    def _link(self) -> Link:
        return self._connection

    # ---- what it is connected to --------------------------------------------------------------------------------------

    @property
    def store(self) -> str:
        """Return the path of the store's file."""
        return self._link.welcome.store

    @property
    def pid(self) -> int:
        """Return the process id of the supervisor."""
        return self._link.welcome.pid

    @property
    def workers(self) -> int:
        """Return how many processes run tasks."""
        return self._link.welcome.workers

    @property
    def notices(self) -> list[str]:
        """Return what the supervisor wants its callers to know."""
        return list(self._link.welcome.notices)

    # ---- looking ------------------------------------------------------------------------------------------------------

    def future(self, task_id: TaskId) -> TaskFuture[Any]:
        """Return a future for a stored task, by its id, its uid or as it was enqueued. NotFound."""
        return self._link.watch(self.get(task_id).id)

    def count(self, wanted: Wanted = None, /, **fields: Unpack[FilterFields]) -> int:
        """Return how many tasks match."""
        matching = filter_of(wanted, fields)
        if matching is None:
            return 0
        return self._link.request(lambda seq: wire.Count(seq, matching)).next or 0

    def wait(
        self,
        task_id: TaskId,
        timeout: float | None = None,
        *,
        status: Status | str | None = None,
        interval: float | timedelta = WAIT_INTERVAL_S,
    ) -> Task:
        """Wait for the end of a task, however it ends, and return it. TimeoutError after `timeout` seconds; NotFound.

        status: or until it has that, of which no message tells: so the supervisor is asked every `interval` seconds.
        """
        if status is not None:
            return self._wait_for_status(task_id, timeout, str(status), checked_interval("interval", interval))
        future = self.future(task_id)
        if not future.done():
            future._wait(timeout)
        if future._outcome is None and future._exception is not None:
            raise future._exception  # the pool ended first
        return self.get(task_id)

    def _wait_for_status(self, task_id: TaskId, timeout: float | None, wanted: str, interval_s: float) -> Task:
        if wanted not in set(Status):
            raise InvalidTask(f"there is no status {wanted!r}", hint=f"there are {', '.join(Status)}")
        until = None if timeout is None else time.monotonic() + timeout
        while (task := self.get(task_id)).status != wanted and not task.status.is_terminal:
            left = math.inf if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"task {task.id} is still {task.status} after {timeout} s")
            time.sleep(min(interval_s, left))
        return task

    def attempts(self, task_id: int) -> list[Attempt]:
        """Return the attempts of a task, oldest first. NotFound."""
        reply = self._link.request(lambda seq: wire.GetAttempts(seq, task_id))
        return msgspec.convert(reply.attempts or [], list[Attempt])

    def output(self, task_id: int) -> str:
        """Return the end of what the attempt that runs has printed so far; "" if none runs. `attempts` tell of those that ended."""
        return self._link.request(lambda seq: wire.GetAttempts(seq, task_id)).printed or ""

    # After all that return a list: below, its name hides the builtin's from annotations.
    def list(
        self,
        wanted: Wanted = None,
        /,
        *,
        limit: int = 100,
        before: int | None = None,
        offset: int = 0,
        **fields: Unpack[FilterFields],
    ) -> list[Task]:
        """Return tasks that match, newest first: at most `limit` (1,000), with ids below `before`, the last of the page above.

        offset: pass over so many; `before` costs the same for every page, this the more the farther it goes.
        """
        matching = filter_of(wanted, fields)
        if matching is None:
            return []
        return self._link.request(lambda seq: wire.List(seq, matching, limit, before, offset)).tasks or []

    def stats(self) -> Stats:
        """Return one screen of the pool's numbers."""
        reply = self._link.request(wire.GetStats)
        assert reply.stats is not None
        return reply.stats

    def cron_jobs(self) -> builtins.list[Schedule]:
        """Return the schedules, by name."""
        return self._link.request(wire.GetSchedules).schedules or []

    def get_cron(self, name: str) -> Schedule:
        """Return a schedule as it stands, with its counts `total` and `err_count`. NotFound."""
        (schedule,) = self._link.request(lambda seq: wire.GetSchedules(seq, name)).schedules or []
        return schedule

    def cron_history(self, name: str, limit: int = 100) -> builtins.list[Occurrence]:
        """Return the latest occurrences of a schedule, the skipped too, latest first (at most 1,000). NotFound."""
        return self._link.request(lambda seq: wire.GetSchedules(seq, name, limit)).occurrences or []

    def follow(self, callback: Callable[[News], object], ids: Iterable[int] = ()) -> Callable[[], None]:
        """Call back with progress and output of these tasks as they come (none named: all of this client's).

        callback(news) runs in the connection's thread: news.progress maps id to Progress, news.output lists (id, bytes), news.begun
        maps id to pid. Returns a function that ends it.
        """
        wanted = list(ids)
        self._link.follow(callback)
        self._link.request(lambda seq: wire.Follow(seq, wanted))
        return lambda: self._link.unfollow(callback)

    def queues(self) -> Sequence[QueueState]:
        """Return all queues, by name: settings, whether they are paused, how many tasks they have in which status."""
        return self._link.request(wire.GetQueues).queues or ()

    def explain(self, task_id: int) -> Explanation:
        """Say why a task stands where it stands: what it waits for, in words. NotFound."""
        reply = self._link.request(lambda seq: wire.Explain(seq, task_id))
        assert reply.explanation is not None
        return reply.explanation

    def flows(self, limit: int = 100, before: int | None = None) -> Sequence[FlowState]:
        """Return the graphs that were submitted, newest first: at most `limit` (1,000), with ids below `before`."""
        return self._link.request(lambda seq: wire.GetFlows(seq, limit, before)).flows or ()

    def flow_state(self, flow_id: int, /) -> FlowState:
        """Return how a graph stands. NotFound."""
        for state in self._link.request(lambda seq: wire.GetFlows(seq, 1, None, flow_id)).flows or ():
            return state
        raise NotFound(f"there is no flow {flow_id} in {self.store}")

    # ---- queues -------------------------------------------------------------------------------------------------------

    def register_queue(self, queue: Queue, /, *, replace: bool = False) -> QueueState:
        """Store a queue's settings, which hold from now on for every owner of the store. The same again changes nothing.

        Raises QueueConfigConflict if it has other settings (replace: these take their place), InvalidQueueName, InvalidTask.
        """
        from taskpool.core.queues import check

        checked = check(queue)
        reply = self._link.request(lambda seq: wire.RegisterQueue(seq, checked, replace))
        return next(state for state in reply.queues or () if state.name == queue.name)

    def queue(self, name: str, /, **settings: Unpack[QueueSettings]) -> Submitter:
        """Return a view of this pool whose tasks go to a queue, which is registered if any setting is given.

        Raises what `register_queue` does.
        """
        view = self.options(queue=name)
        if settings:
            self.register_queue(Queue(name, **settings))
        return view

    def pause(self, *names: str) -> Sequence[QueueState]:
        """Start nothing more of these queues (none named: of all there are) until they are resumed; what runs goes on.

        It is stored: a queue stays paused when the pool is stopped and opened again. One that nobody has registered, and that has
        had no task yet, waits so for its first. Raises InvalidQueueName.
        """
        return self._link.request(lambda seq: wire.PauseQueues(seq, list(names), True)).queues or ()

    def resume(self, *names: str) -> Sequence[QueueState]:
        """Let paused queues go on (none named: all). Raises QueueNotRegistered."""
        return self._link.request(lambda seq: wire.PauseQueues(seq, list(names), False)).queues or ()

    # ---- changing -----------------------------------------------------------------------------------------------------

    def cancel(
        self,
        wanted: Wanted = None,
        /,
        *,
        reason: str = "",
        grace: float | None = None,
        force: bool = False,
        dry_run: bool = False,
        **fields: Unpack[FilterFields],
    ) -> Bulk:
        """Cancel tasks, also running ones. Return those that were accepted, and those that had ended before.

        grace: seconds from Cancelled being raised in a handler to the kill (None: the pool's); force: kill at once; dry_run: only
        tell which. To mean all tasks, say Filter().
        """
        matching = meant("cancel", wanted, fields)
        if matching is None:
            return Bulk([], [])
        reply = self._link.request(lambda seq: wire.Cancel(seq, matching, reason, grace, force, dry_run))
        return Bulk(reply.ids or [], reply.refused or [])

    def retry(
        self, wanted: Wanted = None, /, *, force: bool = False, dry_run: bool = False, **fields: Unpack[FilterFields]
    ) -> Bulk:
        """Give ended tasks a new round. Return those that got one, and those that could not. force: also what succeeded."""
        matching = meant("retry", wanted, fields)
        if matching is None:
            return Bulk([], [])
        reply = self._link.request(lambda seq: wire.Retry(seq, matching, force, dry_run))
        return Bulk(reply.ids or [], reply.refused or [])

    # ---- schedules ----------------------------------------------------------------------------------------------------

    def add_cron(
        self,
        spec: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        name: str | None = None,
        replace: bool = False,
        **options: Unpack[CronOptions],
    ) -> Schedule:
        """Call fn(*args) as a task whenever `spec` comes due while the pool is served; durable when this returns.

        spec: `minute hour day month weekday`, a second before them if wanted, `@daily` and its like, or `@every 90s`; name: unique
        (made up when absent); the same again is the same schedule, another under that name is AlreadyExists unless `replace`;
        options: see CronOptions. Raises InvalidTask, naming the field, zone or option, and what `submit` raises.
        """
        from taskpool.doors.cron import schedule_of

        schedule = schedule_of(self._plan(fn), spec, args, name, options)
        self._link.request(lambda seq: wire.AddSchedule(seq, schedule, replace))
        return self.get_cron(schedule.name)

    def cron(
        self, spec: str, /, *args: Any, name: str | None = None, **options: Unpack[CronOptions]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Return a decorator that schedules a function as `add_cron` does, and leaves it as it is.

        name: the function's unless told. What the code says now counts: it replaces what it said under that name before.
        """

        def decorate(fn: Callable[P, R]) -> Callable[P, R]:
            self.add_cron(spec, fn, *args, name=name or self._plan(fn).name, replace=True, **options)
            return fn

        return decorate

    def cancel_cron(self, name: str) -> None:
        """Delete a schedule and its occurrences; its tasks stay. NotFound."""
        self._change_cron("cancel", name)

    def pause_cron(self, name: str) -> None:
        """Let a schedule rest: times that come meanwhile do not happen. NotFound."""
        self._change_cron("pause", name)

    def resume_cron(self, name: str) -> None:
        """Let a schedule go on, with the next of its times. NotFound."""
        self._change_cron("resume", name)

    def run_cron(self, name: str) -> TaskFuture[Any]:
        """Make a task of a schedule now, beside its times, also while it is paused; return its future. NotFound."""
        (task_id,) = self._change_cron("run", name)
        return self._link.watch(task_id)

    def _change_cron(self, verb: str, name: str) -> builtins.list[int]:
        return self._link.request(lambda seq: wire.ChangeSchedule(seq, verb, name)).ids or []

    def stop(self, grace: float | None = 0.0) -> None:
        """End the pool that this is connected to. grace: seconds that running tasks may go on (None: until they end).

        What still runs then goes back to wait for the next owner of the store, and what waits stays.
        """
        self._link.request(lambda seq: wire.Stop(seq, grace))

    @staticmethod
    def as_completed(futures: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
        """Yield the futures as they end; the same as concurrent.futures.as_completed."""
        from concurrent.futures import as_completed

        return as_completed(futures, timeout)

    # ---- leaving ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; open futures raise PoolStopped, their tasks go on. Safe to call twice."""
        leave(self)
        self._link.close("this client was closed")
        self._finish_hooks()

    def __enter__(self) -> Self:
        enter(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "stopped" if self._link.stopped else f"pid {self.pid}"
        return f"<{type(self).__name__} {self.store} ({state})>"


def connect(store: str | os.PathLike[str], *, timeout: float = CONNECT_TIMEOUT_S) -> Client:
    """Connect to the supervisor that owns a store: a path, a name, or `unix:` and the path of its socket.

    Raises NoServer if nobody is there, or does not answer within `timeout` seconds.
    """
    from taskpool.doors.link import Link

    text = os.fspath(store)
    path = text[5:] if text.startswith("unix:") else os.fspath(socket_path(store_path(store)))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        try:
            _connect(sock, path, timeout)
        except (OSError, ValueError) as error:
            reason = (
                f"nobody serves {text}" if isinstance(error, FileNotFoundError | ConnectionRefusedError) else f"{path}: {error}"
            )
            raise NoServer(reason, hint="start `python -m taskpool serve` on it, or open a Pool") from error
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid not in (os.geteuid(), 0):
            raise NoServer(f"{path} is served by user {uid}, not by you ({os.geteuid()}): tasks would run as somebody else")
        return Client(Link(sock, name="client", cause=lambda: "the supervisor is gone"))
    except BaseException:
        sock.close()
        raise


def _connect(sock: socket.socket, path: str, timeout: float) -> None:
    """Connect, waiting for a place in the queue of connections: a Unix socket refuses at once when many come together."""
    until = time.monotonic() + timeout
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(CONNECT_AGAIN_S)


# ---- the pool in force --------------------------------------------------------------------------------------------------

_entered: list[Client] = []


def enter(client: Client) -> None:
    """Make a client the one that `handler.submit` uses, until it is left."""
    _entered.append(client)


def leave(client: Client) -> None:
    """Undo `enter`, if it was called."""
    if client in _entered:
        _entered.remove(client)


def current_pool() -> Client:
    """Return the pool or client that was entered last (`with Pool(…)`). Raises PoolStopped if there is none."""
    if not _entered:
        raise PoolStopped("no pool is open here", hint="open one: with Pool(…) as pool:")
    return _entered[-1]
