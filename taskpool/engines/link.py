"""One worker as the node sees it: its socket, page, pidfd, stacks and output, and the ways to touch its process."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence

from taskpool.clock import boottime_ns
from taskpool.engines import linux, trees
from taskpool.engines.output import OutputPipe
from taskpool.engines.watch import Watch
from taskpool.wire import barrier
from taskpool.wire.frames import Closed, FrameWriter
from taskpool.wire.jobs import ChildAnswered, Job
from taskpool.wire.messages import encoder
from taskpool.wire.page import CURRENT, LIMIT, NO_LIMIT, Page, RingReader
from taskpool.worker.interrupt import INTERRUPT_SIGNAL, STACK_SIGNAL

STACK_BYTES_MAX = 64 * 1024
SHORT_NS = 100_000  # a body that takes less is moved to another worker at a higher price than it is worth
OWN_FDS = 4  # descriptors that no worker gets: the supervisor looks into /proc, and reads files of large results
FRAME_PAYLOAD_BYTES = 16 << 20  # jobs of one frame, beyond the first


class Link:
    """One worker. What the killer's thread touches too (`strike`, `ask_stack`, `interrupt`, `limit`) is under the killer's lock."""

    def __init__(self, worker_id: int, run_dir: str, epoch: int, boot: int, *, fenced: bool, nudge: Callable[[Link], None]) -> None:
        """Make all that a worker needs. OSError when there are no descriptors or no room, and then nothing is left behind.

        fenced: there is membarrier; nudge: called from any thread when the loop should look at this link.
        """
        self.worker_id = worker_id
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        self.reaped = False
        self.born_boot = 0  # ns of CLOCK_BOOTTIME when it became ready; what is older is not of its tasks
        self.asked_mono = time.monotonic_ns()  # when its fork was asked for
        self.woke = False  # it has sent a byte
        self.sent: dict[int, int] = {}  # number → task id of all that was sent and has not ended
        self.last_n = 0  # highest number sent
        self.done_n = 0  # highest number that ended after it had begun
        self.cpu_us = [0, 0]  # user, system: of the bodies that ended
        self.why = ""  # why it was killed, if we did
        self.fault = ""  # what it did that no worker does
        self.limit_left = False  # the killer forbade what comes after a job that then ended by itself
        self.taken_above: int | None = None  # it is passing over jobs above that number, which were given back
        self.starving: tuple[tuple[int, int], int] | None = None  # where it stood at the first look, and its processor_ns then
        self.last_ns = SHORT_NS  # how long its last body took
        self.rang = False
        self.progress_seq = 0
        self._fenced = fenced
        self._nudge = nudge
        self._stack_from = 0
        self._given: list[int] = []  # the worker's ends, until they are on their way
        held: list[int] = []
        try:
            mine, theirs = socket.socketpair()
            mine.setblocking(False)
            held += [mine.detach(), theirs.detach()]
            held.append(os.memfd_create(f"stacks-{worker_id}", os.MFD_CLOEXEC))
            reading, writing = os.pipe2(os.O_CLOEXEC)
            held += [reading, writing]
            os.set_blocking(reading, False)
            _leave_some(held)
            self.page = Page.create(os.path.join(run_dir, f"w{worker_id}.page"), worker=worker_id, epoch=epoch, boot=boot)
        except BaseException:
            for fd in held:
                os.close(fd)
            raise
        self.conn = socket.socket(fileno=held[0])
        self.stacks_fd = held[2]
        self.ring = RingReader(self.page)
        self.writer = FrameWriter(self.conn)
        self.output = OutputPipe(reading, self.page)
        self.watch = Watch(self.page, self)
        self._given = [held[1], self.page.fd, self.stacks_fd, writing]

    @property
    def given(self) -> list[int]:
        """Return the descriptors a worker is given: conn, page, stacks, output."""
        return self._given

    def handed_over(self) -> None:
        """Close the worker's ends here."""
        if self._given:
            os.close(self._given[0])
            os.close(self._given[3])
            self.page.close_fd()
            self._given = []

    def born(self, pid: int) -> None:
        """Take note of its process; it may have been told to die before it was born. OSError when there is no descriptor left."""
        pidfd = linux.pidfd_open(pid)
        assert pidfd is not None, "nobody but this process can reap it"
        self.pid, self.pidfd = pid, pidfd
        if self.why:
            self._kill()

    def send(self, jobs: Sequence[Job]) -> bool:
        """Send jobs, in order; return whether all are on their way. Those to a worker that just died are: to nobody."""
        for job in jobs:
            self.sent[job.n] = job.task_id
        self.last_n = jobs[-1].n
        for batch in _batches(jobs):
            self.writer.put(encoder.encode(batch))
        return self.send_rest()

    def answer(self, answer: ChildAnswered) -> bool:
        """Send an answer; return whether it is on its way."""
        self.writer.put(encoder.encode(answer))
        return self.send_rest()

    def send_rest(self) -> bool:
        """Send what the socket takes now of what is left; return whether nothing is."""
        try:
            return self.writer.flush()
        except Closed:
            return True  # its death is on the way

    def became_ready(self) -> None:
        """Take note that it waits for work."""
        self.ready = True
        self.born_boot = boottime_ns()

    # ---- its process ------------------------------------------------------------------------------------------------

    def strike(self, n: int, why: str) -> bool:
        """Kill the worker and all below it if it runs job n (0: whatever it does); return whether that was so.

        No later job can be hit: they are forbidden first, and given back by the loop if n turns out to have ended. Without
        membarrier a mailbox holds one job, and the next is sent after this one was disarmed, which waits for the killer's lock.
        """
        if self.reaped:
            return False
        if n:
            words = self.page.words
            if words[CURRENT] != n:
                return False
            if self._fenced:
                words[LIMIT] = min(n, words[LIMIT])
                barrier.everywhere()
                if words[CURRENT] != n:
                    self.limit_left = True
                    self._nudge(self)
                    return False
        self.why = self.why or why
        if self.pid:
            self._kill()
        return True

    def _kill(self) -> None:
        trees.kill_held(self.pid, self.pidfd)

    def ask_stack(self) -> None:
        """Have it write the stacks of its threads into its memfd."""
        self._stack_from = os.fstat(self.stacks_fd).st_size
        if not self.reaped and self.pidfd >= 0:
            linux.pidfd_signal(self.pidfd, STACK_SIGNAL)

    def memory(self) -> int:
        """Return the bytes that it and all below it hold in memory."""
        return 0 if self.reaped or not self.pid else trees.memory(self.pid)

    def interrupt(self) -> None:
        """Have it look at the page's CANCEL words."""
        if not self.reaped and self.pidfd >= 0:
            linux.pidfd_signal(self.pidfd, INTERRUPT_SIGNAL)

    def stack(self) -> str:
        """Return the stacks it wrote last."""
        size = os.fstat(self.stacks_fd).st_size
        start = max(self._stack_from, size - STACK_BYTES_MAX)
        return os.pread(self.stacks_fd, STACK_BYTES_MAX, start).decode("utf-8", "replace")

    def limit(self, above: int) -> None:
        """Forbid all jobs above that number."""
        words = self.page.words
        words[LIMIT] = min(above, words[LIMIT])

    def unlimit(self) -> None:
        """Allow all jobs again, unless it is to die."""
        if not self.why:
            self.page.words[LIMIT] = NO_LIMIT

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every descriptor; the page stays mapped, for its records may not be stored yet. Safe to call twice."""
        self.handed_over()
        self.conn.close()
        self.output.close()
        for fd in (self.pidfd, self.stacks_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.stacks_fd = -1

    def remove_page(self) -> None:
        """Unmap the page and remove its file, and whatever else the worker wrote beside it and never told of."""
        directory, name = os.path.split(self.page.path)
        own = name.removesuffix("page")  # as in w7.page, w7.3.spill
        for path in [self.page.path, *(entry.path for entry in os.scandir(directory) if entry.name.startswith(own))]:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.page.close()


def _batches(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Cut jobs into frames of a limited size; nearly always one."""
    size = 0
    batches: list[Sequence[Job]] = []
    start = 0
    for index, job in enumerate(jobs):
        size += _size(job)
        if size > FRAME_PAYLOAD_BYTES and index > start:
            batches.append(jobs[start:index])
            start, size = index, _size(job)
    batches.append(jobs[start:])
    return batches


def _leave_some(held: list[int]) -> None:
    """Raise OSError if so few descriptors are left that the supervisor could not look after its workers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max(held) >= soft - OWN_FDS:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _size(job: Job) -> int:
    """Return about how many bytes a job takes in a frame."""
    size = len(job.payload)
    if job.inputs is not None:
        size += sum(len(one.value) for one in job.inputs if one.value is not None)
    return size
