"""`taskpool status`: one screen of counts, workers and rate."""

from __future__ import annotations

import sys
import time

import click

from taskpool import errors
from taskpool.cli.documents import status_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.ls import STYLES
from taskpool.cli.output import console
from taskpool.cli.quantity import US, duration, show_duration
from taskpool.cli.session import Session
from taskpool.cli.shapes import StatusDoc, WorkerDoc
from taskpool.cli.verb import verb
from taskpool.model import Status

WAITING = ("pending", "queued", "retrying")


@verb(
    "status",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool status", "counts; with a live server workers and rate too"),
        ("taskpool status --watch", "anew every 2 s"),
    ],
)
@click.option("--watch", is_flag=True, help="Show it anew every two seconds until Ctrl-C (with --json: a line each time).")
@click.option("--every", type=duration, default="2s", metavar="DURATION", hidden=True)
@click.pass_obj
def command(session: Session, watch: bool, every: float) -> int:
    """Show a pool's numbers: from its server if one is there, else from the file."""
    while True:
        document = read_status(session)
        if session.json:
            session.show(document)
        else:
            _print(session, document)
        if not watch:
            return Exit.OK
        time.sleep(every)


def read_status(session: Session) -> StatusDoc:
    """Return the numbers from the server, or from the file alone. Raises CliError when there is neither."""
    try:
        with session.client() as client:
            stats = client.stats()
        return status_doc(stats, sum(stats.counts.get(status, 0) for status in WAITING))
    except errors.NoServer:
        if session.meant.startswith("unix:"):
            raise
    with session.reader() as reader:
        return StatusDoc(live=False, store=reader.path, counts=reader.counts())


def _print(session: Session, document: StatusDoc) -> None:
    from rich.text import Text

    screen = console(session.color, sys.stdout)
    screen.print(Text(one_line(document.store), "bold"))
    if document.live:
        facts = [
            f"server {document.pid}",
            f"up {show_duration(document.uptime_s)}",
            f"{document.finished or 0:,} finished in {document.attempts or 0:,} attempts",
            f"{document.rate:,.1f} tasks/s" if document.rate else "",
            f"about {show_duration(document.eta_s)} left" if document.eta_s else "",
            f"{document.restarts} workers replaced" if document.restarts else "",
        ]
        screen.print(Text("  " + ", ".join(filter(None, facts))))
    else:
        screen.print(Text("  no server; these are the numbers in the file", "dim"))
    for status in Status:
        count = document.counts.get(status.value, 0)
        if count or status.value in ("queued", "running", "succeeded", "failed"):
            screen.print(Text.assemble(f"  {count:>12,}  ", (status.value, STYLES[status.value])))
    if document.workers:
        _print_workers(session, document.workers)
    for notice in document.notices:
        screen.print(Text(f"  note: {one_line(notice)}", "yellow"))


def _print_workers(session: Session, workers: list[WorkerDoc]) -> None:
    from datetime import datetime

    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("WORKER", "PID", "STATE", "TASK", "NAME", "FOR", "DONE"):
        table.add_column(name, justify="left" if name in ("STATE", "NAME") else "right", no_wrap=True)
    now = time.time_ns() // 1000
    for worker in workers:
        since = None if worker.since is None else datetime.fromisoformat(worker.since).timestamp()
        table.add_row(
            str(worker.worker_id),
            str(worker.pid or ""),
            worker.state,
            str(worker.task_id or ""),
            one_line(worker.name, 50),
            "" if since is None else show_duration(max(0.0, now / US - since)),
            f"{worker.done:,}",
        )
    console(session.color, sys.stdout).print(table)
