"""What cancel and retry have in common: which tasks, are you sure, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import stream_is_terminal, write
from taskpool.cli.select import Selection
from taskpool.cli.session import Session
from taskpool.cli.shapes import BulkDoc
from taskpool.model import Filter

if TYPE_CHECKING:
    from taskpool.doors.client import Bulk, Client

ASK_ABOVE = 20  # so many tasks at once are confirmed by somebody who sits at a terminal


def change(
    session: Session,
    selection: Selection,
    verb: str,
    apply: Callable[[Client, Filter], Bulk],
    words: tuple[str, str],
    *,
    dry_run: bool,
    yes: bool,
) -> int:
    """Change the tasks that are meant, and say what came of it. words: for what was changed, and for what could not be.

    The tasks are looked up first, so that what was confirmed is what is changed, and no task that comes in between.
    """
    with session.client() as client:
        with session.reader() as reader:
            ids = selection.resolve_ids(reader)
        if dry_run:
            return report(session, BulkDoc(verb, ids, [], dry_run=True), words)
        if len(ids) > ASK_ABOVE and not yes:
            _confirm(verb, len(ids))
        changed, refused = apply(client, Filter(ids=tuple(ids))) if ids else ([], [])
    return report(session, BulkDoc(verb, sorted(changed), sorted(refused)), words)


def _confirm(verb: str, count: int) -> None:
    if not (stream_is_terminal(sys.stdin) and stream_is_terminal(sys.stderr)):
        return
    if not click.confirm(f"{verb} {count:,} tasks?", err=True):
        raise CliError(f"{count:,} tasks were left alone", Exit.REFUSED, "not_confirmed", "-y does not ask")


def report(session: Session, document: BulkDoc, words: tuple[str, str]) -> int:
    """Say what a verb did. Return 5 if it could do nothing of what was asked."""
    if session.json:
        session.show(document)
    elif document.dry_run:
        session.say(f"would {document.verb} {len(document.changed):,}: {_some(document.changed)}")
    else:
        parts = [f"{words[0]} {len(document.changed):,}"]
        if document.refused:
            parts.append(f"{words[1]} {len(document.refused):,}")
        session.say(", ".join(parts))
        if document.refused and session.verbose:
            write(f"{words[1]}: {_some(document.refused)}", sys.stderr)
    return Exit.REFUSED if document.refused and not document.changed else Exit.OK


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:ASK_ABOVE])) + (", …" if len(ids) > ASK_ABOVE else "")
