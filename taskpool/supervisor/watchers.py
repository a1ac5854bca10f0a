"""Who waits for the end of which task, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskpool.core.commands import End, Move
from taskpool.core.lifecycle import SUCCEEDED
from taskpool.store.store import Store
from taskpool.wire import messages as wire
from taskpool.wire.messages import Outcome, Settled

SETTLED_BYTES = 8 << 20  # results of one message; one result may be larger

Send = Callable[[int, wire.Answer], None]


class Watchers:
    """The clients that wait for tasks. send: what sends a client a message."""

    def __init__(self, store: Store, send: Send) -> None:
        self._store = store
        self._send = send
        self._clients: dict[int, tuple[int, ...]] = {}  # by task

    def of(self, task_id: int) -> tuple[int, ...]:
        """Return the clients that wait for a task."""
        return self._clients.get(task_id, ())

    def add_new(self, client: int, ids: Sequence[int]) -> None:
        """A client waits for tasks that it has just made."""
        clients, me = self._clients, (client,)
        for task_id in ids:
            clients[task_id] = me

    def add(self, client: int, ids: Sequence[int]) -> None:
        """A client waits for stored tasks; it is told at once of those that have ended."""
        done = self._store.outcomes(list(ids))
        ended = {outcome.id for outcome in done}
        for task_id in ids:
            clients = self.of(task_id)
            if task_id not in ended and client not in clients:
                self._clients[task_id] = (*clients, client)
        for part in _parts(done):
            self._send(client, Settled(part))

    def settle(self, ended: Sequence[End | Move]) -> None:
        """Tell all who wait that these tasks have ended: one message a client."""
        news: dict[int, list[Outcome]] = {}
        for command in ended:
            clients = self._clients.pop(command.id, None)
            if clients is None:
                continue
            outcome = _outcome(command)
            for client in clients:
                outcomes = news.get(client)
                if outcomes is None:
                    news[client] = [outcome]
                else:
                    outcomes.append(outcome)
        for client, outcomes in news.items():
            for part in _parts(outcomes):
                self._send(client, Settled(part))


def _parts(outcomes: list[Outcome]) -> list[list[Outcome]]:
    """Cut outcomes so that no message grows far beyond SETTLED_BYTES."""
    total = sum(len(outcome.value) for outcome in outcomes if outcome.value is not None)
    if total <= SETTLED_BYTES:
        return [outcomes] if outcomes else []
    parts: list[list[Outcome]] = [[]]
    size = 0
    for outcome in outcomes:
        length = len(outcome.value or b"")
        if parts[-1] and size + length > SETTLED_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(outcome)
        size += length
    return parts


def _outcome(command: End | Move) -> Outcome:
    if isinstance(command, End):
        report = command.report
        if command.to == SUCCEEDED and report is not None:
            return Outcome(command.id, command.to, command.closed.attempt, report.codec, report.value, None, command.at)
        return Outcome(command.id, command.to, command.closed.attempt, 1, None, command.error, command.at)
    return Outcome(command.id, command.to, command.attempt, 1, None, command.error, command.at)
