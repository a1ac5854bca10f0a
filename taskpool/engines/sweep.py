"""Finding and killing what must not outlive its owner, by a mark in the environment.

Every process that descends from a zygote has `TASKPOOL_MARK=<its owner's>` in the environment it was executed with, which forks
share and which the kernel shows in /proc/<pid>/environ. Sessions, groups and parents can be left by a daemon; this stays, unless it
executes something with an environment of its own making. A pool inside a task adds its mark to the outer one, so both find it.
Processes are held by pidfd from the moment they were recognised, so a recycled pid is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection

from taskpool.engines import linux, trees
from taskpool.engines.launch import MARK

_PREFIX = MARK.encode() + b"="
OWNERS = "owners"  # file of the run directory: the marks of this owner and of those that are not proved dead, a line each
OWNERS_BYTES_MAX = 1 << 20
ROUND_S = 0.5  # how long one round waits for those it killed


def marks_of(pid: int) -> list[str]:
    """Return the marks of a process; empty if it has none, has ended, or is not ours to ask."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:
        return []
    for entry in environment.split(b"\0"):
        if entry.startswith(_PREFIX):
            return entry[len(_PREFIX) :].decode("utf-8", "replace").split()
    return []


def ancestors() -> set[int]:
    """Return this process, its parent, and so on up to the first."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        entry = linux.process(pid)
        pid = entry.ppid if entry is not None else 0
    return found


def kill_marked(is_meant: Callable[[str], bool], timeout_s: float = 10.0) -> tuple[set[int], set[int]]:
    """Kill every process with a mark that is meant, except this one and its ancestors, until none is found any more.

    Returns (pids that were killed and are proved dead, pids that live on although they were killed, or could not be).
    """
    spare = ancestors()
    killed: set[int] = set()
    until = time.monotonic() + timeout_s
    trackers_until = time.monotonic() + trees.TRACKER_S
    while True:
        held = _hold(is_meant, spare)
        if not held:
            return killed, set()
        trackers = [pidfd for pid, pidfd in held.items() if trees.is_tracker(pid)]
        if len(trackers) == len(held) and time.monotonic() < trackers_until:  # their users are dead: let them finish
            linux.wait_ended(trackers, trackers_until - time.monotonic())
        for pidfd in held.values():
            if pidfd in trackers and len(trackers) < len(held):
                continue
            try:
                linux.pidfd_signal(pidfd, signal.SIGKILL)
            except PermissionError:
                pass
        left = set(linux.wait_ended(list(held.values()), min(ROUND_S, max(0.0, until - time.monotonic()))))
        killed |= {pid for pid, pidfd in held.items() if pidfd not in left}
        alive = {pid for pid, pidfd in held.items() if pidfd in left}
        for pidfd in held.values():
            os.close(pidfd)
        if time.monotonic() >= until:
            return killed, alive


def _hold(is_meant: Callable[[str], bool], spare: set[int]) -> dict[int, int]:
    """Return pid → pidfd of all live processes that are meant."""
    held: dict[int, int] = {}
    for pid in linux.all_pids():
        if pid in spare or not any(map(is_meant, marks_of(pid))):
            continue
        pidfd = linux.pidfd_open(pid)
        if pidfd is None:
            continue
        if any(map(is_meant, marks_of(pid))):  # looked at again, now that the pid cannot change hands; a zombie has no marks
            held[pid] = pidfd
        else:
            os.close(pidfd)
    return held


def kill_owned(marks: Collection[str], timeout_s: float = 10.0) -> tuple[set[int], set[int]]:
    """Kill what is left of these owners; returns as `kill_marked` does.

    A new owner calls it, under the store's lock, for those before it, and requeues nothing before they are proved dead.
    """
    return kill_marked(lambda mark: mark in marks, timeout_s) if marks else (set(), set())


def take_over(run_dir: str | os.PathLike[str], mark: str, timeout_s: float = 10.0) -> set[int]:
    """Note the mark of a new owner in the run directory and kill what the owners before it left; return the pids that live on.

    To be called under the store's lock, before anything is requeued. Marks are forgotten when all that bore them is proved dead.
    """
    path = os.path.join(run_dir, OWNERS)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        older = os.read(fd, OWNERS_BYTES_MAX).decode("ascii", "replace").split()
        os.write(fd, f"{mark}\n".encode())
    finally:
        os.close(fd)
    _, alive = kill_owned(older, timeout_s)
    if not alive:
        fresh = f"{path}.new"
        with open(fresh, "w", encoding="ascii") as file:
            file.write(f"{mark}\n")
        os.replace(fresh, path)
    return alive
