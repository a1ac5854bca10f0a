"""`taskpool queues`: the lines that tasks wait in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from taskpool.cli.documents import queue_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.output import console
from taskpool.cli.quantity import show_duration
from taskpool.cli.session import Session
from taskpool.cli.shapes import QueuesDoc
from taskpool.cli.verb import verb

if TYPE_CHECKING:
    from taskpool.doors.client import Client
    from taskpool.model import QueueState

WAITING = ("pending", "queued", "retrying")


@verb(
    "queues",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[("taskpool queues", "limits, and what waits and runs"), ("taskpool queues --json", "the same for programs")],
)
@click.pass_obj
def command(session: Session) -> int:
    """Show all queues: their limits, whether they are paused, how many tasks wait and run in each. Needs no server."""
    with session.reader() as reader:
        show_queues(session, reader.queues())
    return Exit.OK


def change_pause(session: Session, names: Sequence[str], *, paused: bool) -> int:
    """Pause queues or let them go on, and show those that were meant."""
    with session.client() as client:
        show_queues(session, _changed(client, names, paused=paused))
    return Exit.OK


def _changed(client: Client, names: Sequence[str], *, paused: bool) -> list[QueueState]:
    states = (client.pause if paused else client.resume)(*names)
    return [state for state in states if not names or state.name in names]


def show_queues(session: Session, states: Iterable[QueueState]) -> None:
    """Print queues as a table, or as a document."""
    if session.json:
        session.show(QueuesDoc([queue_doc(state) for state in states]))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("QUEUE", "STATE", "WAITING", "RUNNING", "LIMIT", "RATE", "BACKLOG", "RETRIES"):
        table.add_column(name, justify="left" if name in ("QUEUE", "STATE") else "right", no_wrap=True)
    for state in states:
        config = state.config
        retries = "" if config.max_retry is None else str(config.max_retry)
        if config.retry_delay is not None:
            retries += f" after {show_duration(config.retry_delay)}"
        table.add_row(
            one_line(state.name, 40),
            "paused" if state.paused else "open",
            f"{sum(state.counts.get(status, 0) for status in WAITING):,}",
            f"{state.counts.get('running', 0):,}",
            "" if config.concurrency is None else str(config.concurrency),
            "" if config.rate is None else f"{config.rate:g}/s",
            "" if config.max_backlog is None else str(config.max_backlog),
            retries.strip(),
        )
    console(session.color, sys.stdout).print(table)
