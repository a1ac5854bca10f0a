"""A store whose file, or the log of it, is removed, moved or replaced while it is in use.

SQLite goes on writing to what has no name any more: all that is acknowledged from then on would be gone with the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from taskpool.engines.inotify import IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF, FileWatch
from taskpool.wire.poller import Poller

# The inode lives while it is open, so a removal shows as a change of its number of names.
_EVENTS = IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF


def watch_names(poller: Poller, paths: Iterable[Path], vanished: Callable[[Path], None]) -> None:
    """Call vanished(path) when one of these files is no longer found under its name. OSError if the kernel cannot tell."""
    for path in paths:
        _watch(poller, path, vanished)


def _watch(poller: Poller, path: Path, vanished: Callable[[Path], None]) -> None:
    watch = FileWatch(str(path), _EVENTS)
    own = _identity(path)

    def look(events: int) -> None:
        watch.drain()
        if _identity(path) != own:
            poller.remove(watch.fd)
            watch.close()
            vanished(path)

    poller.add(watch.fd, look)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
