"""Who runs tasks of which name, and where their answers lie: the part of a Client that speaks of handlers and mailboxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskpool.doors.option_checks import DURATION_S_MAX
from taskpool.doors.submitter import Submitter
from taskpool.errors import InvalidTask
from taskpool.wire import messages as wire
from taskpool.wire.zygote import HandlerInfo

if TYPE_CHECKING:
    from taskpool.doors.mailbox import Response


class Answering(Submitter):
    """Looks up and binds handlers, reads mailboxes."""

    def handlers(self) -> Sequence[tuple[str, HandlerInfo]]:
        """Return (name, what is known of it) of the handlers that the pool's modules registered or somebody bound, by name."""
        return self._link.request(wire.GetHandlers).handlers or ()

    def register_handler(self, queue: str, type: str, handler: Callable[..., Any] | str, /) -> None:
        """Let a handler (a function with @task, a handler object, or its name) run the tasks of that type in that queue.

        It holds until the pool ends; a module says it for good by `@task(queue=…, type=…)`. The same again changes nothing. Raises
        QueueNotRegistered, InvalidTaskType, HandlerNotFound, InvalidHandler, DuplicateHandler if another handler has that type.
        """
        from taskpool.doors.named import name_of

        name = name_of(handler)
        self._link.request(lambda seq: wire.BindHandler(seq, queue, type, name))

    def replies(self, mailbox: str, /, *, limit: int = 100, after: int = 0, wait: float | None = 0.0) -> Sequence[Response]:
        """Return responses that lie in a mailbox (see the option reply_to), oldest first; they stay until they are acknowledged.

        after: only those with a higher `seq`; wait: seconds until there is one (None: as long as it takes). At most 1,000.
        """
        from taskpool.doors.mailbox import Response

        seconds: Any = wait
        if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds <= DURATION_S_MAX):
            raise InvalidTask(f"wait must be a number of seconds, or None: {seconds!r:.120}")
        try:
            reply = self._link.request(lambda seq: wire.GetReplies(seq, mailbox, after, limit, wait != 0), wait or None)
        except TimeoutError:
            return []
        return [Response(replied) for replied in reply.replies or ()]

    def mailboxes(self) -> dict[str, int]:
        """Return the mailboxes in which responses lie, and how many."""
        return self._link.request(lambda seq: wire.GetReplies(seq, None)).mailboxes or {}

    def acknowledge(self, mailbox: str, responses: Iterable[Response | int], /) -> int:
        """Take responses (or those of these numbers) out of a mailbox for good. Return how many of them were in it."""
        seqs = [one if isinstance(one, int) else one.seq for one in responses]
        return len(self._link.request(lambda seq: wire.Acknowledge(seq, mailbox, seqs)).ids or ())
