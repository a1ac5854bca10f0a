"""What may end the jobs of one worker, and when: timeouts, deadlines, heartbeats, memory, cancels.

`step` looks at the worker's page and does what is due; `next_mono` and `next_boot` say when it wants to look again. A job in a
mailbox has not begun, so it cannot be killed before now + timeout: then it is looked at again. Thus each look is either in time
to the nanosecond or too early, and nobody has to tell when a body begins.

Timeouts and heartbeats count on CLOCK_MONOTONIC, which a sleeping machine stops, deadlines on CLOCK_BOOTTIME, which it does not.
"""

from __future__ import annotations

from typing import Protocol

from taskpool.clock import NS
from taskpool.engines.engine import Limits
from taskpool.wire.page import (
    CANCEL,
    CANCEL_KIND,
    CANCEL_REQUEST,
    CANCEL_SOFT_TIMEOUT,
    CURRENT,
    PROGRESS_N,
    PROGRESS_SEQ,
    STARTED,
    Page,
)

MS = NS // 1000
STACK_LEAD_NS = 3 * MS  # the stack is asked for so long before a kill
REPEAT_NS = 200 * MS  # between two signals of a cancel
LATE_LOOK_NS = 5 * MS  # between looks at a job whose deadline has passed in a mailbox
MEMORY_LOOK_NS = 50 * MS  # between looks at how much memory a body uses
BEAT_LOOKS = 8  # looks per heartbeat period …
BEAT_LOOK_NS_MIN, BEAT_LOOK_NS_MAX = 10 * MS, NS  # … within these bounds


class Target(Protocol):
    """The process behind a page, as far as a watch may touch it."""

    def ask_stack(self) -> None:
        """Have it write its Python stack."""

    def interrupt(self) -> None:
        """Have it look at the page's CANCEL words."""

    def strike(self, n: int, why: str) -> bool:
        """Kill it if it runs job n; return whether it did."""

    def memory(self) -> int:
        """Return the bytes that it and all below it hold in memory."""


class _Cancel:
    __slots__ = ("kill_at", "n", "repeat_at", "why")

    def __init__(self, n: int, kill_at: int, why: str) -> None:
        self.n, self.kill_at, self.why = n, kill_at, why
        self.repeat_at = 0


class Watch:
    """The limits of one worker's jobs. Not thread-safe: the killer's lock is held around every call."""

    def __init__(self, page: Page, target: Target) -> None:
        self._page = page
        self._target = target
        self._limits: dict[int, Limits] = {}
        self._deadlines: dict[int, int] = {}  # n → ns of CLOCK_BOOTTIME
        self._cancels: dict[int, _Cancel] = {}
        self._asked = 0  # job whose stack was asked for
        self._soft = (0, 0)  # job that was told of its soft timeout, monotonic ns at which it is told again
        self._beat = (0, 0, 0)  # job, PROGRESS_SEQ, monotonic ns at which that was seen first
        self.memory_used = 0  # bytes, at the last look
        self.next_mono: int | None = None
        self.next_boot: int | None = None

    @property
    def busy(self) -> bool:
        """Whether any job is watched."""
        return bool(self._limits or self._cancels)

    def arm(self, limits: Limits, mono: int, boot: int, wall_us: int) -> None:
        """Watch a job that is about to be sent; the three readings are of one moment."""
        if not limits.any():
            return
        self._limits[limits.n] = limits
        if limits.deadline_at is not None:
            self._deadlines[limits.n] = boot + (limits.deadline_at - wall_us) * 1000
            self._boot(self._deadlines[limits.n] - STACK_LEAD_NS)
        self._wait(limits, mono, boot)

    def cancel(self, n: int, grace_s: float, why: str, mono: int) -> None:
        """Interrupt job n from now on, again and again, and kill it after the grace. A second call may only shorten it."""
        kill_at = mono + round(grace_s * NS)
        known = self._cancels.get(n)
        if known is None:
            self._cancels[n] = _Cancel(n, kill_at, why)
        elif kill_at < known.kill_at:
            known.kill_at, known.why = kill_at, why

    def disarm(self, n: int) -> None:
        """Job n has ended."""
        self._limits.pop(n, None)
        self._deadlines.pop(n, None)
        self._cancels.pop(n, None)

    def limits(self, n: int) -> Limits | None:
        """Return the limits of a job that is watched."""
        return self._limits.get(n)

    # ---- looking ----------------------------------------------------------------------------------------------------

    def is_due(self, mono: int, boot: int) -> bool:
        """Return whether it wants to look now."""
        return (self.next_mono is not None and self.next_mono <= mono) or (self.next_boot is not None and self.next_boot <= boot)

    def step(self, mono: int, boot: int) -> None:
        """Do what is due. Both readings were taken before this call, and are of one moment."""
        self.next_mono = self.next_boot = None
        n = self._page.words[CURRENT]
        for limits in list(self._limits.values()):
            if limits.n == n:
                if self._run(limits, mono, boot):
                    return
            else:
                self._wait(limits, mono, boot)
        if self._cancels:
            self._step_cancels(n, mono)

    def _wait(self, limits: Limits, mono: int, boot: int) -> None:
        """The job has not begun (or ended, unread): nothing can be due before its shortest limit from now."""
        spans = [one for one in (limits.timeout_s, limits.soft_timeout_s) if one is not None]
        if spans:
            self._mono(mono + max(round(min(spans) * NS) - STACK_LEAD_NS, MS))
        if limits.heartbeat_s is not None:
            self._mono(mono + _beat_look(limits.heartbeat_s))
        if limits.memory is not None:
            self._mono(mono + MEMORY_LOOK_NS)
        deadline = self._deadlines.get(limits.n)
        if deadline is not None:
            self._boot(max(deadline - STACK_LEAD_NS, boot + LATE_LOOK_NS))

    def _run(self, limits: Limits, mono: int, boot: int) -> bool:
        """The job's body runs: return whether it was killed."""
        words, n = self._page.words, limits.n
        began = words[STARTED]
        if limits.soft_timeout_s is not None and n not in self._cancels:
            self._soften(n, began + round(limits.soft_timeout_s * NS), mono)
        if limits.timeout_s is not None:
            kill_at = began + round(limits.timeout_s * NS) + self._page.extended_ns(n)
            if self._near(n, kill_at - mono, "timeout"):
                return True
            self._mono(mono + self._pause(n, kill_at - mono))
        if limits.heartbeat_s is not None:
            kill_at = self._heard(n, began, mono) + round(limits.heartbeat_s * NS)
            if self._near(n, kill_at - mono, "heartbeat"):
                return True
            self._mono(mono + min(_beat_look(limits.heartbeat_s), self._pause(n, kill_at - mono)))
        if limits.memory is not None and n not in self._cancels:
            self.memory_used = self._target.memory()
            if self.memory_used > limits.memory:
                self.cancel(n, STACK_LEAD_NS / NS, "memory", mono)
            self._mono(mono + MEMORY_LOOK_NS)
        deadline = self._deadlines.get(n)
        if deadline is not None:
            if self._near(n, deadline - boot, "deadline"):
                return True
            self._boot(boot + self._pause(n, deadline - boot))
        return False

    def _near(self, n: int, left_ns: int, why: str) -> bool:
        """Ask for the stack if the kill is near, kill if it is due; return whether it did."""
        if left_ns <= STACK_LEAD_NS and self._asked != n:
            self._asked = n
            self._target.ask_stack()
        return left_ns <= 0 and self._target.strike(n, why)

    def _pause(self, n: int, left_ns: int) -> int:
        """Return the ns until the next look at a kill that is left_ns away."""
        if left_ns <= 0:
            return LATE_LOOK_NS  # it was to be killed, but had ended: its report is on the way
        return left_ns if self._asked == n else left_ns - STACK_LEAD_NS

    def _soften(self, n: int, at: int, mono: int) -> None:
        """Signal the soft timeout, and again, for the first may hit a moment in which it cannot be raised; it is raised once."""
        told, again_at = self._soft
        if told == n:
            at = again_at
        if mono >= at:
            self._name(n, CANCEL_SOFT_TIMEOUT)
            self._target.interrupt()
            at = mono + REPEAT_NS
            self._soft = (n, at)
        self._mono(at)

    def _heard(self, n: int, began: int, mono: int) -> int:
        """Return when the job gave its last sign of life, as far as looks can tell."""
        seq = self._page.words[PROGRESS_SEQ]
        beat_n, beat_seq, at = self._beat
        if beat_n != n:
            at = mono if self._page.words[PROGRESS_N] == n else began
        elif beat_seq != seq:
            at = mono
        self._beat = (n, seq, at)
        return at

    def _step_cancels(self, n: int, mono: int) -> None:
        cancel = self._cancels.get(n)
        if cancel is None:
            # Those wait in the mailbox: the worker does not begin what is named here.
            self._name(min(self._cancels), CANCEL_REQUEST)
            self._mono(mono + REPEAT_NS)
            return
        left_ns = cancel.kill_at - mono
        if self._near(n, left_ns, cancel.why):
            return
        if mono >= cancel.repeat_at and left_ns > STACK_LEAD_NS:
            cancel.repeat_at = mono + REPEAT_NS
            self._name(n, CANCEL_REQUEST)
            self._target.interrupt()
        self._mono(mono + min(REPEAT_NS, self._pause(n, left_ns)))

    def _name(self, n: int, kind: int) -> None:
        words = self._page.words
        words[CANCEL_KIND] = kind
        words[CANCEL] = n

    def _mono(self, at: int) -> None:
        if self.next_mono is None or at < self.next_mono:
            self.next_mono = at

    def _boot(self, at: int) -> None:
        if self.next_boot is None or at < self.next_boot:
            self.next_boot = at


def _beat_look(heartbeat_s: float) -> int:
    """Return the ns between two looks at whether there was a heartbeat."""
    return min(max(round(heartbeat_s * NS) // BEAT_LOOKS, BEAT_LOOK_NS_MIN), BEAT_LOOK_NS_MAX)
