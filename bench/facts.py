"""What must stand beside a number to make sense of it: the machine, the versions, the disk."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.statistics import quantile


def workers() -> int:
    """Return how many workers every contender gets: the processors this process may use, at most 2."""
    return min(2, len(os.sched_getaffinity(0)))


def machine() -> dict[str, Any]:
    """Return what this machine is: processor, memory, kernel, Python, file system of the scratch directory, load."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "filesystem": _filesystem(scratch()),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def scratch() -> Path:
    """Return where stores of measurements lie: TASKPOOL_BENCH_DIR, else the system's temporary directory."""
    return Path(os.environ.get("TASKPOOL_BENCH_DIR") or tempfile.gettempdir())


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each distribution; Python's own under "python"."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def commit_us(directory: Path, commits: int = 200, *, synchronous: str = "FULL") -> list[float]:
    """Return how long each of that many commits took here, in µs: one row of 200 bytes, WAL, on a new file."""
    path = directory / f"commit-{os.getpid()}-{time.monotonic_ns()}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    took = []
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)")
        for _ in range(commits):
            began = time.perf_counter_ns()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (b) VALUES (zeroblob(200))")
            connection.execute("COMMIT")
            took.append((time.perf_counter_ns() - began) / 1000)
    finally:
        connection.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    return took


def commit_p50_us(directory: Path) -> float:
    """Return the median of `commit_us`."""
    return quantile(commit_us(directory), 0.5)


def busy_share(seconds: float) -> float:
    """Return which share of the machine's processor time was in use during the next so many seconds, 0 to 1."""
    before = _processor_times()
    time.sleep(seconds)
    busy, total = (after - then for after, then in zip(_processor_times(), before, strict=True))
    return busy / total if total else 0.0


def _processor_times() -> tuple[int, int]:
    numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(numbers) - numbers[3] - numbers[4], sum(numbers)  # idle, and waiting for a disk


def wait_for_quiet(patience_s: float, *, share: float = 0.1) -> bool:
    """Wait until others leave the machine alone for half a second, but no longer than patience_s. Return whether they did."""
    until = time.monotonic() + patience_s
    while busy_share(0.5) > share:
        if time.monotonic() > until:
            return False
    return True


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _filesystem(path: Path) -> str:
    best, kind = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, place, name, *_ = line.split()
            inside = path.resolve() == Path(place) or Path(place) in path.resolve().parents
            if inside and len(place) >= len(best):
                best, kind = place, name
    except OSError:
        pass
    return kind


def interpreter() -> str:
    """Return the interpreter's path, for processes that must be like this one."""
    return sys.executable
