"""`taskpool replies [MAILBOX]`: responses of tasks that were submitted with a mailbox."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from taskpool.cli import values
from taskpool.cli.documents import error_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import console
from taskpool.cli.quantity import local_time, rfc3339
from taskpool.cli.session import Session
from taskpool.cli.shapes import ErrorDoc
from taskpool.cli.verb import verb
from taskpool.wire.messages import Replied


class ReplyDoc(msgspec.Struct):
    """One response; value, repr as in taskpool.result/1. seq: its number, by which it is acknowledged."""

    seq: int
    id: int
    name: str
    status: str
    attempts: int
    value: Any
    repr: str | None
    error: ErrorDoc | None
    completed_at: str | None


class RepliesDoc(msgspec.Struct):
    """Responses of a mailbox, oldest first. acknowledged: they are taken out of it."""

    mailbox: str
    items: list[ReplyDoc]
    acknowledged: bool
    schema: str = "taskpool.replies/1"


class MailboxesDoc(msgspec.Struct):
    """Mailbox → how many responses lie in it."""

    mailboxes: dict[str, int]
    schema: str = "taskpool.mailboxes/1"


@verb(
    "replies",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool replies", "which mailboxes there are"),
        ("taskpool replies billing", "what lies in one, oldest first"),
        ("taskpool replies billing --ack --json", "take it out"),
    ],
)
@click.argument("mailbox", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, metavar="N", help="At most N responses.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only those with a higher number.")
@click.option("--ack", is_flag=True, help="Take them out of the mailbox; needs the server.")
@click.pass_obj
def command(session: Session, mailbox: str | None, limit: int, after: int, ack: bool) -> int:
    """Show the responses in a mailbox (submit --reply-to), or which mailboxes there are. They stay until they are acknowledged."""
    if mailbox is None:
        if ack:
            raise click.UsageError("--ack needs a mailbox")
        return _show_mailboxes(session)
    with session.reader() as reader:
        found = reader.replies(mailbox, after, limit)
    docs = [_doc(replied) for replied in found]
    if ack and found:
        with session.client() as client:
            client.acknowledge(mailbox, [replied.seq for replied in found])
    if session.json:
        session.show(RepliesDoc(mailbox, docs, ack))
        return Exit.OK
    if not docs:
        session.note(f"nothing lies in {one_line(mailbox)}")
        return Exit.OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("SEQ", "TASK", "STATUS", "NAME", "ATT", "COMPLETED", "RESULT"):
        table.add_column(column, justify="right" if column in ("SEQ", "TASK", "ATT") else "left", no_wrap=column != "RESULT")
    for doc, replied in zip(docs, found, strict=True):
        outcome = doc.repr or "" if replied.error is None else str(replied.error)
        completed = local_time(replied.completed_at)
        table.add_row(
            str(doc.seq), str(doc.id), doc.status, one_line(doc.name, 40), str(doc.attempts), completed, one_line(outcome, 100)
        )
    console(session.color, sys.stdout).print(table)
    return Exit.OK


def _doc(replied: Replied) -> ReplyDoc:
    value, text = None, None
    if replied.status == "succeeded":
        try:
            seen = values.shown(values.decode(replied.task_id, replied.codec, replied.value))
            value, text = seen.json, seen.repr
        except CliError as error:
            text = f"<{error.message}>"
    return ReplyDoc(
        seq=replied.seq,
        id=replied.task_id,
        name=replied.name,
        status=replied.status,
        attempts=replied.attempts,
        value=value,
        repr=text,
        error=error_doc(replied.error),
        completed_at=rfc3339(replied.completed_at),
    )


def _show_mailboxes(session: Session) -> int:
    with session.reader() as reader:
        mailboxes = reader.mailboxes()
    if session.json:
        session.show(MailboxesDoc(mailboxes))
    elif not mailboxes:
        session.note("no mailbox holds anything")
    for name, count in mailboxes.items():
        session.say(f"{count:8,}  {one_line(name)}")
    return Exit.OK
