"""`taskpool explain TASK`: why a task stands where it stands."""

from __future__ import annotations

import time

import click

from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.output import write
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import ExplainDoc, ReasonDoc
from taskpool.cli.verb import verb
from taskpool.core import waiting
from taskpool.errors import NoServer
from taskpool.model import Explanation


@verb(
    "explain",
    exits=[Exit.NOT_FOUND, Exit.REFUSED],
    examples=[("taskpool explain 42", "what it waits for"), ("taskpool explain last --json", "the reasons for programs")],
)
@tasks_argument(required=True)
@click.pass_obj
def command(session: Session, selection: Selection) -> int:
    """Say why tasks stand where they stand: a sentence each, then what else they wait for (--json: one task)."""
    served = _is_served(session)
    with session.reader() as reader:
        ids = selection.resolve_ids(reader)
        if session.json and len(ids) != 1:
            raise click.UsageError(f"--json explains one task, not {len(ids)}")
        for task_id in ids:
            found = reader.explain(task_id, time.time_ns() // 1000)
            _show(session, found if served or not found.is_live else waiting.without_server(found))
    return Exit.OK


def _is_served(session: Session) -> bool:
    try:
        with session.client():
            return True
    except NoServer:
        return False


def _show(session: Session, found: Explanation) -> None:
    if session.json:
        reasons = [ReasonDoc(reason.code, reason.detail) for reason in found.reasons]
        session.show(ExplainDoc(found.id, found.status, found.sentence, reasons))
        return
    write(one_line(found.sentence, 400))
    for reason in found.reasons[1:]:
        write(f"  also {one_line(reason.detail, 400)}")
