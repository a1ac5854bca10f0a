"""Effects of a body, decided: which are to be tried before a turn is decided, and what an attempt whose effect failed has become.

They are tried first, inside the transaction that the turn will end with: so the scheduler decides by what truly came of them, and
nothing that follows from a success (a response, a child, an occurrence) has to be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from taskpool.core import events as ev
from taskpool.core.commands import Command, End
from taskpool.core.lifecycle import SUCCEEDED
from taskpool.model import TaskError
from taskpool.wire.jobs import ERROR, OK, Report

Key = tuple[int, int]  # task, attempt
NONE: Final[Mapping[Key, Report]] = {}  # of nearly every turn


def told(events: Iterable[ev.Event]) -> dict[Key, Report]:
    """Return the reports of a turn that come with effects; the same attempt's counts once."""
    found: dict[Key, Report] = {}
    for event in events:
        if isinstance(event, ev.Reported):
            reports: Iterable[Report] = event.reports
        elif isinstance(event, ev.Recovered) and event.report is not None:
            reports = (event.report,)
        else:
            continue
        for report in reports:
            if report.effects and report.outcome == OK:
                found[report.task_id, report.attempt] = report
    return found


def fail(events: Iterable[ev.Event], failed: Mapping[Key, TaskError]) -> None:
    """Turn the reports of attempts whose effects failed into failures."""
    if not failed:
        return
    for event in events:
        reports = event.reports if isinstance(event, ev.Reported) else [event.report] if isinstance(event, ev.Recovered) else []
        for report in reports:
            error = None if report is None else failed.get((report.task_id, report.attempt))
            if report is not None and error is not None:
                report.outcome, report.error, report.value, report.effects = ERROR, error, None, None


def wanted(commands: Iterable[Command]) -> dict[Key, Report]:
    """Return the reports whose success is recorded by these commands together with their effects."""
    found: dict[Key, Report] = {}
    for command in commands:
        if type(command) is End and command.to == SUCCEEDED and command.report is not None and command.report.effects:
            found[command.id, command.closed.attempt] = command.report
    return found
