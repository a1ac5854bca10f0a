"""`taskpool prune`: delete what has ended and is not needed any more."""

from __future__ import annotations

import time

import click

from taskpool.cli.exits import CliError, Exit
from taskpool.cli.quantity import duration
from taskpool.cli.session import Session
from taskpool.cli.shapes import PruneDoc
from taskpool.cli.verb import verb
from taskpool.errors import NoServer
from taskpool.retention import ENDED


@verb(
    "prune",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool prune --dry-run", "what is older than it is kept: succeeded and cancelled 7 days, failed 30"),
        ("taskpool prune --older 1d --status succeeded", "what succeeded before yesterday"),
        ("taskpool -C old.db prune --older 0s", "all that has ended; needs no server"),
    ],
)
@click.option("--older", type=duration, metavar="DURATION", help="What ended longer ago than that (default: as the pool keeps it).")
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(ENDED),
    metavar="STATUS",
    help=f"Tasks that are {', '.join(ENDED)} (default: all; without --older interrupted ones stay).",
)
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@click.pass_obj
def command(session: Session, older: float | None, status: tuple[str, ...], dry_run: bool) -> int:
    """Delete ended tasks, their attempts, payloads and results; with a live server through it, else from the file.

    What others still need stays: parents of stored tasks, flows and batches that are not over, responses in mailboxes, and tasks
    with a retention of their own until that is over. The file does not shrink; its room is used again.
    """
    wanted = status or ENDED
    try:
        with session.client() as client:
            gone = client.prune(older, statuses=wanted, dry_run=dry_run)
    except NoServer:
        gone = _from_file(session, older, wanted, dry_run=dry_run)
    if session.json:
        session.show(PruneDoc(gone, dry_run))
    else:
        parts = ", ".join(f"{n:,} {name}" for name, n in sorted(gone.items()))
        session.say(f"{'would prune' if dry_run else 'pruned'} {sum(gone.values()):,}{f': {parts}' if parts else ''}")
    return Exit.OK


def _from_file(session: Session, older: float | None, statuses: tuple[str, ...], *, dry_run: bool) -> dict[str, int]:
    """Prune a store that nobody owns, as its owner for that long."""
    from taskpool.store.pruning import Walk, by_hand

    rule = by_hand(older, statuses, time.time_ns() // 1000)
    if dry_run:
        with session.reader() as reader:
            return reader.prunable(rule)
    from taskpool.store.store import Store

    path = session.store_path()
    if not path.exists():
        raise CliError(f"there is no store at {path}", Exit.NOT_FOUND, "no_store", "-C names another one")
    store = Store.open(path)
    try:
        walk = Walk(rule)
        while not walk.done:
            store.prune(walk)
            store.tidy()
    finally:
        store.close()
    return dict(walk.gone)
