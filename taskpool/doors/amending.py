"""Changing and finding what waits: the part of a Client that writes single tasks by their version, and reads them by their time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, Unpack, cast

import msgspec

from taskpool.core.lifecycle import MOVES
from taskpool.doors.observing import Observing
from taskpool.doors.options import NOTHING_SAID, TaskOptions
from taskpool.doors.refusals import no_new_round
from taskpool.errors import IllegalTransition, InvalidTask, NotCancellable, NotFound, StaleVersion
from taskpool.model import Filter, Options, Status, Task, encode
from taskpool.records import uid_of
from taskpool.wire import messages as wire

# Options whose field of Options has another name.
_FIELDS = {
    "timeout": "timeout_s",
    "soft_timeout": "soft_timeout_s",
    "heartbeat_timeout": "heartbeat_timeout_s",
    "retention": "retention_s",
    "deadline": "deadline_at",
    "expires": "expires_at",
}
STALE = "read it again, and decide anew"


class HasUid(Protocol):
    """A task that a supervisor may not have seen yet, such as an Enqueued."""

    @property
    def uid(self) -> str:
        """Return its UUID."""


TaskId = int | str | HasUid


class Amending(Observing):
    """Reads and writes single tasks."""

    def get(self, task_id: TaskId) -> Task:
        """Return a task as it stands in the store, by its id, its UUID or as it was enqueued. NotFound."""
        number = task_id if isinstance(task_id, int) else self._id_of(task_id)
        reply = self._link.request(lambda seq: wire.Get(seq, number))
        assert reply.tasks
        return reply.tasks[0]

    def _id_of(self, task: str | HasUid) -> int:
        """Return the id of a task that the supervisor may not have seen yet."""
        text = task if isinstance(task, str) else getattr(task, "uid", None)
        try:
            uid = uid_of(cast("str", text))
        except InvalidTask:
            words = f"a task is named by its id (a whole number), its UUID or what enqueue returned: {task!r:.120}"
            raise InvalidTask(words) from None
        found = self._link.request(lambda seq: wire.Find(seq, [uid])).ids or [0]
        if not found[0]:
            hint = "" if isinstance(task, str) else "its transaction has not committed, or was rolled back"
            raise NotFound(f"there is no task {text}", hint=hint)
        return found[0]

    def update(self, task: Task | int, /, *, version: int | None = None, **options: Unpack[TaskOptions]) -> Task:
        """Change a task that waits: when it is due (`at`, `delay`), its priority, any other option; return it as it is then.

        task: its id, or a Task that was changed (msgspec.structs.replace): then what is mutable of that is written (priority,
        scheduled_at, options). version: at which it was read (of a Task: its own). Raises StaleVersion if it was written since,
        NotFound, IllegalTransition if it does not wait, InvalidTask for an option, and for queue, which cannot be changed.
        """
        if isinstance(task, Task):
            if options:
                raise InvalidTask("a changed Task says everything: say options with an id")
            task_id, at_version = task.id, task.version
            try:
                packed = encode(task.options)
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidTask(f"the options of a task cannot be sent: {error}") from error
            request: tuple[int | None, int | None, bytes | None] = (task.priority, task.scheduled_at, packed)
        else:
            stored = self._at_version(task, version)
            task_id, at_version = task, stored.version
            request = _changes(stored, options)
        self._link.request(lambda seq: wire.Update(seq, task_id, at_version, *request))
        return self.get(task_id)

    def update_status(
        self, task_id: int, status: Status | str, /, *, version: int | None = None, reason: str = "", force: bool = False
    ) -> Task:
        """Move a task by hand to another status, as far as the table of moves lets people do that; return it as it is then.

        To cancelled: as `cancel`, with its reason. To queued: due now. To pending, of one that ended: another round (force: also of
        one that succeeded). All else, such as succeeded, only an attempt does: IllegalTransition. StaleVersion, NotFound.
        """
        stored, to = self._at_version(task_id, version), str(status)
        if to not in set(map(str, Status)):
            raise InvalidTask(f"there is no status {to!r}", hint=f"there are {', '.join(map(str, Status))}")
        if to not in MOVES[stored.status]:
            legal = ", ".join(MOVES[stored.status])
            raise IllegalTransition(f"task {task_id} cannot move from {stored.status} to {to}", hint=f"it may to {legal}")
        wanted = Filter(ids=(task_id,))
        if to == Status.CANCELLED:
            if self._link.request(lambda seq: wire.Cancel(seq, wanted, reason)).refused:
                raise NotCancellable(f"task {task_id} had ended")
        elif stored.status.is_terminal:
            if self._link.request(lambda seq: wire.Retry(seq, wanted, force)).refused:
                raise no_new_round(self.get(task_id))
        elif to == Status.QUEUED and stored.status in (Status.PENDING, Status.RETRYING):
            now = time.time_ns() // 1000
            self._link.request(lambda seq: wire.Update(seq, task_id, stored.version, None, now))
        else:
            raise IllegalTransition(f"task {task_id} becomes {to} by itself, not by hand", hint="update(delay=…) puts it off")
        return self.get(task_id)

    def ready(
        self,
        status: Status | str | Iterable[Status | str] = Status.PENDING,
        /,
        *,
        as_of: datetime | None = None,
        after: Task | None = None,
        limit: int = 100,
        descending: bool = False,
        key: str | None = None,
    ) -> Sequence[Task]:
        """Return tasks in a status that were scheduled for a moment (now) or before, the earliest first.

        after: the last task of the page before; descending: the latest first; limit: 1,000 at most; key: only those that have this
        serialization key. InvalidTask.
        """
        statuses = [str(status)] if isinstance(status, str) else list(map(str, status))
        moment: Any = as_of
        if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
            raise InvalidTask(f"as_of must be a datetime that knows its time zone: {moment!r:.120}")
        at = time.time_ns() // 1000 if as_of is None else round(as_of.timestamp() * 1e6)
        place = None if after is None else (after.scheduled_at, after.id)
        return self._ready(statuses, at, place, limit, descending, key)

    def _ready(
        self,
        statuses: Sequence[str],
        at: int,
        place: tuple[int, int] | None,
        limit: int,
        descending: bool = False,
        key: str | None = None,
    ) -> Sequence[Task]:
        names = list(map(str, statuses))
        return self._link.request(lambda seq: wire.Ready(seq, names, at, place, limit, descending, key)).tasks or []

    def _at_version(self, task_id: int, version: int | None) -> Task:
        stored = self.get(task_id)
        if version is not None and stored.version != version:
            raise StaleVersion(f"task {task_id} is at version {stored.version}, not {version}", hint=STALE)
        return stored


def _changes(stored: Task, given: Mapping[str, Any]) -> tuple[int | None, int | None, bytes | None]:
    """Return (priority, scheduled_at, packed options) of what is to be changed, None for what is not."""
    if "queue" in given:
        raise InvalidTask("a task stays in its queue", hint="cancel it, and submit it to the other")
    for name in ("key", "unique", "unique_period", "on_conflict"):
        if name in given:
            raise InvalidTask(f"{name} of a task cannot be changed", hint="cancel it, and submit another")
    packed, at = NOTHING_SAID.plus(given).packed()
    moment = (at or time.time_ns() // 1000) if "at" in given or "delay" in given else None
    names = [_FIELDS.get(name, name) for name in given if name not in ("priority", "at", "delay")]
    if not names:
        return given.get("priority"), moment, None
    if "at_most_once" in names:
        names.append("on_interrupt")
    if given.get("retry") is not None and "max_attempts" not in names:
        names.append("max_attempts")  # a policy brings its own number
    said = msgspec.msgpack.decode(packed, type=Options) if packed else Options()
    options = msgspec.structs.replace(stored.options, **{name: getattr(said, name) for name in names})
    return given.get("priority"), moment, encode(options)
