"""`taskpool resume [QUEUE…]`: let paused queues go on."""

from __future__ import annotations

import click

from taskpool.cli.exits import Exit
from taskpool.cli.queues import change_pause
from taskpool.cli.session import Session
from taskpool.cli.verb import verb


@verb(
    "resume",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[("taskpool resume reports", "start its tasks again"), ("taskpool resume", "all queues")],
)
@click.argument("queues", nargs=-1, metavar="[QUEUE…]")
@click.pass_obj
def command(session: Session, queues: tuple[str, ...]) -> int:
    """Let paused queues go on (none named: all of them)."""
    return change_pause(session, queues, paused=False)
