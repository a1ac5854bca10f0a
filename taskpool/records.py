"""Records: tasks as data that an application keeps of its own accord, with a numeric type and opaque bytes.

A Record is a task seen from outside: it is handed to a store, read again, and written by its version. Its `type` is the name of the
handler that runs it (a number n means the handler that is called "n"), `data` the one argument that this is called with.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from taskpool.errors import InvalidTask
from taskpool.model import NUMBER_MAX, Codec, Options, Status, Task, TaskSpec, check_key, check_queue_name, encode

TYPE_MAX: Final = 2**32 - 1
TYPE_LENGTH_MAX: Final = 200
WORD_LENGTH_MAX: Final = 200
MOMENT_MAX: Final = 2**62  # wall µs


class State(enum.IntEnum):
    """What becomes of a record, in three words: eight statuses say how it stands."""

    UNKNOWN = 0
    PENDING = 1  # it has not ended
    CONFIRMED = 2  # it succeeded
    FAILED = 3  # it ended otherwise

    @classmethod
    def of(cls, status: str) -> State:
        """Return the state of a task in that status; UNKNOWN for what is no status."""
        return _STATES.get(str(status), cls.UNKNOWN)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """Return the statuses that it stands for; none for UNKNOWN."""
        return tuple(Status(name) for name, state in _STATES.items() if state is self)

    def __str__(self) -> str:
        """Return its name as people write it."""
        return self.name.lower()


_STATES: Final[Mapping[str, State]] = {
    "pending": State.PENDING,
    "queued": State.PENDING,
    "running": State.PENDING,
    "retrying": State.PENDING,
    "succeeded": State.CONFIRMED,
    "failed": State.FAILED,
    "cancelled": State.FAILED,
    "interrupted": State.FAILED,
}


class Record(msgspec.Struct, kw_only=True):
    """One task as data. What a store fills in when it is put: id, task_id (unless given), status, version, created_at.

    task_id: a UUID as text, by which it is stored once; key: a serialization key ("": none); max_attempts: 0 or less means 1;
    next_attempt_at, created_at: wall µs (next_attempt_at None: now).
    """

    type: int | str
    data: bytes = b""
    task_id: str = ""
    reference_id: str = ""
    owner_type: str = ""
    owner_id: str = ""
    source: str = ""
    queue: str = "default"
    priority: int = 0
    key: str = ""
    max_attempts: int | None = None
    next_attempt_at: int | None = None
    id: int = 0
    status: Status = Status.PENDING
    failed_attempts: int = 0
    version: int = 0
    created_at: int = 0

    @property
    def state(self) -> State:
        """Return what has become of it."""
        return State.of(self.status)

    def clone(self) -> Record:
        """Return a copy that shares nothing that can be changed."""
        return msgspec.structs.replace(self)

    def copy_to(self, other: Record) -> None:
        """Make another record the same as this one."""
        for name in self.__struct_fields__:
            setattr(other, name, getattr(self, name))

    def validate(self) -> None:
        """Raise InvalidTask, naming the field, if no store can keep it."""
        kind: Any = self.type
        if isinstance(kind, bool) or not isinstance(kind, int | str):
            raise InvalidTask(f"type of a record must be a number or a name: {kind!r:.120}")
        if isinstance(kind, int) and not 0 <= kind <= TYPE_MAX:
            raise InvalidTask(f"type of a record must be from 0 to {TYPE_MAX}: {kind}")
        if isinstance(kind, str) and not (0 < len(kind) <= TYPE_LENGTH_MAX and kind.isprintable()):
            raise InvalidTask(f"type of a record must be a name of 1 to {TYPE_LENGTH_MAX} printable characters: {kind!r:.120}")
        if not isinstance(self.data, bytes):
            raise InvalidTask(f"data of a record must be bytes, not {type(self.data).__qualname__}")
        if self.key != "":
            check_key("key of a record", self.key)
        if self.task_id != "":
            uid_of(self.task_id, "leave it out, and one is made")
        check_queue_name(self.queue)
        for name in ("reference_id", "owner_type", "owner_id", "source"):
            word: Any = getattr(self, name)
            if not isinstance(word, str) or len(word) > WORD_LENGTH_MAX or not word.isprintable():
                raise InvalidTask(
                    f"{name} of a record must be a text of at most {WORD_LENGTH_MAX} printable characters: {word!r:.120}"
                )
        for name in ("failed_attempts", "version", "id", "created_at"):
            _check_whole(name, getattr(self, name), 0, MOMENT_MAX)
        _check_whole("priority", self.priority, -NUMBER_MAX, NUMBER_MAX)
        if self.max_attempts is not None:
            _check_whole("max_attempts", self.max_attempts, -NUMBER_MAX, NUMBER_MAX)
        if self.next_attempt_at is not None:
            _check_whole("next_attempt_at (wall µs)", self.next_attempt_at, 0, MOMENT_MAX)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidTask(f"{name} of a record must be a whole number from {least} to {most}: {value!r:.120}")


def uid_of(task_id: str, hint: str = "") -> bytes:
    """Return the bytes of a UUID. InvalidTask, with a hint."""
    try:
        return uuid.UUID(task_id).bytes
    except (ValueError, AttributeError, TypeError):
        raise InvalidTask(f"task_id must be a UUID: {task_id!r:.120}", hint=hint) from None


def spec_of(record: Record) -> TaskSpec:
    """Return what is submitted of a record; gives it a task_id if it has none. InvalidTask."""
    record.validate()
    if not record.task_id:
        record.task_id = str(uuid.uuid4())
    options = options_of(record, Options())
    payload = encode(([record.data], {}))
    at = record.next_attempt_at or 0
    packed = b"" if options == Options() else encode(options)
    name = str(record.type)
    uid, key = uid_of(record.task_id), record.key or None
    return TaskSpec(uid, name, int(Codec.MSGPACK), payload, packed, record.queue, record.priority, at, key=key)


def options_of(record: Record, stored: Options) -> Options:
    """Return a task's options with what its record says of them."""
    return msgspec.structs.replace(
        stored,
        reference_id=record.reference_id,
        owner_type=record.owner_type,
        owner_id=record.owner_id,
        source=record.source,
        max_attempts=None if record.max_attempts is None else max(1, record.max_attempts),
    )


def record_of(task: Task) -> Record:
    """Return a task as a record. data of a task that was not put as one: its payload as it is."""
    options = task.options
    return Record(
        type=int(task.name) if task.name.isascii() and task.name.isdigit() else task.name,
        data=_data(task),
        task_id=task.uid,
        reference_id=options.reference_id,
        owner_type=options.owner_type,
        owner_id=options.owner_id,
        source=options.source,
        queue=task.queue,
        priority=task.priority,
        key=task.key or "",
        max_attempts=options.max_attempts,
        next_attempt_at=task.scheduled_at,
        id=task.id,
        status=task.status,
        failed_attempts=task.failed_attempts,
        version=task.version,
        created_at=task.created_at,
    )


def _data(task: Task) -> bytes:
    if task.codec != Codec.MSGPACK:
        return task.payload
    try:
        (data,), _ = msgspec.msgpack.decode(task.payload, type=tuple[tuple[bytes], dict[str, Any]])
    except msgspec.MsgspecError:
        return task.payload
    return data
