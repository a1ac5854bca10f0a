"""Finding and killing what must not outlive its owner, by a mark in the environment.

Every process that descends from a zygote has `TASKPOOL_MARK=<store>:<epoch>` in the environment it was executed with, which forks
share and which the kernel shows in /proc/<pid>/environ. Sessions, groups and parents can be left by a daemon; this stays, unless it
executes something with an environment of its own making. A pool inside a task adds its mark to the outer one, so both find it.
Processes are held by pidfd from the moment they were recognised, so a recycled pid is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from taskpool.engines import linux

MARK = "TASKPOOL_MARK"
_PREFIX = MARK.encode() + b"="
ROUND_S = 0.5  # how long one round waits for those it killed


def marked_environment(environment: dict[str, str], mark: str, epoch: int) -> dict[str, str]:
    """Return the environment with the mark of that owner added to whatever marks it has. mark: without spaces."""
    value = f"{mark}:{epoch}"
    return {**environment, MARK: " ".join([*environment.get(MARK, "").split(), value])}


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
    while True:
        held = _hold(is_meant, spare)
        if not held:
            return killed, set()
        for pidfd in held.values():
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


def kill_epoch(mark: str, epoch: int, timeout_s: float = 10.0) -> tuple[set[int], set[int]]:
    """Kill what is left of one owner's epoch; returns as `kill_marked` does."""
    value = f"{mark}:{epoch}"
    return kill_marked(lambda one: one == value, timeout_s)


def sweep_before_start(mark: str, timeout_s: float = 10.0) -> tuple[set[int], set[int]]:
    """Kill what older owners of that mark left behind, whatever their epoch; returns as `kill_marked` does.

    To be called by the owner of the store's lock before it starts a zygote, and before anything is requeued.
    """
    prefix = f"{mark}:"
    return kill_marked(lambda one: one.startswith(prefix), timeout_s)
