"""Killing a process and all that descends from it."""

from __future__ import annotations

import os
import signal

from taskpool.engines import linux

TRACKER_S = 1.0  # how long a resource tracker may go on after the death of those it served


def kill_tree(pid: int, parents: tuple[int, ...]) -> None:
    """Kill a process whose parent is one of these, then all below it, parents first, so that they make no new ones.

    What is not its descendant any more at the time of looking is left alone, and so are resource trackers.
    """
    pidfd = linux.pidfd_open(pid)
    if pidfd is None:
        return
    try:
        entry = linux.process(pid)  # of this very process, which the pidfd holds, unless it has ended
        if entry is not None and entry.ppid in parents and not is_tracker(pid):
            kill_with_all_below(pid, pidfd)
    finally:
        os.close(pidfd)


def kill_with_all_below(pid: int, pidfd: int) -> None:
    """Kill a process that is held by its pidfd, and all below it as `kill_tree` does."""
    below = linux.children(pid)
    try:
        linux.pidfd_signal(pidfd, signal.SIGKILL)
    except PermissionError:
        return  # it runs as somebody else now
    me = os.getpid()
    for child in below:
        kill_tree(child, (pid, me))  # of this process, if its parent is gone already


def is_tracker(pid: int) -> bool:
    """Return whether it is a resource tracker of multiprocessing.

    It frees shared memory when all its users are dead, and then ends by itself. To kill it before is to lose the memory.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker import main" in file.read()
    except OSError:
        return False
