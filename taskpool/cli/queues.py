"""`taskpool queues`: the lines that tasks wait in."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterable, Sequence
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
from taskpool.core.queues import DEFAULT

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
    """Pause queues or let them go on, and show those that were meant. Of one that this has made it is said that it is new."""
    with session.client() as client:
        known = {state.name for state in client.queues()} if names and paused else set()
        states = _changed(client, names, paused=paused)
    new = {name for name in names if name not in known and name != DEFAULT} if paused else set()
    show_queues(session, states, new)
    for name in sorted(new):
        near = difflib.get_close_matches(name, known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        session.note(f"queue {name!r} is new: nobody has registered it, and it has had no task yet{meant}")
    return Exit.OK


def _changed(client: Client, names: Sequence[str], *, paused: bool) -> list[QueueState]:
    states = (client.pause if paused else client.resume)(*names)
    return [state for state in states if not names or state.name in names]


def show_queues(session: Session, states: Iterable[QueueState], new: Collection[str] = ()) -> None:
    """Print queues as a table, or as a document. new: those that were made now."""
    if session.json:
        session.show(QueuesDoc([queue_doc(state, new=state.name in new) for state in states]))
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
