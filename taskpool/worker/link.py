"""The worker's link to the supervisor: jobs come over a socket; records go into the ring, and a byte over the socket rings a bell.

The socket's descriptor lies high, out of the way of a body that closes what it finds. Before each use it is still checked to be
the very socket: a worker that wrote its bell into a user's file, or took a user's file for jobs, would be worse than a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import threading
import time
from typing import NoReturn

from taskpool.errors import of_code
from taskpool.wire.frames import FrameReader, FrameTooLong
from taskpool.wire.jobs import ChildAnswered, ChildAsked, Job, Record, jobs_decoder
from taskpool.wire.messages import encoder
from taskpool.wire.page import EXTEND, EXTEND_N, PROGRESS_SEQ, RECORD_BYTES_MAX, STARTED, Page, RingWriter, write_spill
from taskpool.worker.interrupt import whole

HIGH_FD = 500
EXIT_GONE = 0  # the supervisor closed the link: the end of a worker's life
EXIT_DESCRIPTORS = 70  # a body closed or replaced our descriptors
ROOM_POLL_S = 0.001  # how often a full ring is looked at …
DISK_POLL_S = 0.05  # … and a full disk
WAIT_NS = 1_000_000_000  # who waits for room extends its time by that much more than it has waited

_RING_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def high(fd: int) -> int:
    """Move a descriptor out of the way: return its copy at HIGH_FD or above (lower, if the process may not have so many)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = HIGH_FD if soft == resource.RLIM_INFINITY else max(3, min(HIGH_FD, soft - 16))
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    os.close(fd)
    return copy


class Link:
    """One worker's end of it. conn: descriptor of the socket, which it owns from now on."""

    def __init__(self, conn: int, page: Page, worker: int, supervisor: int) -> None:
        self._sock = socket.socket(fileno=high(conn))
        self._fd = self._sock.fileno()
        found = os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)
        self._reader = FrameReader(self._sock)
        self._ring = RingWriter(page)
        self._words = page.words
        self._run_dir = page.run_dir
        self._worker = worker
        self._supervisor = supervisor
        self._pid = os.getpid()
        self._spills = 0
        self._saving = threading.Lock()  # threads of one body may save at the same time …
        self._asking = threading.Lock()  # … and ask, of which one at a time waits for its answer
        self._reading = threading.Lock()  # one that the body has left behind may read beside the loop
        self._early: list[Job] = []  # came while a body waited for its answer
        self._asked = 0
        self._answer: ChildAnswered | None = None

    def receive(self) -> list[Job]:
        """Wait for jobs. Ends the process when the supervisor has closed the link; a torn frame is never returned."""
        while not self._early:
            self._take(0)
        return self._taken()

    def receive_more(self) -> list[Job]:
        """Return the jobs that are here already, maybe none."""
        self._take(socket.MSG_DONTWAIT)
        return self._taken()

    def _taken(self) -> list[Job]:
        jobs, self._early = self._early, []
        return jobs

    def _take(self, flags: int) -> None:
        """Receive once, and sort out what has come. Ends the process when the supervisor has closed the link."""
        self.check()
        with self._reading:
            try:
                frames = self._reader.read(flags)
            except OSError:
                os._exit(EXIT_GONE)
            except FrameTooLong:
                os._exit(EXIT_DESCRIPTORS)
            if self._reader.eof:
                os._exit(EXIT_GONE)
            for frame in frames:
                message = jobs_decoder.decode(frame)
                if isinstance(message, ChildAnswered):
                    self._answer = message
                else:
                    self._early += message

    def check(self) -> None:
        """End the process if the socket's descriptor is not the socket any more."""
        try:
            found = os.fstat(self._fd)
        except OSError:
            os._exit(EXIT_DESCRIPTORS)
        if (found.st_dev, found.st_ino) != self._identity:
            os._exit(EXIT_DESCRIPTORS)

    def push(self, record: Record, ended: int = 0) -> None:
        """Put a record into the ring, waiting for room; what is too big goes into a file (OSError if that cannot be written).

        ended: the job whose body has ended, so that no limit of it shall count what is waited here.
        """
        data = encoder.encode(record)
        if len(data) > RECORD_BYTES_MAX:
            self._spills += 1
            data = self._spilled(data, ended)
        while not self._ring.push(data):
            self._wait_for_room(ROOM_POLL_S, ended)

    def _spilled(self, data: bytes, ended: int) -> bytes:
        """Write a big record into a file, waiting for room on the disk; return the record that names it."""
        while True:
            try:
                return encoder.encode(write_spill(self._run_dir, self._worker, self._spills, data))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            self._wait_for_room(DISK_POLL_S, ended)

    def _wait_for_room(self, seconds: float, ended: int) -> None:
        self.ring()
        if os.getppid() != self._supervisor:
            os._exit(EXIT_GONE)
        if ended:
            words = self._words
            extended = words[EXTEND] if words[EXTEND_N] == ended else 0
            words[EXTEND] = max(extended, time.monotonic_ns() - words[STARTED] + WAIT_NS)
            words[EXTEND_N] = ended
            words[PROGRESS_SEQ] += 2  # a sign of life
        time.sleep(seconds)

    def ask(self, asked: ChildAsked) -> int:
        """Have a task stored from within a body, and return its id when it is. Raises why it is refused; RuntimeError as `save`."""
        with self._asking:
            self._asked += 1
            asked.seq = self._asked
            self.save(asked)
            ready = select.poll()
            ready.register(self._fd, select.POLLIN)
            while (answer := self._answer) is None or answer.seq != asked.seq:
                ready.poll()
                whole(self._take_now)
        if answer.code:
            raise of_code(answer.code, answer.message, answer.hint)
        return answer.id

    def _take_now(self) -> None:
        """Receive in the midst of a body. Half of a frame would be the end of the link: better of the process."""
        try:
            self._take(socket.MSG_DONTWAIT)
        except BaseException:  # such as from a signal handler of the body's own
            os._exit(EXIT_DESCRIPTORS)

    def save(self, record: Record) -> None:
        """Push a record from within a body and ring. RuntimeError in a process that the body forked: the ring is not its own."""
        if os.getpid() != self._pid:
            raise RuntimeError("only the worker process can speak to the supervisor, not one that the task forked")
        with self._saving:
            self.check()
            self.push(record)
            self.ring()

    def ring(self) -> None:
        """Wake the supervisor. A socket that is full of bells is loud enough."""
        self.check()
        try:
            self._sock.send(b"\x01", _RING_FLAGS)
        except BlockingIOError:
            pass
        except OSError:
            os._exit(EXIT_GONE)

    def wait_for_end(self) -> NoReturn:
        """Begin nothing more: wait until the supervisor kills this process or closes the link."""
        while True:
            self.receive()
