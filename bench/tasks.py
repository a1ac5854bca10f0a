"""The bodies that contenders run. They import nothing of ours, so that no peer pays for it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections import deque
from itertools import repeat

STAMP = struct.Struct("<qqq")  # index, pid, monotonic ns
WATCH_ENV = "TASKPOOL_BENCH_WATCH"  # where the watcher's datagram socket lies


def noop() -> None:
    """Do nothing."""


def echo(value: object) -> object:
    """Return the argument."""
    return value


def spin(iterations: int) -> None:
    """Work for a fixed number of steps: time that somebody else takes from the processor is not forgiven."""
    for _ in range(iterations):
        pass


def doze(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def stamp(index: int) -> None:
    """Tell the watcher that this body is here now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(STAMP.pack(index, os.getpid(), time.monotonic_ns()), os.environ[WATCH_ENV])


def hold_gil(index: int) -> None:
    """Stamp, then never come back from a C loop that neither releases the interpreter lock nor looks for signals."""
    stamp(index)
    deque(repeat(None), maxlen=0)


def hold_gil_quietly() -> None:
    """Never come back from such a loop, without a stamp."""
    deque(repeat(None), maxlen=0)


def die_by_exit(index: int) -> None:
    """Stamp, then leave at once without cleaning up."""
    stamp(index)
    os._exit(3)


def die_by_segv(index: int) -> None:
    """Stamp, then die of SIGSEGV, as a bad pointer does."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    stamp(index)
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def die_by_kill(index: int) -> None:
    """Stamp, then die as the kernel's out-of-memory killer would have it."""
    stamp(index)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
