"""TASKS: which tasks a verb means, by ids, ranges, uuids, the words `last` and `all`, or filters."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import msgspec

from taskpool.cli.exits import CliError, Exit
from taskpool.cli.quantity import parse_since
from taskpool.model import Filter, Status

if TYPE_CHECKING:
    from taskpool.store.reading import Reader

_Callback = TypeVar("_Callback", bound=Callable[..., Any])

IDS_MAX = 100_000  # what a range may name; beyond it a filter is meant
MATCH_MAX = 1_000_000  # what a filter may find at once
ID_MAX = (1 << 63) - 1


class Selection(msgspec.Struct, frozen=True):
    """TASKS as typed.

    ids: all that are named by number, in that order; required: those of them that were named singly (a range may have holes); uids:
    still to be looked up; last: the newest task; every: the word `all`; filter: the rest.
    """

    ids: tuple[int, ...] = ()
    required: frozenset[int] = frozenset()
    uids: tuple[bytes, ...] = ()
    last: bool = False
    every: bool = False
    filter: Filter = Filter()

    @property
    def named(self) -> bool:
        """Whether tasks are named, and not only described."""
        return bool(self.ids or self.uids or self.last)

    @property
    def empty(self) -> bool:
        """Whether nothing at all was said."""
        return not self.named and not self.every and self.filter == Filter()

    def narrowed(self, **fields: Any) -> Selection:
        """Return the selection with these fields of its filter set."""
        return msgspec.structs.replace(self, filter=msgspec.structs.replace(self.filter, **fields))

    def resolve(self, reader: Reader) -> Filter:
        """Return the filter with every name looked up in the store. Raises CliError for a task that is not there."""
        if not self.named:
            return self.filter
        ids = self._existing(reader)
        if self.uids:
            found = reader.find_uids(list(self.uids))
            for uid in self.uids:
                if uid not in found:
                    raise no_such_task(str(uuid.UUID(bytes=uid)))
                ids.append(found[uid])
        if self.last:
            newest = reader.tasks(Filter(), 1, None)
            if not newest:
                raise no_such_task("last")
            ids.append(newest[0].id)
        return msgspec.structs.replace(self.filter, ids=tuple(dict.fromkeys(ids)))

    def _existing(self, reader: Reader) -> list[int]:
        if not self.ids:
            return []
        there = set(reader.match(Filter(ids=self.ids), len(self.ids)))
        if missing := next((task_id for task_id in self.ids if task_id in self.required and task_id not in there), None):
            raise no_such_task(str(missing))
        if not there:
            raise no_such_task(f"{self.ids[0]}-{self.ids[-1]}")
        return [task_id for task_id in self.ids if task_id in there]

    def resolve_ids(self, reader: Reader) -> list[int]:
        """Return the ids of all tasks that are meant: in the order they were named, else oldest first."""
        found = self.resolve(reader)
        matching = reader.match(found, MATCH_MAX)
        if not found.ids:
            return sorted(matching)
        wanted = set(matching)
        return [task_id for task_id in found.ids if task_id in wanted]


def no_such_task(name: str) -> CliError:
    """Return the error for a task that is not in the store."""
    return CliError(f"no task {name} in this store", Exit.NOT_FOUND, "not_found", "`taskpool ls` lists them; -C chooses the store")


def parse_tasks(words: tuple[str, ...]) -> Selection:
    """Return what the words name: 42, 40-57, 1,3,5-8, last, all, a uuid. Raises click.UsageError."""
    ids: list[int] = []
    required: set[int] = set()
    uids: list[bytes] = []
    last = every = False
    for part in (part.strip() for word in words for part in word.split(",")):
        if part == "last":
            last = True
        elif part == "all":
            every = True
        elif part.isascii() and part.isdigit():
            ids.append(_id(part))
            required.add(ids[-1])
        elif (uid := _uuid(part)) is not None:
            uids.append(uid)
        elif part:
            ids += _range(part)
    if every and (ids or uids or last):
        raise click.UsageError("`all` and single tasks exclude each other")
    return Selection(tuple(dict.fromkeys(ids)), frozenset(required), tuple(dict.fromkeys(uids)), last, every)


def _id(text: str) -> int:
    if len(text) > 19 or int(text) > ID_MAX:
        raise click.UsageError(f"{text} is no task id")
    return int(text)


def _range(text: str) -> range:
    first, dash, end = text.partition("-")
    if not (dash and first.isascii() and first.isdigit() and end.isascii() and end.isdigit()):
        raise click.UsageError(
            f"{text!r} names no tasks: write 42, 40-57, 1,3,5-8, last, all, a uuid, or use filters (--status, …)"
        )
    ids = range(_id(first), _id(end) + 1)
    if not ids:
        raise click.UsageError(f"{text} is empty: the smaller id comes first")
    if len(ids) > IDS_MAX:
        raise click.UsageError(f"{text} names {len(ids):,} ids, over the limit of {IDS_MAX:,}; use filters")
    return ids


def _uuid(text: str) -> bytes | None:
    if len(text) not in (32, 36):
        return None
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return None


def tasks_argument(*, required: bool = False, without: tuple[str, ...] = ()) -> Callable[[_Callback], _Callback]:
    """Give a verb TASKS and the filters; its callback receives them as one argument, `selection`.

    required: it is a usage error to name nothing; without: filters that the verb does not take.
    """
    names = [name for name in FILTERS if name not in without]

    def decorate(callback: _Callback) -> _Callback:
        @functools.wraps(callback)
        def with_selection(*args: Any, **kwargs: Any) -> Any:
            selection = select(kwargs.pop("tasks"), **{name: kwargs.pop(name) for name in names})
            if required and selection.empty:
                raise click.UsageError("name tasks (42, 40-57, last, all, a uuid) or use a filter such as --status")
            return callback(*args, selection=selection, **kwargs)

        outer = cast(_Callback, with_selection)
        for name in reversed(names):
            outer = FILTERS[name](outer)
        return click.argument("tasks", nargs=-1)(outer)

    return decorate


_STATUSES = [status.value for status in Status]
FILTERS: dict[str, Callable[[_Callback], _Callback]] = {
    "status": click.option(
        "--status", multiple=True, type=click.Choice(_STATUSES), metavar="STATUS", help=f"Tasks that are {', '.join(_STATUSES)}."
    ),
    "queue": click.option("--queue", multiple=True, metavar="QUEUE", help="Tasks of this queue."),
    "name": click.option("--name", multiple=True, metavar="HANDLER", help="Tasks of this handler."),
    "tag": click.option("--tag", multiple=True, metavar="TAG", help="Tasks with this tag."),
    "owner": click.option("--owner", metavar="[TYPE:]ID", help="Tasks of this owner."),
    "source": click.option("--source", metavar="NAME", help="Tasks that this handed in."),
    "reference": click.option("--reference", metavar="ID", help="Tasks with this reference_id."),
    "parent": click.option(
        "--parent", type=click.IntRange(1, ID_MAX), metavar="ID", help="Tasks that this one has made: spawned, mostly."
    ),
    "key": click.option("--key", metavar="KEY", help="Tasks with this serialization key."),
    "unique": click.option("--unique", metavar="KEY", help="Tasks with this unique key."),
    "batch": click.option("--batch", metavar="NAME", help="Tasks of this batch."),
    "since": click.option("--since", metavar="WHEN", help="Tasks stored since WHEN: 2h (ago), or a time."),
    "until": click.option("--until", metavar="WHEN", help="Tasks stored before WHEN."),
    "error": click.option("--error", metavar="TEXT", help="Tasks whose error contains TEXT."),
}


def select(
    tasks: tuple[str, ...],
    *,
    status: tuple[str, ...] = (),
    queue: tuple[str, ...] = (),
    name: tuple[str, ...] = (),
    tag: tuple[str, ...] = (),
    owner: str | None = None,
    source: str | None = None,
    reference: str | None = None,
    parent: int | None = None,
    key: str | None = None,
    unique: str | None = None,
    batch: str | None = None,
    since: str | None = None,
    until: str | None = None,
    error: str | None = None,
) -> Selection:
    """Return the selection that words and filters make together. Raises click.UsageError."""
    now = time.time_ns() // 1000
    try:
        moments = [None if text is None else parse_since(text, now) for text in (since, until)]
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    first, typed, rest = (owner or "").partition(":")
    wanted = Filter(
        statuses=status,
        queues=queue,
        names=name,
        tags=tag,
        batch=batch,
        key=key,
        unique=unique,
        since=moments[0],
        until=moments[1],
        error_contains=error,
        owner_type=first if typed else None,
        owner_id=None if owner is None else rest if typed else first,
        source=source,
        reference_id=reference,
        parent_id=parent,
    )
    return msgspec.structs.replace(parse_tasks(tasks), filter=wanted)
