"""`taskpool ls`: tasks, newest first, read from the file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from taskpool.cli.documents import task_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.labels import arguments, with_payloads
from taskpool.cli.output import console
from taskpool.cli.quantity import US, duration, seconds_between, show_duration
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import TasksDoc
from taskpool.cli.verb import verb
from taskpool.model import Task

STYLES = {
    "pending": "dim",
    "queued": "cyan",
    "running": "bold blue",
    "retrying": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "magenta",
    "interrupted": "red",
}
LABEL_WIDTH = 60

# Column → its text at a moment (µs).
COLUMNS: dict[str, Callable[[Task, int], str]] = {
    "id": lambda task, now: str(task.id),
    "status": lambda task, now: task.status.value,
    "name": lambda task, now: one_line(task.name, LABEL_WIDTH),
    "args": lambda task, now: one_line(arguments(task), LABEL_WIDTH),
    "queue": lambda task, now: one_line(task.queue, 30),
    "age": lambda task, now: show_duration((now - task.created_at) / US),
    "time": lambda task, now: show_duration(run_time(task, now)),
    "progress": lambda task, now: progress_text(task),
    "att": lambda task, now: f"{task.attempt}" if task.max_attempts in (0, 1) else f"{task.attempt}/{task.max_attempts}",
    "uid": lambda task, now: task.uid,
    "priority": lambda task, now: str(task.priority),
    "batch": lambda task, now: "" if task.batch is None else one_line(f"{task.batch}[{task.item}]", 40),
    "key": lambda task, now: one_line(task.key or "", 40),
    "unique": lambda task, now: one_line(task.unique or "", 40),
    "tags": lambda task, now: one_line(",".join(task.options.tags), 40),
    "owner": lambda task, now: one_line(":".join(filter(None, (task.options.owner_type, task.options.owner_id))), 40),
    "source": lambda task, now: one_line(task.options.source, 30),
    "reference": lambda task, now: one_line(task.options.reference_id, 40),
    "error": lambda task, now: "" if task.error is None else one_line(str(task.error), LABEL_WIDTH),
    "reason": lambda task, now: one_line(task.wait_reason or task.finish_reason or ""),
}
SHOWN = "id,status,name,args,queue,age,time,progress,att"
SHRINK = {
    "name",
    "args",
    "queue",
    "batch",
    "key",
    "unique",
    "tags",
    "owner",
    "source",
    "reference",
    "error",
    "reason",
}  # on a terminal that is too narrow for all
RIGHT = {"id", "age", "time", "progress", "att", "priority"}
SORTS: dict[str, Callable[[Task], float | str]] = {
    "id": lambda task: -task.id,
    "status": lambda task: task.status.value,
    "name": lambda task: task.name,
    "queue": lambda task: task.queue,
    "priority": lambda task: -task.priority,
    "time": lambda task: -(run_time(task, time.time_ns() // 1000) or 0.0),
}


def run_time(task: Task, now: int) -> float | None:
    """Return the seconds since the task's last start, until its end or now (µs)."""
    if task.started_at is None:
        return None
    return seconds_between(task.started_at, task.finished_at or (now if task.status == "running" else task.updated_at))


def progress_text(task: Task) -> str:
    """Return how far a task is: 42%, or 1,234 where its total is unknown."""
    if task.progress is None:
        return ""
    fraction = task.progress.fraction
    return f"{task.progress.done:,.0f}" if fraction is None else f"{fraction:.0%}"


@verb(
    "ls",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool ls", "the newest 20"),
        ("taskpool ls --status failed --since 2h", "what failed in the last two hours"),
        ("taskpool ls 40-57 --columns id,status,error", "chosen columns"),
        ("taskpool ls --json --limit 1000 | jq '.items[].id'", "for programs"),
    ],
)
@tasks_argument()
@click.option(
    "--sort", type=click.Choice(list(SORTS)), default="id", metavar="COLUMN", help=f"Order of the page: {', '.join(SORTS)}."
)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, metavar="N", help="At most N tasks.")
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Only tasks with a smaller id: the next page.")
@click.option("--columns", default=SHOWN, metavar="A,B,…", help=f"Columns to show, of {', '.join(COLUMNS)}.")
@click.option("--watch", is_flag=True, help="Show it anew every two seconds until Ctrl-C.")
@click.option("--every", type=duration, default="2s", metavar="DURATION", hidden=True)
@click.pass_obj
def command(
    session: Session, selection: Selection, sort: str, limit: int, before: int | None, columns: str, watch: bool, every: float
) -> int:
    """List tasks, newest first, from the file: a server is not needed."""
    names = [name.strip().lower() for name in columns.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise click.UsageError(f"there is no column {name!r}: choose from {', '.join(COLUMNS)}")
    with session.reader() as reader:
        while True:
            page = reader.tasks(selection.resolve(reader), limit + 1, before)
            tasks, more = with_payloads(reader, page[:limit]), len(page) > limit
            following = tasks[-1].id if more else None
            if sort != "id":
                tasks = sorted(tasks, key=SORTS[sort])
            if session.json:
                session.show(TasksDoc([task_doc(task, nested=True) for task in tasks], following))
            else:
                _print(session, tasks, names, following)
            if not watch:
                return Exit.OK
            time.sleep(every)


def _print(session: Session, tasks: list[Task], names: list[str], following: int | None) -> None:
    if not tasks:
        session.note("no tasks")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name.upper(), justify="right" if name in RIGHT else "left", no_wrap=name not in SHRINK)
    now = time.time_ns() // 1000
    for task in tasks:
        cells = [COLUMNS[name](task, now) for name in names]
        table.add_row(
            *(
                Text(cell, STYLES[task.status] if name == "status" else "", no_wrap=True, overflow="ellipsis")
                for name, cell in zip(names, cells, strict=True)
            )
        )
    console(session.color, sys.stdout).print(table)
    if following is not None:
        session.note(f"more: --before {following}")
