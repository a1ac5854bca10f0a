"""`taskpool log TASKS`: what tasks printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click

from taskpool.cli.escape import many_lines
from taskpool.cli.exits import Exit
from taskpool.cli.following import Line, follow_live
from taskpool.cli.output import stream_is_terminal
from taskpool.cli.quantity import rfc3339
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import LogDoc
from taskpool.cli.verb import verb
from taskpool.errors import NoServer, PoolStopped
from taskpool.model import Attempt, Task


@verb(
    "log",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool log 42", "all that its attempts printed"),
        ("taskpool log last -n 20", "the last 20 lines"),
        ("taskpool log 42 -f", "and what it prints from now on, until it ends"),
    ],
)
@tasks_argument(required=True)
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Only the last N lines of each task.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on, until the tasks end.")
@click.option("--timestamps", is_flag=True, help="Put a time before each line: of its coming with -f, else of its attempt's start.")
@click.pass_obj
def command(session: Session, selection: Selection, lines: int | None, follow: bool, timestamps: bool) -> int:
    """Print what tasks printed, attempt after attempt; of each attempt the end is kept. Controls are escaped on a terminal."""
    with session.reader() as reader:
        ids = selection.resolve_ids(reader)
        several = len(ids) > 1
        printer = LinePrinter(session, several=several, timestamps=timestamps)
        running = [] if follow else [task for task_id in ids if (task := reader.task(task_id)).status == "running"]
        so_far = running_lines(session, running)
        for task_id in ids:
            attempts = reader.attempts(task_id)
            printed = list(stored_lines(task_id, attempts))
            ended = {attempt.attempt for attempt in attempts}
            printed += [line for line in so_far.get(task_id, ()) if line.attempt not in ended]
            for line in printed if lines is None else printed[len(printed) - min(lines, len(printed)) :]:
                printer.show(line)
        live = [task_id for task_id in ids if follow and not reader.task(task_id).status.is_terminal]
    if live:
        with session.client() as client:
            for event in follow_live(client, live):
                if isinstance(event, Line):
                    printer.show(event)
    return Exit.OK


def stored_lines(task_id: int, attempts: list[Attempt]) -> Iterator[Line]:
    """Yield what ended attempts printed, as far as it is kept."""
    for attempt in attempts:
        for text in attempt.output.splitlines():
            yield Line(task_id, attempt.attempt, text, attempt.started_at)


def running_lines(session: Session, tasks: list[Task]) -> dict[int, list[Line]]:
    """Return what running tasks have printed so far, by task; nothing if no server is there to ask."""
    if not tasks:
        return {}
    try:
        with session.client() as client:
            return {
                task.id: [Line(task.id, task.attempt, text, task.started_at) for text in client.output(task.id).splitlines()]
                for task in tasks
            }
    except (NoServer, PoolStopped):
        return {}


class LinePrinter:
    """Prints lines of output: as documents, or as they are with a prefix where several tasks speak."""

    def __init__(self, session: Session, *, several: bool, timestamps: bool = False) -> None:
        self._session = session
        self._several = several
        self._timestamps = timestamps
        self._terminal = stream_is_terminal(sys.stdout)

    def show(self, line: Line) -> None:
        """Print one line."""
        if self._session.json:
            self._session.show(LogDoc(line.task_id, line.attempt, line.text, rfc3339(line.at)))
            return
        at = line.at or time.time_ns() // 1000
        prefix = (f"{rfc3339(at)} " if self._timestamps else "") + (f"[{line.task_id}] " if self._several else "")
        text = many_lines(line.text) if self._terminal else line.text
        sys.stdout.write(f"{prefix}{text}\n")
        sys.stdout.flush()
