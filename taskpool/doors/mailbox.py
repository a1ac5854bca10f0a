"""What lies in a mailbox: one response for each end of a task that was submitted with `reply_to`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from taskpool.errors import TaskpoolError
from taskpool.model import Codec, TaskError
from taskpool.wire.codec import decode_result
from taskpool.wire.messages import Outcome, Replied


class Response:
    """How a task ended. seq: its number in the mailbox; attempts: the number of its last attempt; error: None for a success."""

    __slots__ = ("_replied", "attempts", "completed_at", "error", "mailbox", "name", "seq", "status", "task_id")

    def __init__(self, replied: Replied) -> None:
        self._replied = replied
        self.seq: int = replied.seq
        self.mailbox: str = replied.mailbox
        self.task_id: int = replied.task_id
        self.name: str = replied.name
        self.status: str = replied.status
        self.attempts: int = replied.attempts
        self.error: TaskError | None = replied.error
        self.completed_at: datetime = datetime.fromtimestamp(replied.completed_at / 1e6, UTC)

    @property
    def result(self) -> Any:
        """Return what the task returned, decoded at each call; None if it did not succeed. TaskpoolError if it cannot be read."""
        replied = self._replied
        if replied.status != "succeeded":
            return None
        description = None
        if replied.codec == Codec.MSGPACK:
            from taskpool.core.registry import default_registry

            try:
                description = default_registry.resolve(replied.name)
            except TaskpoolError:
                pass  # without the handler's module: as msgpack has it
        return decode_result(replied.codec, replied.value, description)

    def value(self) -> Any:
        """Return the result, or raise what `future.result()` would."""
        if self.status == "succeeded":
            return self.result
        from taskpool.doors.future import exception_of

        replied = self._replied
        raise exception_of(Outcome(self.task_id, self.status, self.attempts, replied.codec, None, self.error, replied.completed_at))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq} of {self.mailbox!r}: task {self.task_id} {self.status}>"
