"""`taskpool explain TASK`: why a task stands where it stands."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.output import write
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import ExplainDoc, ReasonDoc
from taskpool.cli.verb import verb
from taskpool.core import waiting
from taskpool.errors import NoServer, PoolStopped
from taskpool.model import Explanation

if TYPE_CHECKING:
    from taskpool.doors.client import Client
    from taskpool.store.reading import Reader


@verb(
    "explain",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[("taskpool explain 42", "what it waits for"), ("taskpool explain last --json", "the reasons for programs")],
)
@tasks_argument(required=True)
@click.pass_obj
def command(session: Session, selection: Selection) -> int:
    """Say why tasks stand where they stand: a sentence each, then what else they wait for (--json: one task)."""
    with session.reader() as reader, ExitStack() as stack:
        ids = selection.resolve_ids(reader)
        if session.json and len(ids) != 1:
            raise click.UsageError(f"--json explains one task, not {len(ids)}")
        client = _client(session, stack)
        for task_id in ids:
            _show(session, _explained(task_id, reader, client))
    return Exit.OK


def _client(session: Session, stack: ExitStack) -> Client | None:
    """Return who can ask the server, None if nobody serves the store."""
    try:
        return stack.enter_context(session.client())
    except NoServer:
        return None


def _explained(task_id: int, reader: Reader, client: Client | None) -> Explanation:
    """Return what the server says, which knows its workers and handlers; without one what the file says."""
    if client is not None:
        try:
            return client.explain(task_id)
        except PoolStopped:
            pass  # it went away meanwhile
    found = reader.explain(task_id, time.time_ns() // 1000)
    return waiting.without_server(found) if found.is_live else found


def _show(session: Session, found: Explanation) -> None:
    if session.json:
        reasons = [ReasonDoc(reason.code, reason.detail) for reason in found.reasons]
        session.show(ExplainDoc(found.id, found.status, found.sentence, reasons))
        return
    write(one_line(found.sentence, 400))
    for reason in found.reasons[1:]:
        write(f"  also {one_line(reason.detail, 400)}")
