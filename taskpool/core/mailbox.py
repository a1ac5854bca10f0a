"""What a worker has been sent, and how much more it may be sent.

While work waits, a worker holds up to LOAD_NS of measured work, so that it never waits for the supervisor between short tasks;
a task of unknown or long duration is sent alone. The last tasks of a queue are dealt out evenly. What is stuck behind a
body that runs longer than expected is taken back.
"""

from __future__ import annotations

from taskpool.core.events import TaskRow

MS = 1_000_000
LOAD_NS = 8 * MS  # measured work ahead of one worker
DEPTH_MAX = 256  # tasks ahead of one worker: the cheapest bodies are done in a quarter of LOAD_NS
PREFETCH_NS = 100 * MS  # up to this duration one task may wait behind another
OVERHEAD_NS = 10_000  # added to each measured duration: what a task costs around its body
STUCK_IDLE_NS = 2 * MS  # so long in one body, and the tasks behind it are taken back while another worker is idle …
STUCK_NS = 5 * MS  # … and while none is: twice that at the worst, as a body may begin just before the look


class Durations:
    """A moving mean of the durations of each handler, in ns."""

    __slots__ = ("_mean",)

    def __init__(self) -> None:
        self._mean: dict[str, int] = {}

    def observe(self, name: str, duration_ns: int) -> int:
        """Note one measured duration and return the new mean; a longer one counts at once, shorter ones little by little."""
        mean = self._mean.get(name)
        if mean is None or duration_ns > mean * 4:
            mean = duration_ns + OVERHEAD_NS
        else:
            mean = (mean * 7 + duration_ns + OVERHEAD_NS) >> 3
        self._mean[name] = mean
        return mean

    def expected(self, name: str) -> int | None:
        """Return the expected duration in ns, or None if it never ran."""
        return self._mean.get(name)


class Mailbox:
    """One worker as the scheduler sees it. `sent` holds, in order, number → task for all that was sent and has not ended."""

    __slots__ = (
        "active",
        "caller",
        "disowned",
        "done",
        "labels",
        "last_n",
        "leaving",
        "load_ns",
        "pid",
        "sent",
        "silent_since",
        "taking_back",
        "told",
        "worker",
    )

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.pid = 0  # 0: it is not ready yet
        self.sent: dict[int, TaskRow] = {}
        self.disowned: list[TaskRow] = []  # the store says otherwise of them, and their bodies may run until it is dead
        self.last_n = 0
        self.load_ns = 0
        self.silent_since = 0  # monotonic ns of the last sign of progress
        self.active = False  # False: a spare, or not ready
        self.taking_back = 0  # the highest number that was taken back and that it has not passed yet
        self.leaving = False  # to be killed; gets nothing more
        self.told = 0  # number of the body that was told that the pool stops
        self.done = 0
        self.labels: frozenset[str] = frozenset()  # what tasks may name as their target
        self.caller: tuple[int, int] | None = None  # a client that runs one task itself, and the number of its request

    def takes_work(self) -> bool:
        """Whether it may be sent something at all."""
        return self.active and not self.taking_back and not self.leaving

    def has_room(self, row: TaskRow, expected: int | None, quota: int) -> bool:
        """Whether it may be sent this task on top of what it has; quota: at most that many in all."""
        count = len(self.sent)
        if count == 0:
            return True
        if count >= quota or expected is None or row.options.has_worker_to_itself:
            return False
        if self.load_ns + expected <= LOAD_NS:
            return True
        return count == 1 and self.load_ns <= PREFETCH_NS and expected <= PREFETCH_NS

    def push(self, row: TaskRow, expected: int | None, now_mono: int) -> int:
        """Put a task in; return its number."""
        if not self.sent:
            self.silent_since = now_mono
        self.last_n += 1
        self.sent[self.last_n] = row
        # Unknown, or never to share a mailbox: no room behind it.
        self.load_ns += PREFETCH_NS * 10 if expected is None or row.options.has_worker_to_itself else expected
        row.worker, row.n = self.worker, self.last_n
        return self.last_n

    def remove(self, n: int, expected: int | None, now_mono: int) -> None:
        """Take a task out that ended or was given back; expected: what such a task takes."""
        row = self.sent.pop(n)
        row.n = 0
        self.silent_since = now_mono
        if not self.sent:
            self.load_ns = 0
        else:
            self.load_ns = max(0, self.load_ns - (expected or 0))

    def patience(self, durations: Durations, somebody_idle: bool) -> int | None:
        """Return how long (ns) the current body may run before the tasks behind it count as stuck; None: there are none."""
        if len(self.sent) < 2 or self.taking_back or self.leaving:
            return None
        if somebody_idle:
            return STUCK_IDLE_NS
        head = next(iter(self.sent.values()))
        expected = durations.expected(head.name) or 0
        return max(STUCK_NS, expected + expected // 2)
