"""`taskpool retry TASKS`: another round for what ended."""

from __future__ import annotations

import click

from taskpool.cli.bulk import change
from taskpool.cli.exits import Exit
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.verb import verb

ENDED_BADLY = ("failed", "cancelled", "interrupted")


@verb(
    "retry",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool retry 42", "once more, with all its attempts"),
        ("taskpool retry --failed --since 1d", "all that failed since yesterday"),
        ("taskpool retry --error truncated", "after a fix: all of one kind"),
    ],
)
@tasks_argument()
@click.option("--failed", is_flag=True, help="Those that failed.")
@click.option("--force", is_flag=True, help="Those that succeeded too.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, however many they are.")
@click.pass_obj
def command(session: Session, selection: Selection, failed: bool, force: bool, dry_run: bool, yes: bool) -> int:
    """Give ended tasks another round: their attempts count anew, their history is kept."""
    if failed:
        selection = selection.narrowed(statuses=("failed",))
    if selection.empty:
        raise click.UsageError("name tasks (42, 40-57, last, all, a uuid), say --failed, or use a filter")
    if not selection.named and not selection.filter.statuses:
        selection = selection.narrowed(statuses=(*ENDED_BADLY, "succeeded") if force else ENDED_BADLY)
    return change(
        session,
        selection,
        "retry",
        lambda client, wanted: client.retry(wanted, force=force),
        ("another round for", "not possible for"),
        dry_run=dry_run,
        yes=yes,
    )
