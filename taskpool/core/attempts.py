"""How attempts end: reported, with their worker, taken back before they began, given up, or found behind a dead owner. Pure."""

from __future__ import annotations

from taskpool.clock import Instant
from taskpool.core import callers, children, settle
from taskpool.core.callers import Callers, Loan
from taskpool.core.commands import Command, Halted, Kill, Tell
from taskpool.core.ending import Ending
from taskpool.core.events import Recovered, Reported, TakenBack, TaskRow, WorkerDied
from taskpool.core.fleet import Fleet
from taskpool.core.intake import Intake
from taskpool.core.lifecycle import PENDING, QUEUED, TERMINAL
from taskpool.core.mailbox import Durations
from taskpool.core.table import Table


class Attempts:
    """Ends them. count: how many have ended with a body that ran."""

    def __init__(self, table: Table, fleet: Fleet, loans: Callers, ending: Ending, intake: Intake, durations: Durations) -> None:
        """intake: takes what a success has made; durations: learn from what ran."""
        self._table = table
        self._fleet = fleet
        self._workers = fleet.workers
        self._loans = loans
        self._ending = ending
        self._intake = intake
        self._durations = durations
        self._recovered: list[children.Child] = []  # of successes that a dead owner had not stored, until ids are known
        self.count = 0

    def reported(self, event: Reported, now: Instant, out: list[Command]) -> None:
        """Bodies have ended, by the words of their worker."""
        box = self._workers.get(event.worker)
        if box is None:
            return
        durations, outputs = self._durations, event.outputs
        for report in event.reports:
            row = box.sent.get(report.n)
            if row is None or row.id != report.task_id or row.attempt != report.attempt:
                continue  # of an attempt that was given up
            if box.caller is None:
                box.remove(report.n, durations.observe(row.name, report.duration_ns), now.mono)
            else:
                box.remove(report.n, None, now.mono)
                self._loans.close(box.worker)
            box.done += 1
            self.count += 1
            output = outputs.get(report.n, "") if outputs else ""
            brood = children.read(report) if report.children else ()
            out.append(settle.reported(row, report, event.pid, output, now, stopping=self._ending.told))
            self._after(row)
            self._intake.spawned(brood, now, out)
            if report.dirty and not box.leaving:
                box.leaving = True
                out.append(Kill(box.worker, 0, "retire"))

    def died(self, event: WorkerDied, now: Instant, out: list[Command]) -> None:
        """A worker is dead: so is the body that it had begun, and nothing else of what it was sent."""
        box = self._fleet.died(event.worker, bool(event.why), now)
        if box is None:
            return
        if self._fleet.is_stillborn and not self._ending.halted:
            self._ending.halted = True
            out.append(Halted(f"workers die before they are ready: {event.error.message}"))
        for row in box.disowned:
            self._table.disown(row)
        for n, row in list(box.sent.items()):
            row.n = 0
            if n == event.begun:
                out.append(settle.died(row, event, now))
                self.count += 1
            else:
                out.append(settle.returned(row, event.pid, now))
                self._table.lines.rates.give_back(row.queue, row.started_at or 0)
            self._after(row)

    def taken_back(self, event: TakenBack, now: Instant, out: list[Command]) -> None:
        """A worker has given back what it had not begun."""
        box = self._workers.get(event.worker)
        if box is None:
            return
        for n, row in list(box.sent.items()):
            if n > event.above:
                box.taking_back = max(box.taking_back, n)
                box.remove(n, self._durations.expected(row.name), now.mono)
                out.append(settle.returned(row, box.pid, now))
                self._table.lines.rates.give_back(row.queue, row.started_at or 0)
                self._after(row)

    def give_up(self, loan: Loan, why: str, now: Instant, out: list[Command]) -> None:
        """An attempt that a caller runs has ended, whatever the caller does."""
        row = loan.row
        death = callers.death(loan, why, now)
        loan.box.remove(row.n, None, now.mono)
        self._loans.close(loan.box.worker)
        self.count += 1
        out += [settle.died(row, death, now), Tell(loan.client, loan.box.worker, callers.OVER)]
        self._after(row)

    def _after(self, row: TaskRow) -> None:
        """Keep what will run again, forget what ended."""
        if row.key is not None:
            self._table.lines.keys.ended(row)
        if row.status in TERMINAL:
            self._table.ended(row)
            self._table.forget(row)
        elif row.status == PENDING and self._ending.began:
            if row.key is not None:
                self._table.lines.keys.note(row)
            self._table.forget(row)  # the next owner finds it in the store
        else:
            self._table.wait(row)

    # ---- behind a dead owner ----------------------------------------------------------------------------------------

    def recovered(self, event: Recovered, now: Instant, out: list[Command]) -> None:
        """A task ran when the last owner died: it has ended as its page says, or is rescued, or goes back."""
        row, report, lines = event.row, event.report, self._table.lines
        row.rules = lines.queues.get(row.queue)
        if report is not None and report.attempt == row.attempt and report.task_id == row.id:
            self._recovered += children.read(report)
            # A Cancelled that no stored cancel asked for: the dead owner was stopping the pool.
            out.append(settle.reported(row, report, 0, "", now, stopping=True))
        elif event.begun:
            out.append(settle.rescued(row, now))
        else:
            out.append(settle.returned(row, 0, now))
            lines.rates.give_back(row.queue, row.started_at or 0)
        # Its line is not read yet: the row comes back with the refill, in its place.
        if row.key is not None:
            lines.keys.note(row)
        if row.status in TERMINAL:
            self._table.ended(row)
        elif row.status == QUEUED and row.queue not in lines.ready:
            lines.open(row.queue)  # nothing waited in it when the store was opened

    def children_of_recovered(self, now: Instant, out: list[Command]) -> None:
        """Take in what those successes have made, now that ids are known."""
        self._intake.spawned(self._recovered, now, out)
        self._recovered = []
