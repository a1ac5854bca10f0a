"""What /proc tells of processes: CPU time, memory, wake-ups, descriptors, threads, descendants."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


def cpu_ns(pid: int) -> int:
    """Return the CPU time of all live threads of a process in ns (/proc/<pid>/stat has only 10 ms steps)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass  # the thread ended meanwhile
    return total


def wakeups(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep of themselves so far: each such is one wake-up."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


class Idle(NamedTuple):
    """What a process costs while nothing is to be done, a second: wake-ups, ms of processor time."""

    wakeups: float
    cpu_ms: float


def idle_cost(pid: int, seconds: float) -> Idle:
    """Return what an idle process costs during the next so many seconds, when what follows its last work is over."""
    time.sleep(1.0)
    woken, cpu = wakeups(pid), cpu_ns(pid)
    time.sleep(seconds)
    return Idle((wakeups(pid) - woken) / seconds, (cpu_ns(pid) - cpu) / 1e6 / seconds)


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB (2**20 bytes)."""
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def pss_mb(pid: int) -> float:
    """Return the proportional memory of a process in MB (2**20 bytes): shared pages count in parts."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024


def _kib(path: Path, label: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(label):
            return int(line.split()[1])
    return 0


def parent(pid: int) -> int:
    """Return the parent of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def state(pid: int) -> str:
    """Return the state letter of a process (R, S, Z, …), "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_gone(pids: list[int], patience_s: float = 10.0) -> float:
    """Wait until none of these processes lives (one may be a zombie), or patience ends; return the seconds it took."""
    began = time.monotonic()
    while any(state(pid) not in ("", "Z") for pid in pids) and time.monotonic() < began + patience_s:
        time.sleep(0.005)
    return time.monotonic() - began


def descendants(pid: int) -> list[int]:
    """Return the process's children, their children and so on, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            children.setdefault(parent(int(entry)), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(0), ()):
            found.append(child)
            todo.append(child)
    return found


@dataclass(frozen=True)
class Footprint:
    """What a process holds. memory in MB."""

    descriptors: int
    threads: int
    processes: int
    rss_mb: float


def footprint(pid: int) -> Footprint:
    """Return what a process holds now; processes counts its descendants."""
    return Footprint(len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), len(descendants(pid)), rss_mb(pid))
