"""Which tasks a listing or a bulk verb means: ids, a Filter, or its fields by name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from taskpool.errors import InvalidTask
from taskpool.model import Filter, Status

Wanted = Filter | int | Iterable[int] | None


class FilterFields(TypedDict, total=False):
    """Which tasks a listing or a bulk verb means; one or several of each. since and until bound the time of the submit."""

    status: Status | str | Iterable[Status | str]
    name: str | Iterable[str]
    queue: str | Iterable[str]
    tag: str | Iterable[str]
    batch: str
    key: str
    unique: str
    since: datetime
    until: datetime
    error: str
    owner_type: str
    owner_id: str
    source: str
    reference_id: str
    parent_id: int
    flow: int


def filter_of(wanted: Wanted, fields: FilterFields) -> Filter | None:
    """Return the Filter that ids and fields describe, None if they mean no task at all (a list of no ids, or of no statuses).

    Raises InvalidTask for a status there is not.
    """
    if isinstance(wanted, Filter):
        base = wanted
    elif wanted is None:
        base = Filter()
    else:
        base = Filter(ids=(wanted,) if isinstance(wanted, int) else tuple(wanted))
        if not base.ids:
            return None  # an empty Filter would mean all
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _PLURALS:
            several = _several(name, value)
            if not several:
                return None  # one of none of these
            changes[_PLURALS[name]] = several
        elif isinstance(value, datetime):
            changes[name] = _wall(name, value)
        elif name == "error":
            changes["error_contains"] = value
        elif name in FilterFields.__annotations__ and name not in ("since", "until"):
            changes[name] = value
        else:
            raise InvalidTask(
                f"tasks cannot be chosen by {name}={value!r:.120}", hint=f"by {', '.join(FilterFields.__annotations__)}"
            )
    known = list(map(str, Status))
    for status in changes.get("statuses", ()):
        if status not in known:
            raise InvalidTask(f"there is no status {status!r}", hint=f"there are {', '.join(known)}")
    if "statuses" in changes:
        changes["statuses"] = tuple(map(str, changes["statuses"]))
    return msgspec.structs.replace(base, **changes) if changes else base


_PLURALS = {"status": "statuses", "name": "names", "queue": "queues", "tag": "tags"}


def _several(name: str, value: Any) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(one, str) for one in several):
        raise InvalidTask(f"{name} must be a text or several: {value!r:.120}")
    return several


def _wall(name: str, moment: datetime) -> int:
    if moment.utcoffset() is None:
        raise InvalidTask(f"{name} must know its time zone: {moment!r}")
    return round(moment.timestamp() * 1_000_000)


def meant(verb: str, wanted: Wanted, fields: FilterFields) -> Filter | None:
    """Return a filter for a verb that changes tasks; meaning all of them by saying nothing is a mistake."""
    if wanted is None and not fields:
        raise InvalidTask(f"{verb} which tasks?", hint="an id, ids, status=…, name=…; Filter() means all")
    return filter_of(wanted, fields)
