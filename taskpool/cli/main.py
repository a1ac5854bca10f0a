"""The program: finds the verb, loads only that one, and turns what happens into an exit code and a sentence."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from taskpool import __version__
from taskpool.cli.exits import MEANING, Exit, exit_of
from taskpool.cli.session import Session
from taskpool.cli.verb import Verb, global_options
from taskpool.errors import TaskpoolError

# Each lives in a module of its own name and is loaded when it is used.
VERBS = {
    "serve": "Own a store: run its tasks until told to stop.",
    "run": "Run a function or command once per input, and take up again what was interrupted.",
    "submit": "Store one task.",
    "ls": "List tasks, newest first.",
    "status": "One screen: counts, workers, rate.",
    "show": "All that is known of one task: attempts, times, error.",
    "explain": "Say what a task waits for.",
    "result": "Print what a task returned.",
    "log": "Print what tasks printed.",
    "follow": "Watch a task until it ends; its exit status is yours.",
    "wait": "Wait for tasks to end.",
    "cancel": "Stop tasks, or keep them from starting.",
    "retry": "Give ended tasks another round.",
    "handlers": "Show what can be submitted by name.",
    "replies": "Show what lies in mailboxes, and take it out.",
    "events": "Show what happened to tasks, one transition after the other.",
    "queues": "Show the queues: limits, what waits, what runs.",
    "pause": "Start nothing more of queues.",
    "resume": "Let paused queues go on.",
    "cron": "List schedules; run, pause, resume them.",
    "flow": "List graphs of tasks, or show the steps of one.",
    "prune": "Delete what has ended and is not needed any more.",
    "help": "Say all about a verb.",
}


class Verbs(click.Group):
    """The table of verbs, each loaded from its module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order people meet them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Verb | None:
        """Load a verb; None if there is none of that name."""
        if cmd_name not in VERBS:
            return None
        found: Verb = importlib.import_module(f"taskpool.cli.{cmd_name}").command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one may have been meant."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"there is no verb {args[0]!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them, and the exit codes."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))
        with formatter.section("Exit status"):
            formatter.write_dl([(str(int(code)), text) for code, text in MEANING.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"taskpool {__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version.")
def program() -> None:
    """Run CPU-heavy tasks that survive: one SQLite file, one supervisor, many workers.

    Reading verbs (ls, show, explain, status, queues, replies, result, log) need no server. TASKS is 42, 40-57, 1,3,5-8, last, all,
    a uuid, or filters.
    """


program.params += global_options()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    session = Session()
    try:
        code = _run(args, session)
        sys.stdout.flush()
        return code
    except OSError as error:
        if error.errno in _FULL:
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
            _abandon(sys.stdout)
            return Exit.FAILED
        if error.errno != errno.EPIPE:
            raise
        _abandon(sys.stdout, sys.stderr)
        return Exit.CLOSED_STDOUT
    except KeyboardInterrupt:
        return Exit.CTRL_C


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _run(args: list[str], session: Session) -> int:
    try:
        with program.make_context("taskpool", list(args), obj=session) as ctx:
            outcome = program.invoke(ctx)
        return int(outcome) if isinstance(outcome, int) else Exit.OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return Exit.USAGE
    except click.exceptions.Abort:
        return Exit.CTRL_C
    except click.ClickException as error:
        return _complain(session, args, error.format_message(), Exit.USAGE, "usage", _usage_hint(error))
    except TaskpoolError as error:
        if detail := getattr(error, "detail", ""):
            from taskpool.cli.escape import many_lines

            print(many_lines(detail), file=sys.stderr)
        return _complain(session, args, error.message, exit_of(error), error.code, error.hint)


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"try '{ctx.command_path} -h'" if ctx is not None else "try 'taskpool -h'"


def _complain(session: Session, args: list[str], message: str, code: Exit, name: str, hint: str) -> int:
    """Say what went wrong: as a document on stdout with --json, else in words on stderr."""
    from taskpool.cli.escape import one_line

    # A usage error may come before --json was read.
    if session.json or "--json" in args[: args.index("--") if "--" in args else None]:
        session.show({"error": {"code": name, "message": message, "hint": hint}})
    else:
        print(f"error: {one_line(message)}", file=sys.stderr)
        if hint:
            print(f"hint: {one_line(hint)}", file=sys.stderr)
    return code


def _open_streams() -> None:
    """Let streams that the caller has closed be empty, or lead nowhere: nothing else may come to lie on their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    # What an encoding such as Latin-1 has no sign for is escaped, as stderr does it: a name ends no listing.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _abandon(*streams: Any) -> None:
    """Let the interpreter's last flush go nowhere: the reader has left (`| head`), which is no error, or cannot be told."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError, AttributeError):
            pass
