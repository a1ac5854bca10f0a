"""Schedules: which of their planned times make a task, and what becomes of the others. Pure, like the scheduler it belongs to.

Each schedule stands in a heap under the instant at which something is next to be done for it, so that ten thousand of them cost
nothing while none is due. There is one rule for the next start after a death, for a clock that jumped forward and for the ordinary
course of things: all times planned up to now, in order, are decided on, and each gets its row. Planned times only rise, so a clock
that jumps back makes the schedule wait until it has caught up, and nothing fires twice.

An occurrence, its task and how far the schedule is are stored in one transaction. Where the store refuses the task (no room), it
takes none of them, and `dropped` puts the schedule back to the earliest of the times that are not stored.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from taskpool.clock import US, Instant
from taskpool.core.commands import Advance, Agree, CancelLive, Forget, Keep, Occur, Plan
from taskpool.core.digest import digest
from taskpool.core.events import CronAsked, ScheduleRow, TaskRow
from taskpool.core.lifecycle import FAILED
from taskpool.model import Codec, Occurrence, Options, Schedule, TaskSpec, encode

NextAfter = Callable[[str, str, int, int], int | None]  # (spec, zone, after, anchor) → planned time, all wall µs

SLICE_MAX: Final = 1_000  # occurrences of one schedule decided on in one turn
QUEUED_MAX: Final = 1_000  # of one schedule that wait behind their forerunner; more are skipped
LATE_US: Final = 60 * US  # what is later than this was missed
CATCH_UP_S: Final = 86_400.0  # how far back missed="all" goes unless told
REFUSED_WAIT_US: Final = US  # until a task that found no room is tried again
FIXED: Final = (  # what a schedule is, as opposed to how far it is
    "spec", "handler", "tz", "missed", "catch_up_s", "overlap", "jitter_s", "codec", "options", "queue", "priority",
    "deadline_s", "expires_s",
)  # fmt: skip


def never(spec: str, tz: str, after: int, anchor: int) -> int | None:
    """Return None: the calendar of a scheduler that has no schedules."""
    return None


class Firing(msgspec.Struct):
    """A task to make. by_hand: somebody said `run`."""

    name: str
    planned_at: int
    spec: TaskSpec
    options: Options
    by_hand: bool = False


class Job(msgspec.Struct):
    """A schedule at work. due_at: when to look at it next (wall µs); last_at: the latest planned time that has its row."""

    schedule: Schedule
    next_at: int | None
    live: set[int]
    queued: deque[int]
    last_at: int
    total: int
    err_count: int
    paused: bool
    due_at: int | None = None

    def shown(self) -> Schedule:
        """Return the schedule as it stands now."""
        return msgspec.structs.replace(
            self.schedule, next_at=self.next_at, total=self.total, err_count=self.err_count, paused=self.paused
        )


class Cron:
    """All schedules of a store."""

    def __init__(self, next_after: NextAfter) -> None:
        self._next_after = next_after
        self.jobs: dict[str, Job] = {}
        self._heap: list[tuple[int, str]] = []
        self._changed: dict[str, None] = {}  # in this turn
        self._fired: dict[int, str] = {}  # task → schedule, of this turn and the last: the store may still refuse them
        self._new: set[int] = set()  # of these, in this turn
        self._before: dict[str, tuple[int | None, list[int]]] = {}  # (next_at, queued) of what was looked at in the last turn

    # ---- opening ----------------------------------------------------------------------------------------------------

    def opened(self, rows: list[ScheduleRow]) -> list[CancelLive]:
        """Take the schedules of a store; return what a death left undone of cancel_previous."""
        undone = []
        for row in rows:
            schedule = row.schedule
            job = self.jobs[schedule.name] = Job(
                schedule,
                schedule.next_at,
                set(row.live),
                deque(sorted(row.queued)),
                row.last_at,
                schedule.total,
                schedule.err_count,
                schedule.paused,
            )
            self._arm(job)
            if schedule.overlap == "cancel_previous" and len(job.live) > 1:
                undone.append(CancelLive(sorted(job.live)[:-1], _words(schedule.name)))
        return undone

    def _next(self, schedule: Schedule, after: int) -> int | None:
        return self._next_after(schedule.spec, schedule.tz, after, schedule.created_at)

    # ---- the heap ---------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """Return when something is next to be done (wall µs), None if never."""
        heap = self._heap
        while heap and not self._is_due(*heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _is_due(self, at: int, name: str) -> bool:
        job = self.jobs.get(name)
        return job is not None and job.due_at == at

    def _arm(self, job: Job, at: int | None = None) -> None:
        """Look at a schedule next at that time: by itself, when its next time comes, or at once when the queued may go on."""
        if at is None:
            if job.queued and not job.live:
                at = 0
            elif job.next_at is not None and not job.paused:
                at = self._due_at(job.schedule, job.next_at)
        job.due_at = at
        if at is not None:
            heapq.heappush(self._heap, (at, job.schedule.name))

    @staticmethod
    def _due_at(schedule: Schedule, planned: int) -> int:
        """Return when a planned time fires: later by its jitter, which is a hash, so that a replay sees the same."""
        if schedule.jitter_s <= 0:
            return planned
        drawn = digest(f"{schedule.name}\0{planned}".encode(), 8)
        return planned + int.from_bytes(drawn, "big") * round(schedule.jitter_s * US) // (1 << 64)

    # ---- a turn -----------------------------------------------------------------------------------------------------

    def due(self, now: Instant) -> Iterator[Firing | Occur | CancelLive]:
        """Yield what is due: a Firing is to be made a task and told to `fired` before the next is asked for."""
        self._fired = {task_id: name for task_id, name in self._fired.items() if task_id in self._new}
        self._new.clear()
        self._before.clear()
        looked: list[Job] = []
        while (at := self.next_due()) is not None and at <= now.wall:
            _, name = heapq.heappop(self._heap)
            job = self.jobs[name]
            job.due_at = None
            looked.append(job)
            self._before[name] = (job.next_at, list(job.queued))
            if job.queued and not job.live:
                yield self._firing(job, job.queued.popleft(), now)
            if not job.paused:
                yield from self._occurrences(job, now)
        for job in looked:
            self._arm(job)

    def _occurrences(self, job: Job, now: Instant) -> Iterator[Firing | Occur | CancelLive]:
        """Decide on the times planned up to now: at most SLICE_MAX of them, the others in the turns that follow."""
        schedule = job.schedule
        for _ in range(SLICE_MAX):
            planned = job.next_at
            if planned is None or self._due_at(schedule, planned) > now.wall:
                return
            job.next_at = self._next(schedule, planned)
            more = job.next_at is not None and self._due_at(schedule, job.next_at) <= now.wall
            reason = _missed(schedule, planned, now.wall, more=more)
            self._changed[schedule.name] = None
            if reason:
                yield self._skip(job, planned, reason, now)
            else:
                yield from self._offer(job, planned, now)
        self._leap(job, now)

    def _leap(self, job: Job, now: Instant) -> None:
        """So many were missed that not each is worth a row: pass over half of the time up to now, or what is not caught up."""
        schedule, planned = job.schedule, job.next_at
        if planned is None:
            return
        to = (planned + now.wall) // 2
        if schedule.missed == "all":
            to = now.wall - _catch_up_us(schedule) - 1
        later = self._next(schedule, to) if to > planned else None
        if later is not None and self._due_at(schedule, later) <= now.wall:
            job.next_at = later

    def _offer(self, job: Job, planned: int, now: Instant) -> Iterator[Firing | Occur | CancelLive]:
        """A time has come: fire, unless a task of the schedule has not ended and its policy says otherwise."""
        overlap = job.schedule.overlap
        if not job.live and not job.queued:
            yield self._firing(job, planned, now)
        elif overlap == "skip":
            yield self._skip(job, planned, "overlap: its forerunner has not ended", now)
        elif overlap == "queue":
            if len(job.queued) < QUEUED_MAX:
                job.queued.append(planned)
                yield self._occur(job, Occurrence(job.schedule.name, planned, "queued", "", None, now.wall))
            else:
                yield self._skip(job, planned, f"overlap: {QUEUED_MAX} wait already", now)
        else:
            if overlap == "cancel_previous":
                yield CancelLive(sorted(job.live), _words(job.schedule.name))
            yield self._firing(job, planned, now)

    def _skip(self, job: Job, planned: int, reason: str, now: Instant) -> Occur:
        return self._occur(job, Occurrence(job.schedule.name, planned, "skipped", reason, None, now.wall))

    def _occur(self, job: Job, occurrence: Occurrence) -> Occur:
        job.last_at = max(job.last_at, occurrence.planned_at)
        self._changed[job.schedule.name] = None
        return Occur(occurrence)

    def _firing(self, job: Job, planned: int, now: Instant, *, by_hand: bool = False) -> Firing:
        schedule = job.schedule
        options = schedule.options
        if schedule.deadline_s is not None:
            options = msgspec.structs.replace(options, deadline_at=now.wall + round(schedule.deadline_s * US))
        if schedule.expires_s is not None:
            options = msgspec.structs.replace(options, expires_at=now.wall + round(schedule.expires_s * US))
        uid = _uid(f"{schedule.name}\0{planned}\0{schedule.created_at}\0{now}", now.wall)
        spec = TaskSpec(uid, schedule.handler, schedule.codec, schedule.payload, encode(options), schedule.queue, schedule.priority)
        spec.key = schedule.key
        return Firing(schedule.name, planned, spec, options, by_hand)

    def fired(self, firing: Firing, task_id: int, now: Instant) -> Occur:
        """A firing became that task: return its occurrence."""
        job = self.jobs[firing.name]
        job.live.add(task_id)
        job.total += 1
        self._fired[task_id] = firing.name
        self._new.add(task_id)
        reason = "by hand" if firing.by_hand else ""
        return self._occur(job, Occurrence(firing.name, firing.planned_at, "fired", reason, task_id, now.wall))

    def advances(self) -> list[Advance]:
        """Return how far the schedules are that changed in this turn."""
        changed, self._changed = self._changed, {}
        jobs = [self.jobs[name] for name in changed if name in self.jobs]
        return [Advance(job.schedule.name, job.next_at, job.total, job.err_count) for job in jobs]

    # ---- what becomes of the tasks ----------------------------------------------------------------------------------

    def ended(self, row: TaskRow) -> None:
        """A task of a schedule came to its end."""
        job = self.jobs.get(row.options.recurrence)
        if job is None or row.id not in job.live:
            return
        job.live.discard(row.id)
        if row.status == FAILED:
            job.err_count += 1
            self._changed[job.schedule.name] = None
        if job.queued and not job.live:
            self._arm(job)

    def revived(self, row: TaskRow) -> None:
        """A task of a schedule was given another round by hand."""
        job = self.jobs.get(row.options.recurrence)
        if job is not None:
            job.live.add(row.id)

    def dropped(self, task_id: int, now: Instant) -> None:
        """The store refused a task, and with it all that the last turn said of its schedule: it is said again, a little later."""
        job = self.jobs.get(self._fired.pop(task_id, ""))
        if job is None:
            return
        name = job.schedule.name
        job.live.discard(task_id)
        job.total -= 1
        self._changed[name] = None
        if name in self._before:
            job.next_at, queued = self._before.pop(name)
            job.queued = deque(queued)
            self._arm(job, now.wall + REFUSED_WAIT_US)

    # ---- what people do to schedules --------------------------------------------------------------------------------

    def asked(self, event: CronAsked, now: Instant) -> tuple[list[Plan | Agree], Firing | None]:
        """Return what follows from a request, its answer last, and the task that a run by hand makes."""
        done = Agree(event.client, event.seq, [])
        if event.verb in ("add", "replace"):
            assert event.schedule is not None
            return [*self._add(event.schedule, now, done, replace=event.verb == "replace"), done], None
        job = self.jobs.get(event.name)
        if job is None:
            done.code, done.message = "not_found", f"there is no schedule {event.name!r}"
            return [done], None
        match event.verb:
            case "cancel":
                del self.jobs[event.name]
                self._changed.pop(event.name, None)
                return [Forget(event.name), done], None
            case "run":
                planned = max(now.wall, job.last_at + 1)
                planned += planned % US == 0  # never a time that could be planned
                return [done], self._firing(job, planned, now, by_hand=True)
        pause = event.verb == "pause"
        if pause != job.paused:
            job.paused = pause
            job.next_at = None if pause else self._next(job.schedule, max(now.wall, job.last_at))
            self._arm(job)
        return [Keep(job.shown()), done], None

    def _add(self, schedule: Schedule, now: Instant, done: Agree, *, replace: bool) -> list[Plan]:
        job = self.jobs.get(schedule.name)
        if job is not None and _same(job.schedule, schedule):
            if job.schedule.payload == schedule.payload:
                return []  # as it is already
            job.schedule = msgspec.structs.replace(job.schedule, payload=schedule.payload)  # the latest arguments count
            return [Keep(job.shown())]
        if job is not None and not replace:
            done.code, done.message = "already_exists", f"there is another schedule {schedule.name!r} already"
            done.hint = "give it another name, or replace=True"
            return []
        created = now.wall if job is None else job.schedule.created_at
        schedule = msgspec.structs.replace(schedule, created_at=created, paused=False, total=0, err_count=0)
        if job is None:
            job = self.jobs[schedule.name] = Job(schedule, None, set(), deque(), 0, 0, 0, False)
        job.schedule = schedule
        if not job.paused:
            job.next_at = self._next(schedule, max(now.wall, job.last_at))
        self._arm(job)
        return [Keep(job.shown())]


def _same(one: Schedule, other: Schedule) -> bool:
    """Whether two say the same: payloads too, where the same arguments always give the same bytes."""
    if any(getattr(one, field) != getattr(other, field) for field in FIXED):
        return False
    return one.codec not in (Codec.MSGPACK, Codec.JSON) or one.payload == other.payload


def _catch_up_us(schedule: Schedule) -> int:
    return round((CATCH_UP_S if schedule.catch_up_s is None else schedule.catch_up_s) * US)


def _missed(schedule: Schedule, planned: int, now: int, *, more: bool) -> str:
    """Return why a time that is due makes no task, "" if it makes one. more: a later time is due too."""
    late = now - planned
    if not more and late <= LATE_US + round(schedule.jitter_s * US):
        return ""
    if schedule.missed == "skip":
        return "missed"
    if schedule.missed == "last" and more:
        return "missed: a later time is due too"
    if (schedule.missed == "all" or schedule.catch_up_s is not None) and late > _catch_up_us(schedule):
        return "missed: too long ago to catch up"
    return ""


def _uid(text: str, wall: int) -> bytes:
    """Return a UUIDv7 whose random part is a hash."""
    uid = bytearray((wall // 1000).to_bytes(6) + digest(text.encode(), 10))
    uid[6] = uid[6] & 0x0F | 0x70
    uid[8] = uid[8] & 0x3F | 0x80
    return bytes(uid)


def _words(name: str) -> str:
    return f"schedule {name} came due again"
