"""Killing a process and all that descends from it."""

from __future__ import annotations

import os
import signal

from taskpool.engines import linux
from taskpool.memory import resident

TRACKER_S = 1.5  # how long a resource tracker may go on after the death of those it served


def kill_tree(pid: int, parent: int) -> None:
    """Kill a process, if that is its parent still, and all below it; parents first, so that they make no new ones.

    What cannot be looked at (no descriptor is left, it runs as somebody else) is left to a later sweep. So are resource trackers.
    """
    me = os.getpid()
    waiting = [(pid, parent)]
    while waiting:
        pid, parent = waiting.pop()
        try:
            pidfd = linux.pidfd_open(pid)
            if pidfd is None:
                continue
            try:
                entry = linux.process(pid)  # of this very process, which the pidfd holds, unless it has ended
                if entry is not None and entry.ppid in (parent, me) and not is_tracker(pid):
                    below = linux.children(pid)
                    linux.pidfd_signal(pidfd, signal.SIGKILL)
                    waiting += [(child, pid) for child in below]
            finally:
                os.close(pidfd)
        except OSError:
            continue


def kill_held(pid: int, pidfd: int) -> None:
    """Kill a process that is held by its pidfd, whatever happens, and all below it as `kill_tree` does."""
    try:
        below = linux.children(pid)
    except OSError:
        below = []
    linux.pidfd_signal(pidfd, signal.SIGKILL)
    for child in below:
        kill_tree(child, pid)


def memory(pid: int) -> int:
    """Return the resident bytes of a process and all below it. What they share counts once for each."""
    pids = [pid]
    for one in pids:
        try:
            pids += linux.children(one)
        except OSError:
            continue
    return resident(pids)


def is_tracker(pid: int) -> bool:
    """Return whether it is a resource tracker of multiprocessing.

    It frees shared memory when all its users are dead, and then ends by itself. To kill it before is to lose the memory.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker import main" in file.read()
    except OSError:
        return False
