"""`taskpool result TASK`: what a task returned."""

from __future__ import annotations

import sys

import click

from taskpool.cli import values
from taskpool.cli.documents import error_doc
from taskpool.cli.escape import many_lines, one_line
from taskpool.cli.exits import CliError, Exit, exit_of_task
from taskpool.cli.output import stream_is_terminal, write
from taskpool.cli.select import Selection, tasks_argument
from taskpool.cli.session import Session
from taskpool.cli.shapes import ResultDoc
from taskpool.cli.show import error_lines
from taskpool.cli.verb import verb
from taskpool.model import Task


@verb(
    "result",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED],
    examples=[
        ("taskpool result 42", "the value, as Python shows it; bytes and text as they are"),
        ("taskpool result last -o out.png", "bytes into a file"),
        ("taskpool result 42 --json | jq .value", "for programs"),
    ],
)
@tasks_argument(required=True)
@click.option("-o", "--output", metavar="FILE", help="Write to FILE: bytes and text as they are, else JSON, else a pickle.")
@click.option("--raw", is_flag=True, help="The stored bytes, not decoded (with -o).")
@click.pass_obj
def command(session: Session, selection: Selection, output: str | None, raw: bool) -> int:
    """Print what a task returned. The value is rebuilt here, so read only stores you trust as you trust a program."""
    if raw and output is None:
        raise click.UsageError("--raw needs -o FILE")
    with session.reader() as reader:
        ids = selection.resolve_ids(reader)
        if len(ids) != 1:
            raise click.UsageError(f"a result is that of one task, not of {len(ids)}")
        task = reader.task(ids[0])
    if not task.status.is_terminal:
        hint = f"`taskpool wait {task.id}` waits for its end"
        raise CliError(f"task {task.id} is {task.status}: it has no result yet", Exit.REFUSED, "not_finished", hint)
    if task.status != "succeeded":
        return _print_failure(session, task)
    if raw:
        _write_file(str(output), task.result or b"")
        return Exit.OK
    value = values.decode(task.id, task.result_codec, task.result)
    if output is not None:
        data, form = values.to_bytes(value)
        _write_file(output, data)
        session.note(f"wrote {len(data):,} bytes of {form} to {one_line(output)}")
    elif session.json:
        seen = values.shown(value)
        session.show(ResultDoc(task.id, task.uid, task.status.value, seen.type, seen.json, seen.repr, None, seen.text))
    else:
        _print_value(value)
    return Exit.OK


def _print_failure(session: Session, task: Task) -> int:
    if session.json:
        session.show(ResultDoc(task.id, task.uid, task.status.value, None, None, None, error_doc(task.error)))
    else:
        write(f"task {task.id} {task.status}, so it has no result", sys.stderr)
        for line in error_lines(task.error) if task.error else ():
            write(f"  {line}", sys.stderr)
    return exit_of_task(task.status, task.error.kind if task.error else None)


def _print_value(value: object) -> None:
    """Print bytes and text as they are (escaped on a terminal), anything else as Python shows it."""
    terminal = stream_is_terminal(sys.stdout)
    if isinstance(value, bytes):
        if not terminal:
            sys.stdout.flush()
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
            return
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        if terminal:
            write(many_lines(value).rstrip("\n"))
        else:
            sys.stdout.buffer.write(value.encode("utf-8", "surrogateescape") + b"\n")
            sys.stdout.buffer.flush()
    else:
        write(many_lines(values.shown(value).repr))


def _write_file(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}", Exit.REFUSED, "cannot_write") from error
