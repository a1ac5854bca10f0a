"""A process of its own that sees bodies begin and processes die, so that the measured one cannot flatter itself.

Bodies send a datagram (index, pid, monotonic ns) as they begin; the watcher opens a pidfd and notes when that process is dead.
Beside it may run a bare timer process, which does nothing but sleep until an instant and note how late it woke: what no
program on this machine can do better in that moment.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import ROOT
from bench.tasks import STAMP, WATCH_ENV


class Watcher:
    """Starts and stops the process. Bodies of pools that are started afterwards find it by their environment."""

    def __init__(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="bench-watch-")
        self._path = str(Path(self._dir.name, "sock"))
        os.environ[WATCH_ENV] = self._path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.watch", "watch", self._path], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it listens

    def stop(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return (begun, died): for each index the monotonic ns at which its body began, and at which its process was dead."""
        out, _ = self._process.communicate()  # end of its stdin ends it
        self._dir.cleanup()
        begun, died = json.loads(out)
        return {int(k): v for k, v in begun.items()}, {int(k): v for k, v in died.items()}


class BareTimer:
    """A process that only sleeps until instants 30 to 60 ms ahead."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.watch", "timer"], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )

    def stop(self) -> list[float]:
        """Return how late each awakening was, in ms."""
        out, _ = self._process.communicate()
        late: list[float] = json.loads(out)
        return late


def _watch(path: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(path)
    print("ready", flush=True)
    poll = select.epoll()
    poll.register(sock.fileno(), select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    begun: dict[int, int] = {}
    died: dict[int, int] = {}
    watched: dict[int, list[int]] = {}  # pidfd → indices that began in that process
    fd_of: dict[int, int] = {}
    ending = 0.0
    while not ending or (watched and time.monotonic() < ending):
        for fd, _ in poll.poll(1.0 if not ending else 0.1):
            now = time.monotonic_ns()
            if fd == 0:
                ending = time.monotonic() + 2.0  # processes that end with the pool are still seen
                poll.unregister(0)
            elif fd == sock.fileno():
                index, pid, at = STAMP.unpack(sock.recv(64))
                begun[index] = at
                if pid not in fd_of:
                    try:
                        fd_of[pid] = os.pidfd_open(pid)
                    except ProcessLookupError:
                        died[index] = now
                        continue
                    poll.register(fd_of[pid], select.EPOLLIN)
                watched.setdefault(fd_of[pid], []).append(index)
            else:
                for index in watched.pop(fd, ()):
                    died[index] = now
                poll.unregister(fd)
                os.close(fd)
                for pid in [pid for pid, other in fd_of.items() if other == fd]:
                    del fd_of[pid]
    print(json.dumps([begun, died]))


def _timer() -> None:
    dice = random.Random(0)
    late = []
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not poll.poll(0):
        due = time.monotonic_ns() + int(dice.uniform(30e6, 60e6))
        time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        late.append((time.monotonic_ns() - due) / 1e6)
    print(json.dumps(late))


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        _watch(sys.argv[2])
    else:
        _timer()
