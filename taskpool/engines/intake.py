"""What workers say of their jobs, as events: ended, saved, passed over; and the jobs they have to give back.

A job is given back in three steps. LIMIT forbids it (set by `take_back`, or by the killer just before a kill). TakenBack tells the
scheduler, once it is sure that the job will not begin. When the worker has passed over the last, LIMIT is lifted and Passed says
that it takes work again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from taskpool import faults
from taskpool.core.events import Passed, Reported, Saved, TakenBack
from taskpool.engines import linux, records
from taskpool.engines.engine import Deliver, Wish
from taskpool.engines.killer import Killer
from taskpool.engines.link import SHORT_NS, Link
from taskpool.engines.listener import Listener
from taskpool.engines.marks import Marks
from taskpool.wire import barrier
from taskpool.wire.jobs import Checkpointed, ChildAsked, Report
from taskpool.wire.page import CURRENT, HEAD, LIMIT, NO_LIMIT, SEEN_AT, STARTED


class Intake:
    """Reads rings. Whatever a worker wrote is delivered in the order in which it happened."""

    def __init__(
        self, run_dir: str, killer: Killer, marks: Marks, listener: Listener, deliver: Deliver, ended: Callable[[], None]
    ) -> None:
        """ended: called when attempts have ended, for they may have left something behind."""
        self._run_dir = run_dir
        self._killer = killer
        self._marks = marks
        self._listener = listener
        self._deliver = deliver
        self._ended = ended

    # ---- records ----------------------------------------------------------------------------------------------------

    def read(self, link: Link) -> None:
        """Deliver what is new in its ring."""
        words = link.page.words
        if words[HEAD] == link.ring.position:
            return
        words[SEEN_AT] = time.monotonic_ns()
        found, problem = records.read(link.ring, self._run_dir, self._marks.spills)
        faults.point("result.read")
        self._marks.read(link)
        reports: list[Report] = []
        outputs: dict[int, str] = {}
        passed = False
        for record in found:
            if type(record) is Report:
                if record.n not in link.sent:
                    problem = problem or f"it reported job {record.n}, which it does not have"
                    break
                reports.append(record)
                self._end(link, record, outputs)
                continue
            self._report(link, reports, outputs)
            reports, outputs = [], {}
            if type(record) is Checkpointed:
                self._deliver(Saved(link.worker_id, record))
            elif type(record) is ChildAsked:
                self._deliver(Wish(link.worker_id, record))
            else:
                passed = self._pass(link, record.n)
        self._report(link, reports, outputs)
        if passed:
            self._allow(link)
        if problem:
            self._distrust(link, problem)

    def _end(self, link: Link, report: Report, outputs: dict[int, str]) -> None:
        if report.output_end > link.output.claimed:
            outputs[report.n] = self._listener.claim(link, report.task_id, report.output_end)
        del link.sent[report.n]
        link.done_n = report.n
        link.last_ns = report.duration_ns
        link.cpu_us[0] += report.cpu_user_us
        link.cpu_us[1] += report.cpu_system_us

    def _report(self, link: Link, reports: list[Report], outputs: dict[int, str]) -> None:
        if not reports:
            return
        if link.watch.busy:
            self._killer.disarm(link.watch, [report.n for report in reports])
        self._deliver(Reported(link.worker_id, link.pid, reports, outputs))
        self._ended()

    def _pass(self, link: Link, n: int) -> bool:
        """The worker passed over a job; return whether it was the last."""
        link.sent.pop(n, None)
        if link.watch.busy:
            self._killer.disarm(link.watch, [n])
        if link.taken_above is None or n <= link.taken_above:  # the killer forbade it, and nobody has given it back yet
            link.taken_above = n - 1
            self._deliver(TakenBack(link.worker_id, n - 1))
        return n == link.last_n

    def _distrust(self, link: Link, problem: str) -> None:
        """A worker whose words cannot be read is of no further use; it dies like one that crashed."""
        link.fault = link.fault or problem
        with self._killer.lock:
            link.strike(0, "")

    # ---- giving back ------------------------------------------------------------------------------------------------

    def take_back(self, link: Link, above: int) -> None:
        """Forbid the jobs above that number, and tell which will not begin."""
        with self._killer.lock:
            link.limit(above)
        barrier.everywhere()
        current = link.page.words[CURRENT]
        barrier.everywhere()  # if a body has ended by now, its record is in the ring, for this to see:
        self.read(link)
        if link.page.words[LIMIT] == NO_LIMIT:
            return  # that was quick: all was passed over, told, and allowed again
        above = max(above, current, link.done_n)
        if link.taken_above is not None:
            above = min(above, link.taken_above)  # what was given back once is never begun
        self._deliver(TakenBack(link.worker_id, above))
        if above < next(reversed(link.sent), 0):  # else it has begun, or passed over, all that it was sent
            link.taken_above = above
        else:
            self._allow(link)

    def gets_on(self, link: Link, running_ns: int) -> bool:
        """Return whether it has ended a body that was not heard of yet, has not been in this one for so long, or starves."""
        heard = link.done_n
        self.read(link)
        words = link.page.words
        current = words[CURRENT]
        if link.done_n != heard or (current != 0 and time.monotonic_ns() - words[STARTED] < running_ns):
            return True
        return _starves(link, (current, link.done_n), running_ns)

    def give_back(self, link: Link) -> None:
        """The killer forbade what comes after a job that ended just then by itself."""
        link.limit_left = False
        if link.reaped or link.taken_above is not None:
            return
        limit = link.page.words[LIMIT]
        if limit != NO_LIMIT:
            self.take_back(link, limit)

    def _allow(self, link: Link) -> None:
        """All that was forbidden is passed over, or there was none of it: the worker takes work again."""
        link.taken_above = None
        with self._killer.lock:
            link.unlimit()
        self._deliver(Passed(link.worker_id, link.last_n))


def _starves(link: Link, place: tuple[int, int], running_ns: int) -> bool:
    """Return whether it wants to run and gets no processor: once it does, what it was sent may be done at once.

    Bodies longer than SHORT_NS are few and worth to be moved: another worker may get a processor before this one. The first look
    at a body that wants to run cannot tell, and leaves it alone; one that sleeps does not starve.
    """
    if link.last_ns >= SHORT_NS:
        return False
    try:
        found = linux.process(link.pid)
        if found is None or found.state != "R":
            return False
        had = linux.processor_ns(link.pid)
    except OSError:  # it is gone, or a sandbox keeps the clocks of others to itself: then its silence alone counts
        return False
    if link.starving is None or link.starving[0] != place:
        link.starving = (place, had)
        return True
    return had - link.starving[1] < running_ns // 2
