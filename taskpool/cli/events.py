"""`taskpool events`: what happened to tasks, one transition after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click
import msgspec

from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit
from taskpool.cli.quantity import local_time, parse_since, rfc3339
from taskpool.cli.session import Session
from taskpool.cli.verb import verb
from taskpool.errors import InvalidTask
from taskpool.model import Status
from taskpool.store.eventlog import START, Place, TaskEvent, place_of, text_of
from taskpool.store.reading import Reader


class EventDoc(msgspec.Struct):
    """One transition, a line. seq: its place in the log, for --since; from: null for a new task."""

    seq: str
    at: str | None
    id: int
    before: str | None = msgspec.field(name="from")
    status: str = msgspec.field(name="to")
    attempt: int = 0
    name: str = ""
    queue: str = ""
    schema: str = "taskpool.event/1"


@verb(
    "events",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool events", "all that the log still has, oldest first"),
        ("taskpool events --since 10m --status failed", "what failed lately"),
        ("taskpool events --since 1824.0 --json", "what came after that one, as lines of JSON"),
        ("taskpool events --follow --queue mail", "what happens in a queue from now on"),
    ],
)
@click.option("--since", metavar="SEQ|TIME", help="Only what is behind a place in the log, or 10m ago, or after a moment.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until the server ends; needs it.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="End after N transitions.")
@click.option("--id", "ids", type=click.IntRange(1), multiple=True, metavar="ID", help="Only of this task; repeatable.")
@click.option("--name", "names", multiple=True, metavar="NAME", help="Only of tasks of this name; repeatable.")
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Only of tasks in this queue; repeatable.")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice([status.value for status in Status]), help="Only to it; repeatable."
)
@click.pass_obj
def command(
    session: Session,
    since: str | None,
    follow: bool,
    limit: int | None,
    ids: tuple[int, ...],
    names: tuple[str, ...],
    queues: tuple[str, ...],
    statuses: tuple[str, ...],
) -> int:
    """Show the transitions of tasks in the order of their commits. Reads the file; --follow alone begins with what comes."""
    chosen = {"id": ids or None, "name": names or None, "queue": queues or None, "status": statuses or None}
    shown = 0
    for event in _found(session, since, follow, {key: value for key, value in chosen.items() if value}):
        _show(session, event)
        shown += 1
        if shown == limit:
            return Exit.OK
    if not shown and not session.json:
        session.note("nothing of that is in the log")
    return Exit.OK


def _found(session: Session, since: str | None, follow: bool, chosen: dict[str, tuple[object, ...]]) -> Iterator[TaskEvent]:
    from taskpool.doors.eventstream import stored_events

    with session.reader() as reader:
        place = _place(reader, since, follow)
    if follow:
        with session.client() as client:
            yield from client.events(place, follow=True, **chosen)  # type: ignore[arg-type]  # typed by their options
    else:
        yield from stored_events(session.store_path(), place, **chosen)


def _place(reader: Reader, since: str | None, follow: bool) -> Place:
    """Return where to begin."""
    if since is None:
        return (reader.last_logged(), 1 << 62) if follow else START
    try:
        return place_of(since)
    except InvalidTask:
        pass
    try:
        at = parse_since(since, time.time_ns() // 1000)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or a place in the log: 1824.0", param_hint="--since") from None
    return (reader.logged_since(at), -1)


def _show(session: Session, event: TaskEvent) -> None:
    before = event.before.value if event.before else None
    status = event.status.value
    if session.json:
        where = (event.attempt, event.name, event.queue)
        session.show(EventDoc(text_of(event.seq), rfc3339(event.at), event.id, before, status, *where))
    else:
        moved = f"{before or 'new'} → {status}"
        words = f"{text_of(event.seq):>9}  {local_time(event.at)}  {event.id:>8}  {moved:<22}  {event.attempt:>3}"
        session.say(f"{words}  {one_line(event.name, 60)}")
    sys.stdout.flush()
