"""What every verb has in common: global options that may stand before or after it, a short `-h` and a long `help VERB`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from taskpool.cli.exits import MEANING, Exit
from taskpool.cli.session import Session

ENVIRONMENT = (
    ("TASKPOOL_POOL", "the pool that is meant without -C: a path, a name, or unix:SOCKET"),
    ("TASKPOOL_DB", "the store that is meant without both"),
    ("NO_COLOR, FORCE_COLOR, TERM=dumb", "colour of tables and progress, unless --color says otherwise"),
)
FILES = (
    ("$XDG_DATA_HOME/taskpool/NAME.db", "the store called NAME; `default` without -C"),
    ("STORE.d/", "beside each store: its control socket, logs and lock"),
)


def _note(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that keeps a global option on the session; one that was not given leaves it as it is."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False and value != 0:
            setattr(ctx.ensure_object(Session), field, value)

    return keep


def global_options() -> list[click.Parameter]:
    """Return fresh copies of the options that every verb and the program itself take."""
    color = click.Choice(["auto", "always", "never"])
    return [
        click.Option(
            ["-C", "--pool"],
            metavar="POOL",
            expose_value=False,
            callback=_note("pool"),
            help="Path, name or unix:SOCKET of the pool.",
        ),
        click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_note("json"), help="One JSON document, or lines of them."
        ),
        click.Option(["--color"], type=color, expose_value=False, callback=_note("color"), help="When to colour.", metavar="WHEN"),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_note("quiet"), help="Only what was asked for."),
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_note("verbose"), help="Say more."),
    ]


class Verb(click.Command):
    """One verb. examples: (command, what it does); exits: the codes it can end with beyond 0, 2 and 130."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), exits: Sequence[Exit] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.params += global_options()
        self.examples = examples
        self.exits = exits

    def long_help(self, ctx: click.Context) -> str:
        """Return all there is to say: the short help, then EXAMPLES, EXIT STATUS, ENVIRONMENT and FILES."""
        formatter = ctx.make_formatter()
        self.format_help(ctx, formatter)
        codes = sorted({Exit.OK, Exit.USAGE, *self.exits, Exit.CTRL_C, Exit.CLOSED_STDOUT})
        for title, rows in (
            ("EXAMPLES", self.examples),
            ("EXIT STATUS", [(str(int(code)), MEANING[code]) for code in codes]),
            ("ENVIRONMENT", ENVIRONMENT),
            ("FILES", FILES),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(list(rows))
        return formatter.getvalue().rstrip("\n")


def verb(
    name: str, *, examples: Sequence[tuple[str, str]] = (), exits: Sequence[Exit] = (), cls: type[Verb] = Verb
) -> Callable[[Callable[..., Any]], Verb]:
    """Return the decorator that makes a verb of a function; the function's docstring is its help."""
    return click.command(name, cls=cls, examples=examples, exits=exits)
