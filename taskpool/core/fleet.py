"""The workers as the scheduler sees them: who is coming, takes part, stands by or leaves; how the dead are replaced.

`size` workers run tasks; spares stand ready, so that a death costs no time. Where `size_max` allows more, the size grows at once
with the work that finds no worker, and shrinks to what was needed after `idle_ns` in which that was less. Replacing is bounded:
workers that cannot be started, or die before they are ready, are tried again less and less often, and a burst of deaths is made
good at a bounded rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from taskpool.clock import NS, Instant
from taskpool.core.commands import Kill, Spawn
from taskpool.core.mailbox import Mailbox

BOOT_FAILURES_MAX = 5  # workers that die before they are ready …
BOOT_FAILURES_WITHIN_NS = 10 * NS  # … in that time end the pool
SPAWNS_PER_S_MAX = 100  # or the whole pool, if that is larger
IDLE_NS = 10 * NS  # so long some are not needed, then they leave
SPAWN_BACKOFF_MIN_NS = NS // 10
SPAWN_BACKOFF_MAX_NS = 30 * NS


class Fleet:
    """All workers by number. restarts: how many have died."""

    def __init__(
        self, size: int, spares: int, size_max: int = 0, idle_ns: int = IDLE_NS, labels: Mapping[str, int] | None = None
    ) -> None:
        """size: how many may run tasks at the same time, size_max: how many under load; spares: how many more stand ready.

        labels: how many of those that take part have each; whoever takes the place of one that died gets its labels.
        """
        self._labels = dict(labels or {})
        self.size = self._size_min = size
        self.size_max = max(size, size_max)
        self._idle_ns = idle_ns
        self._quiet_until: int | None = None  # monotonic ns: less than all are needed, and if that lasts so long, some leave
        self._needed = 0  # the most that were needed since that began
        self.spares = spares
        self.workers: dict[int, Mailbox] = {}
        self.next_worker = 1
        self.restarts = 0
        self._boot_failures: list[int] = []  # monotonic ns of the latest
        self._spawn_after = 0  # monotonic ns; 0: whenever one is wanted
        self._spawn_backoff = SPAWN_BACKOFF_MIN_NS
        self._no_room = False  # the latest could not be started
        self._spawned: deque[int] = deque()  # monotonic ns of the spawns of the last second

    # ---- what is told of them ---------------------------------------------------------------------------------------

    def ready(self, worker: int, pid: int) -> None:
        """A worker is there."""
        box = self.workers.get(worker)
        if box is not None:
            box.pid = pid
            self._no_room = False
            self._spawn_backoff = SPAWN_BACKOFF_MIN_NS

    def failed(self, worker: int, now: Instant) -> None:
        """A worker could not be started."""
        self.workers.pop(worker, None)
        self._no_room = True
        self._back_off(now)

    def died(self, worker: int, ours: bool, now: Instant) -> Mailbox | None:
        """Take a dead worker out and return what it held; None if it is unknown. ours: we killed it."""
        box = self.workers.pop(worker, None)
        if box is None:
            return None
        self.restarts += 1
        if not box.pid and not ours:
            recent = [at for at in self._boot_failures if now.mono - at < BOOT_FAILURES_WITHIN_NS]
            self._boot_failures = [*recent, now.mono]
            self._back_off(now)
        elif self._no_room:
            # What this one held, such as its descriptors, is free now: ask again soon.
            self._spawn_backoff = SPAWN_BACKOFF_MIN_NS
            self._spawn_after = min(self._spawn_after, now.mono + SPAWN_BACKOFF_MIN_NS)
        return box

    def _back_off(self, now: Instant) -> None:
        self._spawn_after = now.mono + self._spawn_backoff
        self._spawn_backoff = min(self._spawn_backoff * 2, SPAWN_BACKOFF_MAX_NS)

    @property
    def is_stillborn(self) -> bool:
        """Whether so many died before they were ready that more of them make no sense."""
        return len(self._boot_failures) >= BOOT_FAILURES_MAX

    # ---- what follows -----------------------------------------------------------------------------------------------

    @property
    def next_spawn(self) -> int:
        """Return the time (monotonic ns) before which none is started; 0: none is waited for."""
        return self._spawn_after

    @property
    def next_shrink(self) -> int | None:
        """Return the time (monotonic ns) at which some leave unless they are needed before."""
        return self._quiet_until

    def scale(self, waiting: int, now: Instant) -> list[Kill]:
        """Fit the size to the work: the busy, and what waits though it might start. Return the commands that end workers."""
        if self.size_max == self._size_min:
            return []
        # One that is yet to pass over what was taken back cannot leave.
        busy = sum(bool(box.active and (box.sent or box.taking_back) and not box.leaving) for box in self.workers.values())
        needed = min(self.size_max, busy + waiting)
        if needed >= self.size:
            self.size = needed
            self._quiet_until = None
        elif self.size > self._size_min:
            if self._quiet_until is None:
                self._quiet_until, self._needed = now.mono + self._idle_ns, needed
            self._needed = max(self._needed, needed)
            if now.mono >= self._quiet_until:
                self.size = max(self._size_min, self._needed)
                self._quiet_until = None
        return self._dismiss()

    def _dismiss(self) -> list[Kill]:
        """End idle workers beyond the size and the spares."""
        idle = [box for box in self.workers.values() if box.pid and not box.sent and not box.leaving and not box.taking_back]
        active = sum(box.active and not box.leaving for box in self.workers.values())
        too_many = sum(not box.leaving for box in self.workers.values()) - self.size - self.spares
        kills = []
        for box in sorted(idle, key=lambda box: not box.active):
            if active > self.size if box.active else too_many > 0:
                active -= box.active
                too_many -= 1
                box.leaving = True
                kills.append(Kill(box.worker, 0, "retire"))
        return kills

    def activate(self) -> None:
        """Let ready workers take part, up to `size`; the others stand by."""
        boxes = self.workers.values()
        active = sum(box.active and not box.leaving for box in boxes)
        if active < self.size:
            for box in boxes:
                if box.pid and not box.active and not box.leaving:
                    box.active = True
                    active += 1
                    if active == self.size:
                        break
        if self._labels:
            self._label()

    def _label(self) -> None:
        """Give each label to so many of those that take part as there should be."""
        boxes = [box for box in self.workers.values() if box.active and not box.leaving]
        for label, count in self._labels.items():
            lacking = count - sum(label in box.labels for box in boxes)
            for box in boxes:
                if lacking > 0 and label not in box.labels:
                    box.labels |= {label}
                    lacking -= 1

    def spawn(self, now: Instant) -> list[Spawn]:
        """Return the commands that start what is missing, as far as that may be now."""
        if now.mono < self._spawn_after:
            return []
        self._spawn_after = 0
        boxes = self.workers.values()
        coming = sum(1 for box in boxes if not box.leaving)
        ready = sum(1 for box in boxes if box.pid and not box.leaving)
        # The spare comes when all others are there: the first result does not wait for it.
        want = self.size + (self.spares if ready >= self.size else 0)
        spawns = []
        for _ in range(want - coming):
            if not self._may_spawn(now):
                break
            self.workers[self.next_worker] = Mailbox(self.next_worker)
            spawns.append(Spawn(self.next_worker))
            self.next_worker += 1
        return spawns

    def _may_spawn(self, now: Instant) -> bool:
        """Bound how fast workers that keep dying are replaced; note one more, or set the timer for when it may be."""
        spawned = self._spawned
        while spawned and now.mono - spawned[0] >= NS:
            spawned.popleft()
        if len(spawned) >= max(SPAWNS_PER_S_MAX, self.size + self.spares):
            self._spawn_after = spawned[0] + NS
            return False
        spawned.append(now.mono)
        return True

    def check(self) -> None:
        """Assert the invariants; the simulation has it called after every step."""
        for box in self.workers.values():
            assert not box.sent or box.pid, f"worker {box.worker} was sent work before it was ready"
        active = sum(box.active and not box.leaving for box in self.workers.values())
        assert active <= self.size, f"{active} workers take part; the pool has {self.size}"
        assert self._size_min <= self.size <= self.size_max, f"the pool has {self.size} workers"
