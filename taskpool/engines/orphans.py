"""What tasks leave behind: found among our children and those of workers, killed and reaped.

A worker is a subreaper: whatever a task starts, daemons too, stays below the worker while that lives, and becomes a child of this
process when it dies. So an orphan here has no owner left and is killed at once; a leftover there is known by the time it started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from taskpool.clock import NS, boottime_ns
from taskpool.engines import linux, trees
from taskpool.engines.link import Link
from taskpool.wire.page import CURRENT, STARTED, Page
from taskpool.wire.poller import Poller

TRACKER_NS = round(trees.TRACKER_S * NS)


class Orphans:
    """Kills and reaps. `again` tells that somebody was spared for the moment, and a later sweep is needed."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._session = os.getsid(0)
        self._held: dict[int, int] = {}  # pid → pidfd of those killed and not reaped
        self._trackers: dict[int, int] = {}  # pid → monotonic ns at which it was seen first
        self._lag_ns = boottime_ns() - time.monotonic_ns()  # what the machine has slept before now
        self.again = False
        self.reaped = False

    def candidates(self) -> list[int]:
        """Return the children of this process. Ask before the newborn workers are learned of, or one may be taken for an orphan."""
        try:
            return linux.children(os.getpid())
        except OSError:  # no descriptor is left
            self.again = True
            return []

    def sweep(self, candidates: list[int], is_known: Callable[[int], bool]) -> None:
        """Kill all candidates that are neither known nor of this process's own session (which are its own helpers)."""
        self.reaped = False
        for pid in candidates:
            if pid in self._held or is_known(pid):
                continue
            entry = self._look(pid)
            if entry is None or entry.session == self._session or entry.ppid != os.getpid():
                continue
            if entry.state == "Z":
                _reap(pid)
                self.reaped = True  # its own children may have become ours since the candidates were listed
            elif not self._spared(pid):
                self._kill(pid)
        self._trackers = {pid: at for pid, at in self._trackers.items() if pid in candidates}

    def sweep_worker(self, link: Link) -> None:
        """Kill what ended attempts of a live worker have left: all if it is idle, else all that is older than what it runs."""
        page = link.page
        try:
            pids = linux.children(link.pid)
        except OSError:  # no descriptor is left
            self.again = True
            return
        if not pids:
            return
        began = _began(page)
        # If the machine has slept meanwhile, this reads as too early: something is then spared until the worker is idle.
        before = boottime_ns() if began is None else began + self._lag_ns
        for pid in pids:
            entry = self._look(pid)
            if entry is None or entry.state == "Z" or entry.ppid != link.pid:
                continue
            if link.born_boot < entry.started_ns + linux.TICK_NS and entry.started_ns + linux.TICK_NS <= before:
                if _began(page) == began:  # else it has begun something since, which this may belong to
                    trees.kill_tree(pid, link.pid)
                else:
                    self.again = True

    def _look(self, pid: int) -> linux.Process | None:
        try:
            return linux.process(pid)
        except OSError:  # no descriptor is left
            self.again = True
            return None

    def _spared(self, pid: int) -> bool:
        """A resource tracker of multiprocessing frees shared memory when its users are dead, and ends by itself."""
        if not trees.is_tracker(pid):
            return False
        now = time.monotonic_ns()
        if now - self._trackers.setdefault(pid, now) >= TRACKER_NS:
            return False
        self.again = True
        return True

    def _kill(self, pid: int) -> None:
        try:
            pidfd = linux.pidfd_open(pid)
        except OSError:  # no descriptor is left
            self.again = True
            return
        if pidfd is None:
            return
        try:
            trees.kill_held(pid, pidfd)
        except PermissionError:  # it runs as somebody else now
            os.close(pidfd)
            return
        self._held[pid] = pidfd
        self._poller.add(pidfd, lambda events: self._ended(pid))

    def _ended(self, pid: int) -> None:
        pidfd = self._held.pop(pid)
        self._poller.remove(pidfd)
        os.close(pidfd)
        _reap(pid)
        self.reaped = True  # its own children are ours now

    def wait(self, timeout_s: float) -> bool:
        """Wait for all that were killed; return whether they have ended."""
        linux.wait_ended(list(self._held.values()), timeout_s)
        for pid in list(self._held):
            entry = linux.process(pid)
            if entry is None or entry.state == "Z":
                self._ended(pid)
        return not self._held

    def close(self) -> None:
        """Let go of those that would not end."""
        for pidfd in self._held.values():
            self._poller.remove(pidfd)
            os.close(pidfd)
        self._held.clear()


def _began(page: Page) -> int | None:
    """Return when the body that runs began (monotonic ns), None if the worker is between two."""
    words = page.words
    return words[STARTED] if words[CURRENT] else None


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
