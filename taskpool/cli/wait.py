"""`taskpool wait TASKS`: until tasks end, or stand as is asked."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli.documents import end_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit, exit_of_task, exit_of_tasks
from taskpool.cli.labels import label
from taskpool.cli.output import write
from taskpool.cli.quantity import duration
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import WaitDoc
from taskpool.cli.verb import verb
from taskpool.errors import NoServer, PoolStopped
from taskpool.model import Status, Task

if TYPE_CHECKING:
    from taskpool.doors.client import Client

SHOWN_MAX = 10


@verb(
    "wait",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED, Exit.TIMED_OUT],
    examples=[
        ("taskpool wait 42", "until it ends; the exit status tells how"),
        ("taskpool wait 40-57 --any", "until the first of them ends"),
        ("taskpool wait --batch nightly --timeout 1h", "at most an hour: then exit status 124"),
        ("taskpool wait 42 --status running", "until it runs"),
    ],
)
@tasks_argument(required=True, without=("status",))
@click.option("--timeout", type=duration, metavar="DURATION", help="Give up after that long, with exit status 124.")
@click.option("--any", "any_one", is_flag=True, help="Until one of them ends, not all.")
@click.option(
    "--status", "wanted", type=click.Choice([s.value for s in Status]), metavar="STATUS", help="Until they have it, or ended."
)
@click.option(
    "--interval", type=duration, default="100ms", show_default=True, metavar="DURATION", help="With --status: between two looks."
)
@click.pass_obj
def command(
    session: Session, selection: Selection, timeout: float | None, any_one: bool, wanted: str | None, interval: float
) -> int:
    """Wait for tasks to end, and end as they did: 0, 1 (one failed), 7 (cancelled) or 8 (its process died)."""
    until = None if timeout is None else time.monotonic() + timeout
    with session.reader() as reader:
        tasks = {task_id: reader.task(task_id) for task_id in selection.resolve_ids(reader)}
        enough = _enough(tasks, wanted, any_one=any_one)
        if not enough() and wanted is None:
            with session.client() as client:
                _wait_for_ends(client, tasks, enough, until)
        elif not enough():
            with session.client():  # without a server nothing will change
                while not enough() and (until is None or time.monotonic() < until):
                    time.sleep(interval if until is None else max(0.0, min(interval, until - time.monotonic())))
                    tasks |= {task_id: reader.task(task_id) for task_id, task in tasks.items() if not task.status.is_terminal}
    complete = enough()
    _say(session, tasks, complete)
    if not complete:
        return Exit.TIMED_OUT
    ended = [task for task in tasks.values() if task.status.is_terminal]
    return exit_of_tasks(exit_of_task(task.status, task.error.kind if task.error else None) for task in ended)


def _enough(tasks: dict[int, Task], wanted: str | None, *, any_one: bool) -> Callable[[], bool]:
    """Return the test for whether there is nothing left to wait for."""
    join = any if any_one else all

    def enough() -> bool:
        return not tasks or join(task.status.is_terminal or task.status.value == wanted for task in tasks.values())

    return enough


def _wait_for_ends(client: Client, tasks: dict[int, Task], enough: Callable[[], bool], until: float | None) -> None:
    """Put tasks into the table as they end, until that is enough or the time is over."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task_id, task in tasks.items():
        if not task.status.is_terminal:
            client.future(task_id).add_done_callback(ended.put)
    while not enough():
        try:
            future = ended.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
        except queue.Empty:
            return
        if not future.cancelled() and isinstance(error := future.exception(), PoolStopped):
            raise NoServer(f"the server ended before the tasks did: {error.message}")
        tasks[future.id] = client.get(future.id)


def _say(session: Session, tasks: dict[int, Task], complete: bool) -> None:
    if session.json:
        session.show(WaitDoc([end_doc(task) for task in tasks.values()], complete))
        return
    counts: dict[str, int] = {}
    for task in tasks.values():
        counts[task.status.value] = counts.get(task.status.value, 0) + 1
    what = ", ".join(f"{count} {status}" for status, count in counts.items())
    session.say(("" if complete else "time is over: ") + (what or "no such tasks"))
    bad = [task for task in tasks.values() if task.error is not None and task.status.is_terminal and task.status != "succeeded"]
    for task in bad[:SHOWN_MAX]:
        write(f"  {task.id} {one_line(label(task), 80)}: {one_line(str(task.error), 300)}", sys.stderr)
    if len(bad) > SHOWN_MAX:
        write(f"  and {len(bad) - SHOWN_MAX} more", sys.stderr)
