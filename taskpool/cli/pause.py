"""`taskpool pause [QUEUE…]`: start nothing more of queues."""

from __future__ import annotations

import click

from taskpool.cli.exits import Exit
from taskpool.cli.queues import change_pause
from taskpool.cli.session import Session
from taskpool.cli.verb import verb


@verb(
    "pause",
    exits=[Exit.NO_SERVER, Exit.REFUSED],
    examples=[("taskpool pause reports", "its tasks wait; those that run go on"), ("taskpool pause", "all queues there are")],
)
@click.argument("queues", nargs=-1, metavar="[QUEUE…]")
@click.pass_obj
def command(session: Session, queues: tuple[str, ...]) -> int:
    """Start no more tasks of these queues (none named: of all there are) until they are resumed, also by later owners.

    A queue that nobody has registered, and that has had no task yet, is paused for its first; a remark says that it is new.
    """
    return change_pause(session, queues, paused=True)
