"""Handing in tasks that a Client's own methods do not make: by a handler's name alone, or as named items of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskpool.doors.naming import names
from taskpool.doors.options import Said
from taskpool.doors.outbox import Bundle

if TYPE_CHECKING:
    from taskpool.doors.client import Client
    from taskpool.doors.future import TaskFuture
    from taskpool.model import StepSpec
    from taskpool.wire.description import Description

BULK_TASKS = 512  # tasks of one message
BULK_BYTES = 8 << 20


class Handed(NamedTuple):
    """One task: who runs it with what, and what was said of it.

    batch and item: its permanent identity, if it has one; step: what it waits for; call: its (args, kwargs), for keys that are
    computed of them.
    """

    name: str
    codec: int
    payload: bytes
    said: Said
    description: Description | None = None
    batch: str | None = None
    item: int | None = None
    step: StepSpec | None = None
    call: tuple[Sequence[Any], Mapping[str, Any]] = ((), {})


def hand_in(client: Client, tasks: Iterable[Handed], *, fresh: bool = False) -> list[TaskFuture[Any]]:
    """Hand in tasks and return their futures once all are durable. fresh: forget the batch's items of before.

    Raises what the supervisor refuses one of them with.
    """
    link = client._link
    bundles: list[Bundle] = []
    futures: list[TaskFuture[Any]] = []
    for name, codec, payload, said, description, batch, item, step, call in tasks:
        if not bundles or len(bundles[-1].tasks) >= BULK_TASKS or bundles[-1].bytes > BULK_BYTES:
            bundles.append(Bundle(link, fresh=fresh and not bundles))
        options, at = said.packed()
        key, unique = names(said.names_of, *call, depends=step is not None)
        if batch is not None:
            unique = None  # its place in the batch is what it is known by
        sent = (name, codec, payload, options, said.queue, said.priority, at, description)
        futures.append(link.put(bundles[-1], *sent, batch, item, step, key, unique))
    for bundle in bundles:
        link.send(bundle)
    for bundle in bundles:
        bundle.wait()
    for future in futures:
        if not future._id and future._exception is not None:
            raise future._exception
    return futures
