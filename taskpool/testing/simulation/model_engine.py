"""A model of the engine: workers with mailboxes, pages and rings, signals, kills and deaths, one small step at a time.

It keeps the promises of the real one (`taskpool.engines.engine`): records are whole or absent, a page names the body that runs,
what is forbidden by `take_back` never begins, a death is told after all records of the dead. Everything else is left to chance:
when a worker goes on, when its records are read, how late a message comes.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from taskpool.clock import NS, ManualClock
from taskpool.core import events as ev
from taskpool.model import Options, TaskError
from taskpool.testing.simulation import children, effects
from taskpool.testing.simulation.conditions import Conditions
from taskpool.testing.simulation.fates import CRASH, REPORTED, Fate, Fates, LawBroken
from taskpool.wire import jobs
from taskpool.wire.jobs import Checkpointed, Record, Report, Skipped

BOOTING, ALIVE, DEAD, REAPED = range(4)  # REAPED: its death is in the news
NO_LIMIT = 1 << 63
SOON_NS = 100 * NS  # a calm world waits so long for a kill
DURATIONS_NS = {"short": 200_000, "middle": 3_000_000, "long": 2_000_000_000}  # what bodies say they took, by handler


class ModelJob(NamedTuple):
    """One attempt on its way to a worker."""

    n: int
    task_id: int
    attempt: int
    name: str
    options: Options
    deadline: int | None  # monotonic ns


class Body:
    """A body that runs."""

    __slots__ = ("began_ns", "deaf", "endless", "fate", "job")

    def __init__(self, job: ModelJob, fate: Fate, began_ns: int, *, endless: bool) -> None:
        self.job = job
        self.fate = fate
        self.began_ns = began_ns
        self.endless = endless
        self.deaf = False  # it swallows Cancelled


class News(NamedTuple):
    """An event on its way to the supervisor; `read`: how many of the worker's records are told with it, `reaped`: its death is."""

    event: ev.Event
    worker: int = 0
    read: int = 0
    reaped: bool = False


class ModelWorker:
    """One worker: its process, its pipe, its page and its ring."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.pid = 10_000 + worker
        self.state = BOOTING
        self.pipe: deque[ModelJob] = deque()
        self.body: Body | None = None  # the page's CURRENT
        self.limit = NO_LIMIT
        self.cancels: set[int] = set()
        self.ring: list[Record] = []  # whole records that are not freed
        self.freed = 0  # records since its start that were stored and forgotten
        self.read = 0  # records since its start that were read
        self.told = 0  # records since its start that the scheduler was told
        self.highest = 0  # number of the last job sent
        self.last_begun = 0
        self.taken_above: int | None = None  # it is passing over jobs above that number, which were taken back
        self.kills: list[tuple[int, int, str]] = []  # (monotonic ns, n, why)
        self.why = ""
        self.spent = False  # its last report was dirty: it begins nothing more
        self.gone = False  # the scheduler was told of its death

    def unread(self) -> list[Record]:
        """Return the records that were not read yet."""
        return self.ring[self.read - self.freed :]

    def has_ended(self, n: int) -> bool:
        """Return whether job n was run or passed over."""
        return not (self.body is not None and self.body.job.n == n) and all(job.n != n for job in self.pipe)


Mark = list[tuple[ModelWorker, int, bool]]  # worker, records told, death told


class ModelEngine:
    """The workers of one supervisor. `calm`: bodies end well, and soon, and nothing breaks any more."""

    def __init__(
        self,
        random: Random,
        clock: ManualClock,
        conditions: Conditions,
        fates: Fates,
        on_begin: Callable[[ModelJob], None],
    ) -> None:
        self._random = random
        self._clock = clock
        self._conditions = conditions
        self._fates = fates
        self._on_begin = on_begin
        self.workers: dict[int, ModelWorker] = {}
        self.news: deque[News] = deque()
        self.calm = False

    # ---- what the supervisor asks for -------------------------------------------------------------------------------

    def spawn(self, worker: int) -> None:
        """Start a worker."""
        if worker in self.workers:
            raise LawBroken(f"worker {worker} was started twice")
        self.workers[worker] = ModelWorker(worker)

    def send(self, worker: int, jobs: Sequence[ModelJob]) -> None:
        """Put jobs into a worker's pipe; a dead one is passed over."""
        box = self.workers.get(worker)
        if box is None:
            return
        if box.taken_above is not None:
            raise LawBroken(
                f"worker {worker} was sent work before it had passed what was taken back: it would pass that too, unheard"
            )
        for job in jobs:
            if job.n <= box.highest:
                raise LawBroken(f"job {job.n} of worker {worker} was sent after job {box.highest}")
            box.highest = job.n
            if box.state == ALIVE:
                box.pipe.append(job)

    def take_back(self, worker: int, above: int, running_ns: int) -> None:
        """Forbid what lies above that number and has not begun; running_ns: unless the worker gets on by itself."""
        box = self.workers.get(worker)
        if box is None or box.state != ALIVE or (running_ns and self._gets_on(box, running_ns)):
            return
        box.limit = min(box.limit, above)
        self._read(box)
        if box.limit == NO_LIMIT:
            return  # that was quick: all was passed over, told, and allowed again
        above = max(above, box.last_begun)
        box.taken_above = above if box.taken_above is None else min(above, box.taken_above)
        self.news.append(News(ev.TakenBack(worker, box.taken_above), worker))
        if all(job.n <= box.taken_above for job in box.pipe):
            self._allow(box)

    def _gets_on(self, box: ModelWorker, running_ns: int) -> bool:
        """Return whether it has ended a body that was not heard of yet, or has not been in this one for so long."""
        ended = any(isinstance(record, Report) for record in box.unread())
        self._read(box)
        return ended or (box.body is not None and self._clock.now().mono - box.body.began_ns < running_ns)

    def _allow(self, box: ModelWorker) -> None:
        """Nothing that was forbidden is left: the worker takes work again."""
        box.limit, box.taken_above = NO_LIMIT, None
        self.news.append(News(ev.Passed(box.worker, box.highest), box.worker, box.read))

    def signal(self, worker: int, n: int, grace_s: float, why: str) -> None:
        """Raise Cancelled in job n, and kill after the grace."""
        box = self.workers.get(worker)
        if box is None or box.state != ALIVE or box.has_ended(n):
            return
        box.cancels.add(n)
        box.kills.append((self._clock.now().mono + round(grace_s * NS), n, why))
        if why == "stop":
            job = box.body.job if box.body is not None and box.body.job.n == n else next(job for job in box.pipe if job.n == n)
            self._fates.of(job.task_id, job.attempt).told_to_stop = True

    def kill(self, worker: int, n: int, why: str) -> None:
        """Kill a worker if it runs job n (0: whatever it does)."""
        box = self.workers.get(worker)
        if box is None or box.state >= DEAD:
            return
        if n == 0 or (box.body is not None and box.body.job.n == n):
            self._die(box, why)

    def collect(self) -> None:
        """Read the rings of those workers that chance names, and reap the dead among them."""
        for box in list(self.workers.values()):
            if self.calm or self._random.random() < 0.7:
                self._read(box)
                if box.state == DEAD:
                    self._reap(box)

    def take_news(self) -> list[ev.Event]:
        """Return what the scheduler is told in this turn; what is late comes in a later one, still in order."""
        events = []
        # What `take_back` delivers is told in the turn after it.
        prompt = max((index for index, news in enumerate(self.news) if isinstance(news.event, ev.TakenBack)), default=-1)
        while self.news and (prompt >= 0 or self.calm or self._random.random() >= self._conditions.late):
            prompt -= 1
            event, worker, read, reaped = self.news.popleft()
            box = self.workers.get(worker)
            if box is not None:
                box.told = max(box.told, read)
                box.gone = box.gone or reaped
            events.append(event)
        return events

    def mark(self) -> Mark:
        """Return how much has been told so far, for `committed`."""
        return [(box, box.told, box.gone) for box in self.workers.values()]

    def committed(self, mark: Mark) -> None:
        """All that was told up to the mark is stored: forget the records it came from, and the pages of the dead."""
        for box, told, gone in mark:
            if gone:
                self.workers.pop(box.worker, None)
            elif told > box.freed:
                del box.ring[: told - box.freed]
                box.freed = told

    # ---- what happens by itself -------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let one worker take one step."""
        alive = [box for box in self.workers.values() if box.state < DEAD]
        if alive:
            self._step(self._random.choice(alive))

    def step_all(self) -> bool:
        """Let every worker take one step; return whether any did something."""
        return sum(self._step(box) for box in list(self.workers.values()) if box.state < DEAD) > 0

    def expire(self) -> None:
        """Kill what has run out of time."""
        mono = self._clock.now().mono
        for box in self.workers.values():
            if box.kills and box.state == ALIVE and box.body is not None:
                n = box.body.job.n
                due = [(at, why) for at, number, why in box.kills if number == n and at <= mono]
                if not due:
                    continue
                if not self.calm and self._random.random() < 0.1:
                    # What comes next was forbidden first, and then the body ended by itself, in time.
                    self._end(box, box.body, jobs.OK, None)
                    box.limit = min(box.limit, n)
                    if box.highest == n:
                        box.limit = NO_LIMIT
                else:
                    self._die(box, min(due)[1])

    def next_kill(self) -> int | None:
        """Return when (monotonic ns) the next body runs out of time."""
        return min(
            (
                at
                for box in self.workers.values()
                if box.state == ALIVE and box.body is not None
                for at, n, _ in box.kills
                if n == box.body.job.n
            ),
            default=None,
        )

    def stop_all(self) -> list[ModelWorker]:
        """The supervisor is gone: the workers go on for a moment, then die. Return what their pages say."""
        for _ in range(self._random.choice((0, 0, 1, 2, 3))):
            self.step_all()
        pages = list(self.workers.values())
        for box in pages:
            box.state = DEAD
        return pages

    def _step(self, box: ModelWorker) -> bool:
        if box.state == BOOTING:
            self._boot(box)
        elif box.body is not None:
            return self._go_on(box, box.body)
        elif box.pipe and not box.spent:
            self._begin(box, box.pipe.popleft())
        elif not self.calm and self._random.random() < self._conditions.idle_death:
            self._die(box, "")
        else:
            return False
        return True

    def _boot(self, box: ModelWorker) -> None:
        if not self.calm and self._random.random() < self._conditions.boot_failure:
            if self._random.random() < 0.8:
                del self.workers[box.worker]
                self.news.append(News(ev.WorkerFailed(box.worker, "fork: EAGAIN")))
            else:
                self._die(box, "")
            return
        box.state = ALIVE
        self.news.append(News(ev.WorkerReady(box.worker, box.pid), box.worker))

    def _begin(self, box: ModelWorker, job: ModelJob) -> None:
        if box.limit < job.n:
            box.ring.append(Skipped(job.n))
            return
        fate = self._fates.of(job.task_id, job.attempt)
        box.last_begun = job.n
        now = self._clock.now().mono
        if job.n in box.cancels and (job.n == min(box.cancels) or self._random.random() < 0.5):  # the page names only one
            self._report(box, job, fate, now, jobs.CANCELLED, TaskError("cancelled", "before it began", False))
            return
        self._on_begin(job)
        fate.begun = True
        box.body = Body(job, fate, now, endless=not self.calm and self._random.random() < self._conditions.endless)
        options = job.options
        swells = None if options.memory is None else self._random.choice((None, None, 0.02))  # until it uses too much
        for seconds, why in ((options.timeout_s, "timeout"), (options.heartbeat_timeout_s, "heartbeat"), (swells, "memory")):
            if seconds is not None:
                box.kills.append((now + round(seconds * NS), job.n, why))
        if job.deadline is not None:
            box.kills.append((job.deadline, job.n, "deadline"))

    def _go_on(self, box: ModelWorker, body: Body) -> bool:
        """Let a body take a step; return whether it did anything."""
        random, job = self._random, body.job
        if job.n in box.cancels and not body.deaf:
            chance = random.random()
            if chance < 0.6:
                self._end(box, body, jobs.CANCELLED, TaskError("cancelled", "", False))
                return True
            body.deaf = chance > 0.8
        if body.endless:
            return self._only_when_made_to(box, body)
        if self.calm:
            self._end(box, body, jobs.OK, None)
            return True
        chance = random.random()
        if chance < self._conditions.crash:
            self._die(box, "")
        elif chance < 0.25:
            box.ring.append(Checkpointed(job.n, job.task_id, job.attempt, b"state"))
        elif chance < 0.7:
            self._end(box, body, *self.outcome())
        else:
            return False
        return True

    def _only_when_made_to(self, box: ModelWorker, body: Body) -> bool:
        """In a calm world an endless body ends too, unless somebody must end it."""
        soon = self._clock.now().mono + SOON_NS
        if self.calm and not any(n == body.job.n and at < soon for at, n, _ in box.kills):
            self._end(box, body, jobs.OK, None)
            return True
        return False

    def outcome(self) -> tuple[int, TaskError | None]:
        """Draw how a body ends."""
        chance = self._random.random()
        if chance < 0.4:
            return jobs.OK, None
        if chance < 0.48:
            return jobs.SNOOZED, None
        if chance < 0.51:
            return jobs.CANCELLED, TaskError("cancelled", "its own wish", False)
        if chance < 0.55:
            return jobs.SOFT_TIMEOUT, TaskError("timeout", "soft")
        if chance < 0.6:
            return jobs.ERROR, TaskError("decode", "not readable", False)
        if chance < 0.63:
            return jobs.ERROR, TaskError("handler", "never again", False)
        return jobs.ERROR, TaskError("handler", "bad luck", backoff_s=self._random.choice((None, None, 0.0, 3.0, 60.0)))

    def _end(self, box: ModelWorker, body: Body, outcome: int, error: TaskError | None) -> None:
        self._report(box, body.job, body.fate, body.began_ns, outcome, error)
        box.body = None

    def _report(self, box: ModelWorker, job: ModelJob, fate: Fate, began: int, outcome: int, error: TaskError | None) -> None:
        snooze_s = self._random.choice((0.0, 0.5, 20.0)) if outcome == jobs.SNOOZED else 0.0
        dirty = not self.calm and self._random.random() < 0.03
        duration = DURATIONS_NS.get(job.name, 500_000) if fate.begun else 0
        report = Report(
            job.n, job.task_id, job.attempt, outcome, began, duration, value=b"", error=error, snooze_s=snooze_s, dirty=dirty
        )
        if outcome == jobs.OK:
            report.effects = effects.drawn(self._random, job.task_id, job.attempt)
            report.children = None if self.calm else children.drawn(self._conditions, job.task_id, job.attempt)
        fate.report, fate.end = report, REPORTED
        box.ring.append(report)
        box.spent = dirty
        box.kills = [kill for kill in box.kills if kill[1] != job.n]
        box.cancels.discard(job.n)

    def _die(self, box: ModelWorker, why: str) -> None:
        box.state, box.why = DEAD, why
        box.pipe.clear()
        if box.body is not None:
            box.body.fate.end = why or CRASH

    def _read(self, box: ModelWorker) -> None:
        """Make events of the records that are whole and were not read yet."""
        reports: list[Report] = []
        for record in box.unread():
            box.read += 1
            if isinstance(record, Report):
                reports.append(copy.copy(record))  # what is decoded belongs to whoever reads
                continue
            self._tell(box, reports, box.read - 1)
            reports = []
            if isinstance(record, Checkpointed):
                self.news.append(News(ev.Saved(box.worker, record), box.worker, box.read))
                continue
            assert isinstance(record, Skipped)
            if box.taken_above is None or record.n <= box.taken_above:  # a kill had forbidden it that came too late
                box.taken_above = record.n - 1
                self.news.append(News(ev.TakenBack(box.worker, record.n - 1), box.worker))
            if record.n == box.highest:
                self._allow(box)
        self._tell(box, reports, box.read)

    def _tell(self, box: ModelWorker, reports: list[Report], read: int) -> None:
        if reports:
            self.news.append(News(ev.Reported(box.worker, box.pid, reports), box.worker, read))

    def _reap(self, box: ModelWorker) -> None:
        body, why = box.body, box.why
        error = TaskError("panic", "its process died")
        if why in ("timeout", "heartbeat", "memory"):
            error = TaskError(why, f"its {why} passed")
        elif why == "deadline":
            error = TaskError(why, "its deadline passed", False)
        begun, began_ns = (body.job.n, body.began_ns) if body is not None else (0, 0)
        event = ev.WorkerDied(box.worker, box.pid, begun, began_ns, why, error)
        self.news.append(News(event, box.worker, box.read, reaped=True))
        box.state = REAPED
