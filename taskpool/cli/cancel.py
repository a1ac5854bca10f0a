"""`taskpool cancel TASKS`: stop what runs, and keep what waits from starting."""

from __future__ import annotations

import click

from taskpool.cli.bulk import change
from taskpool.cli.exits import Exit
from taskpool.cli.quantity import duration
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.verb import verb
from taskpool.model import Status

LIVE = tuple(status.value for status in Status if not status.is_terminal)


@verb(
    "cancel",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool cancel 42", "raise Cancelled in it; kill it 5 s later if it does not stop"),
        ("taskpool cancel --name jobs:price --dry-run", "how many that would be"),
        ("taskpool cancel all -y --now", "kill everything at once, and start nothing that waits"),
    ],
)
@tasks_argument(required=True)
@click.option("--grace", type=duration, metavar="DURATION", help="From the request to the kill (default: the pool's, 5s).")
@click.option("--now", is_flag=True, help="Kill at once.")
@click.option("--reason", default="", metavar="TEXT", help="Kept with the task.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, however many they are.")
@click.pass_obj
def command(session: Session, selection: Selection, grace: float | None, now: bool, reason: str, dry_run: bool, yes: bool) -> int:
    """Cancel tasks, also running ones. Those that have ended already stay as they are."""
    if not selection.named and not selection.filter.statuses:
        selection = selection.narrowed(statuses=LIVE)
    return change(
        session,
        selection,
        "cancel",
        lambda client, wanted: client.cancel(wanted, reason=reason, grace=grace, force=now),
        ("cancelled", "already finished"),
        dry_run=dry_run,
        yes=yes,
    )
