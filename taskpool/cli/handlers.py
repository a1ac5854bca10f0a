"""`taskpool handlers`: what the server's modules registered."""

from __future__ import annotations

import sys

import click
import msgspec

from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.output import console
from taskpool.cli.session import Session
from taskpool.cli.verb import verb


class HandlerDoc(msgspec.Struct):
    """One handler. name: what tasks are submitted under; called: the name of its function; usage: its call with types."""

    name: str
    aliases: tuple[str, ...]
    called: str
    usage: str
    summary: str
    queue: str | None


class HandlersDoc(msgspec.Struct):
    """Handlers, by name."""

    items: list[HandlerDoc]
    schema: str = "taskpool.handlers/1"


@verb(
    "handlers",
    exits=[Exit.NO_SERVER],
    examples=[("taskpool handlers", "what can be submitted by name"), ("taskpool handlers --json", "the same for programs")],
)
@click.pass_obj
def command(session: Session) -> int:
    """Show the handlers that the server knows: how they are called, and where their tasks go."""
    with session.client() as client:
        known = client.handlers()
    docs = [
        HandlerDoc(name, info.aliases, info.canonical, info.usage, info.summary, info.said.queue if info.said else None)
        for name, info in known
    ]
    if session.json:
        session.show(HandlersDoc(docs))
        return Exit.OK
    if not docs:
        session.note("none is registered: functions are found by name (module:function)")
        return Exit.OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "CALLED AS", "QUEUE", "ALIASES", ""):
        table.add_column(column, no_wrap=column in ("NAME", "QUEUE"))
    for doc in docs:
        aliases = one_line(", ".join(doc.aliases), 60)
        queue = one_line(doc.queue or "", 40)
        table.add_row(one_line(doc.name, 60), one_line(doc.usage, 120), queue, aliases, one_line(doc.summary, 80))
    console(session.color, sys.stdout).print(table)
    return Exit.OK
