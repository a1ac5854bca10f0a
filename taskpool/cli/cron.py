"""`taskpool cron [ACTION]`: the schedules of a pool."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from taskpool.cli.documents import schedule_doc, task_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import CliError, Exit, exit_of_task
from taskpool.cli.follow import say_end
from taskpool.cli.output import console
from taskpool.cli.quantity import local_time, rfc3339
from taskpool.cli.session import Session
from taskpool.cli.shapes import CronDoc, CronDoneDoc, CronNextDoc, PlannedDoc
from taskpool.cli.verb import verb
from taskpool.model import Schedule

ACTIONS = ("ls", "next", "run", "pause", "resume", "cancel")
NEXT_MAX = 10_000
HISTORY = 8  # occurrences of a schedule that ls shows


@verb(
    "cron",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED],
    examples=[
        ("taskpool cron", "the schedules: in words, their next time, what became of the last ones"),
        ("taskpool cron next 5", "the next 5 planned times of all of them"),
        ("taskpool cron next 3 nightly", "of one"),
        ("taskpool cron run nightly --wait", "now, beside its times; the exit status is the task's"),
        ("taskpool cron pause nightly", "until `cron resume nightly`"),
    ],
)
@click.argument("words", nargs=-1, metavar="[ls|next [N]|run|pause|resume|cancel] [NAME]...")
@click.option("--wait", is_flag=True, help="With run: wait for the end of the task; the exit status is the task's.")
@click.pass_obj
def command(session: Session, words: tuple[str, ...], wait: bool) -> int:
    """Look at the cron schedules of a pool (needs no server), or change them: run now, pause, resume, cancel (delete).

    In the table of ls, ✓ is an occurrence that fired, · one that was skipped, and … one that waits behind its forerunner.
    """
    action, names = (words[0], words[1:]) if words else ("ls", ())
    if action not in ACTIONS:
        raise click.UsageError(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")
    if wait and action != "run":
        raise click.UsageError("--wait goes with run")
    if action == "ls":
        return _ls(session, names)
    if action == "next":
        count = 1
        if names and names[0].isdecimal():
            count, names = min(int(names[0][:9]), NEXT_MAX), names[1:]
            if not count:
                raise click.UsageError("next how many? 1 at least")
        return _next(session, names, count)
    if not names:
        raise click.UsageError(f"{action} which? name schedules; `taskpool cron ls` lists them")
    if action == "run":
        return _run(session, names, wait=wait)
    return _change(session, action, names)


def _read(session: Session, names: Sequence[str]) -> list[tuple[Schedule, list[str]]]:
    """Return the schedules of these names, or all, with the outcomes of their latest occurrences, oldest first."""
    with session.reader() as reader:
        schedules = {schedule.name: schedule for schedule in reader.schedules()}
        for name in names:
            if name not in schedules:
                raise CliError(f"there is no schedule {name!r} in {reader.path}", Exit.NOT_FOUND, "not_found")
        wanted = [schedules[name] for name in names] if names else list(schedules.values())
        return [(one, [each.outcome for each in reader.occurrences(one.name, HISTORY)][::-1]) for one in wanted]


def _ls(session: Session, names: Sequence[str]) -> int:
    found = _read(session, names)
    if session.json:
        session.show(CronDoc([schedule_doc(schedule, latest) for schedule, latest in found]))
        return Exit.OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("NAME", "WHEN", "CALLS", "NEXT", "TOTAL", "FAILED", "LATEST"):
        table.add_column(name, justify="right" if name in ("TOTAL", "FAILED") else "left", no_wrap=name != "WHEN")
    for schedule, latest in found:
        table.add_row(
            one_line(schedule.name, 60),
            one_line(schedule.sentence),
            one_line(schedule.call, 60),
            "paused" if schedule.paused else local_time(schedule.next_at) or "never",
            f"{schedule.total:,}",
            f"{schedule.err_count:,}",
            "".join({"fired": "✓", "queued": "…"}.get(outcome, "·") for outcome in latest),
        )
    console(session.color, sys.stdout).print(table)
    return Exit.OK


def _next(session: Session, names: Sequence[str], count: int) -> int:
    now = time.time_ns() // 1000
    planned = [
        (at, schedule)
        for schedule, _ in _read(session, names)
        if not schedule.paused
        for at in schedule.next_times(count, max(now, (schedule.next_at or now) - 1))
    ]
    planned = sorted(planned, key=lambda one: (one[0], one[1].name))[:count]
    if session.json:
        session.show(CronNextDoc([PlannedDoc(schedule.name, rfc3339(at) or "") for at, schedule in planned]))
        return Exit.OK
    for at, schedule in planned:
        session.say(f"{local_time(at)}  {one_line(schedule.name)}")
    return Exit.OK


def _run(session: Session, names: Sequence[str], *, wait: bool) -> int:
    code = Exit.OK
    with session.client() as client:
        for name in names:
            task_id = client.run_cron(name).id
            if not wait:
                _done(session, CronDoneDoc("run", name, task_id), f"{one_line(name)}: task {task_id}")
                continue
            task = client.wait(task_id)
            if session.json:
                session.show(task_doc(task))
            else:
                say_end(session, task)
            code = max(code, exit_of_task(task.status, task.error.kind if task.error else None))
    return code


def _change(session: Session, action: str, names: Sequence[str]) -> int:
    done = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}[action]
    with session.client() as client:
        change = {"pause": client.pause_cron, "resume": client.resume_cron, "cancel": client.cancel_cron}[action]
        for name in names:
            change(name)
            _done(session, CronDoneDoc(action, name), f"{done} {one_line(name)}")
    return Exit.OK


def _done(session: Session, document: CronDoneDoc, words: str) -> None:
    if session.json:
        session.show(document)
    else:
        session.say(words)
