"""Memory: sizes as people write them, what this machine may use, and what a tree of processes does use. Sizes in bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

_BYTES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def parse_size(text: str) -> int:
    """Return the bytes in `512M`, `2G`, `2GiB` or a bare number. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size: write 512M or 2G")
    return round(float(match[1]) * _BYTES[match[2].upper()])


def size_of(value: object) -> int:
    """Return the bytes that a number or a text such as `512M` means, at least one. Raises ValueError."""
    size = parse_size(value) if isinstance(value, str) else value
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 62:
        raise ValueError(f"{value!r:.120} is not a size: write a number of bytes, or '512M', '2G'")
    return size


def usable_memory(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int:
    """Return how much memory this process and its children may use: the machine's, bounded by its control groups."""
    limits = [os.sysconf("SC_PHYS_PAGES") * _PAGE]
    try:
        with open(membership, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            limits += _limits(mount, group, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(f"{mount}/memory", group, "memory.limit_in_bytes")
    return min(limits)


def _limits(root: str, group: str, name: str) -> list[int]:
    """Return the limits of a control group and of all above it that can be seen here."""
    found = []
    path = group.rstrip("/")
    while True:
        try:
            with open(f"{root}{path}/{name}", encoding="ascii") as file:
                text = file.read().strip()
            if text.isdigit():
                found.append(int(text))
        except OSError:
            pass
        if not path:
            return found
        path = path.rpartition("/")[0]


def resident(pids: Iterable[int]) -> int:
    """Return the resident memory of processes together. Those that are gone count nothing."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                pages += int(file.read().split()[1])
        except (OSError, IndexError):
            continue
    return pages * _PAGE
