"""The few kernel services that the standard library does not offer: timerfd, subreaper, parent-death signal, process tables.

All of them are plain system calls through libc. Nothing here knows of tasks or workers.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from typing import NamedTuple

from taskpool.clock import NS

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
TFD_TIMER_ABSTIME = 1
CPUCLOCK_SCHED = 2  # of a process's own clocks, the one that the scheduler keeps
TICK_NS = NS // os.sysconf("SC_CLK_TCK")  # resolution of start times in /proc

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def become_subreaper() -> None:
    """Have orphaned descendants of this process become its children, instead of init's."""
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def on_parent_death(signo: int) -> None:
    """Have the kernel send that signal to this process when the thread that made it (or that it was reparented to) ends."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signo, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_name(name: str) -> None:
    """Name this process for `ps` and `top` (15 bytes are kept)."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """A timerfd: `fd` is readable from a moment on that `set` names. Exact to the kernel's slack, callable from any thread."""

    def __init__(self, clock: int) -> None:
        """Make a timer of time.CLOCK_MONOTONIC or, to count sleeps of the machine too, time.CLOCK_BOOTTIME."""
        self.fd = _checked(_libc.timerfd_create(clock, os.O_CLOEXEC | os.O_NONBLOCK), "timerfd_create")
        self.at: int | None = None

    def set(self, at_ns: int | None) -> None:
        """Ring at that reading of the clock (a past one: at once); None: never."""
        self.at = at_ns
        seconds, ns = divmod(max(1, at_ns), NS) if at_ns is not None else (0, 0)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, ns))
        _checked(_libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None), "timerfd_settime")

    def sooner(self, at_ns: int) -> None:
        """Ring at that reading, unless it is set to ring before."""
        if self.at is None or at_ns < self.at:
            self.set(at_ns)

    def clear(self) -> None:
        """Take note that it rang: `fd` is not readable any more, and nothing is set."""
        self.at = None
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class Process(NamedTuple):
    """A line of the process table. started_ns: CLOCK_BOOTTIME, rounded down to TICK_NS; state: one letter, Z is a zombie."""

    pid: int
    ppid: int
    group: int
    session: int
    state: str
    started_ns: int


def process(pid: int) -> Process | None:
    """Return what /proc says of a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything, parentheses too.
    state, ppid, group, session, *rest = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(ppid), int(group), int(session), state.decode(), int(rest[15]) * TICK_NS)


def processor_ns(pid: int) -> int:
    """Return how long (ns) all threads of a process have had a processor so far. OSError if there is no such process."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


def all_pids() -> list[int]:
    """Return the ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Return the ids of all children of a process, zombies included; empty if there is no such process."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            if os.path.exists(f"/proc/{pid}/task/{thread}"):  # a kernel without CONFIG_PROC_CHILDREN
                return [one.pid for one in map(process, all_pids()) if one is not None and one.ppid == pid]
    return found


def pidfd_open(pid: int) -> int | None:
    """Return a descriptor of the process, or None if there is none."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def pidfd_signal(pidfd: int, signo: int) -> bool:
    """Send a signal; False if the process is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, signo)
    except ProcessLookupError:
        return False
    return True


def wait_ended(pidfds: list[int], timeout_s: float) -> list[int]:
    """Wait until all these processes have ended (as zombies or altogether); return the pidfds of those that have not."""
    poll = select.poll()
    left = set(pidfds)
    for pidfd in left:
        poll.register(pidfd, select.POLLIN)
    until = time.monotonic() + timeout_s
    while left:
        for pidfd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            poll.unregister(pidfd)
            left.discard(pidfd)
        if time.monotonic() >= until:
            break
    return sorted(left)
