"""`taskpool show TASK`: all that is known of one task."""

from __future__ import annotations

import signal as signals
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from taskpool.cli.documents import attempt_doc, task_doc
from taskpool.cli.escape import many_lines, one_line
from taskpool.cli.exits import Exit
from taskpool.cli.labels import label
from taskpool.cli.ls import STYLES, progress_text
from taskpool.cli.output import console, write
from taskpool.cli.quantity import local_time, show_duration, show_size
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import ShowDoc
from taskpool.cli.verb import verb
from taskpool.model import Attempt, Task, TaskError

if TYPE_CHECKING:
    from rich.console import Console

CAUSES_SHOWN = 5
CHILDREN_MAX = 1_000  # that are read …
CHILDREN_SHOWN = 20  # … and shown to people


@verb(
    "show",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[("taskpool show 42", "attempts, times, error"), ("taskpool show last --json", "the same for programs")],
)
@tasks_argument(required=True)
@click.pass_obj
def command(session: Session, selection: Selection) -> int:
    """Show one task: where it stands, each attempt, and why it failed. Several are shown one after another (--json: one)."""
    with session.reader() as reader:
        ids = selection.resolve_ids(reader)
        if session.json and len(ids) != 1:
            raise click.UsageError(f"--json shows one task, not {len(ids)}; `taskpool ls --json` lists them")
        for place, task_id in enumerate(ids):
            task, attempts = reader.task(task_id), reader.attempts(task_id)
            children = reader.children(task_id, CHILDREN_MAX)
            if session.json:
                session.show(ShowDoc(task_doc(task), [attempt_doc(attempt) for attempt in attempts], children))
            else:
                if place:
                    write("")
                _print(console(session.color, sys.stdout), task, attempts, children, session.verbose)
    return Exit.OK


def _print(screen: Console, task: Task, attempts: list[Attempt], children: list[int], verbose: int) -> None:
    from rich.text import Text

    reason = task.wait_reason or task.finish_reason
    head = Text.assemble(
        (f"task {task.id}  ", "bold"),
        (task.status.value, STYLES[task.status]),
        f" ({one_line(reason)})" if reason else "",
        f"  {one_line(label(task), 200)}",
    )
    screen.print(head)
    for name, text in (*_facts(task), ("children", _named(children))):
        if text:
            screen.print(Text.assemble((f"  {name:<11}", "dim"), text))
    if task.error is not None:
        screen.print(Text("error", "bold red"))
        for line in error_lines(task.error, with_traceback=True):
            screen.print(Text(f"  {line}"))
    if attempts:
        _print_attempts(screen, attempts)
    told = task.error.traceback.strip() if task.error is not None else ""  # of a process that died, its stack
    for attempt in attempts if verbose else attempts[-1:]:
        for title, text in (("stack", attempt.stack), ("output", attempt.output)):
            if text and text.strip() != told:
                screen.print(Text(f"{title} of attempt {attempt.attempt}", "bold"))
                screen.print(Text("\n".join(f"  {line}" for line in many_lines(text.rstrip("\n")).split("\n"))))


def _named(children: list[int]) -> str:
    more = len(children) - CHILDREN_SHOWN
    many = f"{more}" if len(children) < CHILDREN_MAX else f"{more} or more"
    return ", ".join(map(str, children[:CHILDREN_SHOWN])) + (f", … ({many} further: taskpool ls --parent)" if more > 0 else "")


def _facts(task: Task) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of a task, name and text."""
    options = task.options
    yield "uid", task.uid
    yield "queue", one_line(task.queue) + (f", priority {task.priority}" if task.priority else "")
    yield "stored", local_time(task.created_at)
    yield "due", local_time(task.scheduled_at) if task.scheduled_at > task.created_at else ""
    yield "started", local_time(task.started_at)
    yield "finished", local_time(task.finished_at)
    yield "cancel", local_time(task.cancel_requested_at)
    limits = (("timeout", options.timeout_s), ("soft timeout", options.soft_timeout_s))
    yield "limits", ", ".join(f"{name} {show_duration(limit)}" for name, limit in limits if limit is not None)
    needs = (("cpus", f"{options.cpus:g}" if options.cpus else ""), ("memory", show_size(options.memory) if options.memory else ""))
    yield "needs", ", ".join(f"{name} {need}" for name, need in needs if need)
    yield "deadline", local_time(options.deadline_at)
    of = "unlimited" if task.max_attempts == 0 else str(task.max_attempts)
    counts = (("crashes", task.crashes), ("interruptions", task.interruptions), ("snoozes", task.snoozes), ("round", task.round))
    yield "attempts", f"{task.attempt}, {task.charged} of {of} charged" + "".join(f", {name} {n}" for name, n in counts if n)
    yield "progress", " ".join(filter(None, (progress_text(task), one_line(task.progress.text) if task.progress else "")))
    yield "schedule", one_line(task.recurrence or "")
    yield "batch", "" if task.batch is None else one_line(f"{task.batch}[{task.item}]")
    at_once = f", {options.key_limit} at once" if options.key_limit > 1 else ""
    passes = ", passed on retry" if options.key_on_retry == "yield" else ""
    yield "key", "" if task.key is None else f"{one_line(task.key)}{at_once}{passes}"
    yield "unique", one_line(task.unique or "")
    yield "tags", one_line(", ".join(options.tags))
    yield "owner", one_line(":".join(filter(None, (options.owner_type, options.owner_id))))
    yield "source", one_line(options.source)
    yield "reference", one_line(options.reference_id)
    yield "parent", "" if options.parent_id is None else str(options.parent_id)
    yield "reply to", one_line(options.reply_to)
    yield "target", one_line(options.target)


def error_lines(error: TaskError, *, with_traceback: bool = False) -> Iterator[str]:
    """Yield an error and what lies behind it, safe for a terminal."""
    shown: TaskError | None = error
    for depth in range(CAUSES_SHOWN):
        if shown is None:
            return
        yield ("" if depth == 0 else "because of ") + one_line(str(shown), 2000)
        facts = [
            f"signal {signal_name(shown.signal)}" if shown.signal is not None else "",
            f"exit code {shown.exit_code}" if shown.exit_code is not None else "",
            f"peak memory {show_size(shown.peak_rss_bytes)}" if shown.peak_rss_bytes else "",
        ]
        if any(facts):
            yield ", ".join(filter(None, facts))
        if with_traceback and shown.traceback:
            yield from many_lines(shown.traceback.rstrip("\n")).split("\n")
        shown = shown.cause


def signal_name(number: int) -> str:
    """Return SIGKILL for 9, and the number for one without a name."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return str(number)


def _print_attempts(screen: Console, attempts: list[Attempt]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ATTEMPT", "OUTCOME", "STARTED", "TIME", "CPU", "PEAK RSS", "WORKER", "PID", "ERROR"):
        table.add_column(name, justify="left" if name in ("OUTCOME", "STARTED", "ERROR") else "right", no_wrap=name != "ERROR")
    for attempt in attempts:
        table.add_row(
            str(attempt.attempt),
            one_line(attempt.outcome),
            local_time(attempt.started_at),
            show_duration(attempt.duration_s),
            show_duration(attempt.cpu_user_s + attempt.cpu_system_s),
            show_size(attempt.peak_rss_bytes) if attempt.peak_rss_bytes else "",
            str(attempt.worker_id),
            str(attempt.pid),
            "" if attempt.error is None else one_line(str(attempt.error), 200),
        )
    screen.print(table)
