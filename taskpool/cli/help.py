"""`taskpool help [VERB]`: the long help."""

from __future__ import annotations

import click

from taskpool.cli.exits import Exit
from taskpool.cli.verb import Verb, verb


@verb("help", examples=[("taskpool help run", "all about `run`")])
@click.argument("name", metavar="[VERB]", required=False)
@click.pass_context
def command(ctx: click.Context, name: str | None) -> int:
    """Say all about a verb: what it does, options, examples, exit status, environment, files."""
    program = ctx.parent
    assert program is not None
    if name is None:
        click.echo(program.get_help())
        return Exit.OK
    assert isinstance(program.command, click.Group)
    found = program.command.get_command(program, name)
    if not isinstance(found, Verb):
        raise click.UsageError(f"there is no verb {name!r}", program)
    with click.Context(found, info_name=name, parent=program) as inner:
        click.echo(found.long_help(inner))
    return Exit.OK
