"""`taskpool follow [TASK]`: what a task prints and how far it is, until it ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli.documents import end_doc, progress_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit, exit_of_task, exit_of_tasks
from taskpool.cli.following import Ended, Line, follow_live
from taskpool.cli.labels import label
from taskpool.cli.log import LinePrinter, stored_lines
from taskpool.cli.output import console, stream_is_terminal, write
from taskpool.cli.quantity import show_duration
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import ProgressLine
from taskpool.cli.show import error_lines
from taskpool.cli.verb import verb
from taskpool.model import Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


@verb(
    "follow",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED],
    examples=[("taskpool follow 42", "its output and progress"), ("taskpool follow", "the same of the newest task")],
)
@tasks_argument()
@click.pass_obj
def command(session: Session, selection: Selection) -> int:
    """Print what a task (the newest, if none is named) prints, show its progress, and end as it ends: 0, 1, 7 or 8."""
    if selection.empty:
        selection = Selection(last=True)
    with session.reader() as reader:
        ids = selection.resolve_ids(reader)
        tasks = {task_id: reader.task(task_id) for task_id in ids}
        printer = LinePrinter(session, several=len(ids) > 1)
        for task_id in ids:
            for line in stored_lines(task_id, reader.attempts(task_id)):
                printer.show(line)
    live = [task_id for task_id, task in tasks.items() if not task.status.is_terminal]
    if live:
        with session.client() as client, ProgressBars(session) as bars:
            for event in follow_live(client, live):
                if isinstance(event, Line):
                    printer.show(event)
                elif isinstance(event, Ended):
                    tasks[event.task.id] = event.task
                else:
                    bars.show(tasks[event.task_id], event.progress)
    for task in tasks.values():
        say_end(session, task)
    return exit_of_tasks(exit_of_task(task.status, task.error.kind if task.error else None) for task in tasks.values())


def say_end(session: Session, task: Task) -> None:
    """Say how a task ended: a document, or a line on stderr (its output has stdout)."""
    if session.json:
        session.show(end_doc(task))
        return
    took = "" if task.started_at is None or task.finished_at is None else show_duration((task.finished_at - task.started_at) / 1e6)
    session.note(f"{task.status.value} {task.id} {one_line(label(task), 200)}" + (f" in {took}" if took else ""))
    if task.error is not None and task.status != "succeeded":
        for line in error_lines(task.error):
            write(f"  {line}", sys.stderr)


class ProgressBars:
    """A bar for each task that says how far it is: on a terminal; as documents with --json; else nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bars: Bars | None = None
        self._rows: dict[int, Any] = {}

    def __enter__(self) -> ProgressBars:
        if not self._session.json and not self._session.quiet and stream_is_terminal(sys.stderr):
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console(self._session.color, sys.stderr),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, task: Task, progress: Progress) -> None:
        """Show how far a task is."""
        if self._session.json:
            shown = progress_doc(progress)
            assert shown is not None
            self._session.show(ProgressLine(task.id, shown))
        elif self._bars is not None:
            if task.id not in self._rows:
                self._rows[task.id] = self._bars.add_task("")
            text = one_line(f"{task.id} {task.name} {progress.text}", 60)
            self._bars.update(self._rows[task.id], description=text, completed=progress.done, total=progress.total or None)
