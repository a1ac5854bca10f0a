"""What a client sends: tasks in bundles, and requests, in one sequence on one socket.

A bundle is the tasks of one Submit frame. It leaves at once while none is under way; else it leaves when the one before it is
acknowledged, when it is full, or when somebody waits for one of its tasks (as Nagle's algorithm has it for bytes). Callers send
from their own threads, so a lone task leaves without delay, and under load there is neither a hand-off between threads nor a system
call per task.

Ctrl-C comes between any two instructions of the main thread. So a task is one entry of one list, and a bundle stays among the held
until it is written: interrupted, it leaves with the next one; written twice, its uids tell.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

import msgspec

from taskpool.doors.future import TaskFuture
from taskpool.errors import InvalidTask, PoolStopped
from taskpool.model import FlowSpec, StepSpec, TaskSpec
from taskpool.wire.description import Description
from taskpool.wire.frames import Closed, FrameWriter
from taskpool.wire.messages import Refused, Request, Submit, encoder

if TYPE_CHECKING:
    from taskpool.doors.link import Link

BUNDLE_TASKS = 256  # a bundle of so many is sent at once by whoever fills it
BUNDLE_BYTES = 8 << 20  # and so is one of so many bytes of large payloads
LARGE_BYTES = 32 << 10  # payloads below this are not counted: 256 of them are no more than BUNDLE_BYTES


class Bundle:
    """Tasks that travel in one Submit. seq: its number once it was sent; stored: its tasks have ids, or will never have."""

    __slots__ = ("bytes", "flow", "fresh", "link", "seq", "stored", "tasks", "waiters")

    def __init__(self, link: Link, *, fresh: bool = False, stored: bool = False, flow: FlowSpec | None = None) -> None:
        self.link = link
        self.tasks: list[tuple[TaskSpec, TaskFuture[Any]]] = []
        self.waiters: list[threading.Lock] = []
        self.bytes = 0
        self.fresh = fresh
        self.flow = flow
        self.seq = 0
        self.stored = stored

    def wait(self) -> None:
        """Send the bundle if nobody has, and wait until its tasks are stored or refused."""
        self.link.wait_stored(self)


class Outbox:
    """The sending half of a Link. lock: the link's, for its tables; want_out(bool): watch the socket for room, or no longer.

    Frames are put together and queued under `sending`, which decides their order; it is taken before the lock, never after.
    """

    def __init__(self, link: Link, sock: socket.socket, lock: threading.Lock, want_out: Callable[[bool], None]) -> None:
        self._link = link
        self._writer = FrameWriter(sock)
        self._want_out = want_out
        self._lock = lock
        self.sending = threading.Lock()
        self._blocked = False  # something is left over: the io thread sends it, and what follows, when there is room
        self._seq = count(1)
        self._uids = draw_uids()
        self._bundle = Bundle(link)
        self._held: deque[Bundle] = deque()
        self.flights: dict[int, Bundle] = {}  # sent and not acknowledged
        self.ended: PoolStopped | None = None  # set under the lock: nothing is taken any more, and why

    # ---- tasks --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        codec: int,
        payload: bytes,
        options: bytes,
        queue: str,
        priority: int,
        at: int,
        description: Description | None,
        step: StepSpec | None = None,
        key: str | None = None,
        unique: str | None = None,
    ) -> TaskFuture[Any]:
        """Put one task into the present bundle, and send that unless another is under way, whose answer will send it."""
        large = len(payload) > LARGE_BYTES
        with self._lock:
            if self.ended is not None:
                raise self.stopped()
            bundle = self._bundle
            tasks = bundle.tasks
            uid = next(self._uids)
            future: TaskFuture[Any] = TaskFuture(bundle, uid)
            if description is not None:
                future._description = description
            tasks.append((TaskSpec(uid, name, codec, payload, options, queue, priority, at, None, None, step, key, unique), future))
            leaves = not self.flights or len(tasks) >= BUNDLE_TASKS
            if large:
                bundle.bytes += len(payload)
                leaves = leaves or bundle.bytes > BUNDLE_BYTES
        if leaves:
            self.flush()
        return future

    def put(
        self,
        bundle: Bundle,
        name: str,
        codec: int,
        payload: bytes,
        options: bytes,
        queue: str,
        priority: int,
        at: int,
        description: Description | None,
        batch: str | None = None,
        item: int | None = None,
        step: StepSpec | None = None,
        key: str | None = None,
        unique: str | None = None,
    ) -> TaskFuture[Any]:
        """Add a task to a bundle of the caller's own, which `send` sends."""
        uid = next(self._uids)
        future: TaskFuture[Any] = TaskFuture(bundle, uid)
        if description is not None:
            future._description = description
        spec = TaskSpec(uid, name, codec, payload, options, queue, priority, at, batch, item, step, key, unique)
        bundle.tasks.append((spec, future))
        bundle.bytes += len(payload)
        return future

    def send(self, bundle: Bundle) -> None:
        """Send a bundle of the caller's own, after all that was submitted before it."""
        with self.sending:
            with self._lock:
                if self.ended is not None:
                    raise self.stopped()
                self._close_bundle()
                self._held.append(bundle)
            self._ship()

    def flush(self) -> None:
        """Send what was submitted and not sent. Threads that come together share one frame."""
        if not self._bundle.tasks and not self._held:
            self._link.check_process()
            return
        with self.sending:
            with self._lock:
                if self.ended is not None:
                    return
                self._close_bundle()
            self._ship()

    def _close_bundle(self) -> None:
        """Begin a new bundle; under the lock."""
        if self._bundle.tasks:
            self._held.append(self._bundle)
            self._bundle = Bundle(self._link)
            self._uids = draw_uids()

    def _ship(self) -> None:
        """Write what is held; under `sending`."""
        held = self._held
        while held:
            bundle = held[0]
            bundle.seq = bundle.seq or next(self._seq)
            try:
                frame = encoder.encode(
                    Submit(bundle.seq, [spec for spec, _ in bundle.tasks], True, False, bundle.fresh, bundle.flow)
                )
            except (TypeError, ValueError, OverflowError, RecursionError) as error:  # it would keep back all that comes after it
                held.popleft()
                self._link.refuse(bundle, Refused(bundle.seq, InvalidTask.code, f"these tasks cannot be sent: {error}"))
                continue
            with self._lock:
                if not bundle.stored:
                    self.flights[bundle.seq] = bundle
            self._write(frame)
            held.popleft()

    # ---- requests and bytes -------------------------------------------------------------------------------------------

    def post(self, make: Callable[[int], Request], book: Callable[[int], object]) -> None:
        """Send a request under the next number, after all that was submitted; book(number) is called first, under the lock.

        Raises InvalidTask for what the supervisor would not take.
        """
        self.flush()
        with self.sending:
            seq = next(self._seq)
            frame = _checked(make(seq))
            with self._lock:
                if self.ended is not None:
                    raise self.stopped()
                book(seq)
            self._write(frame)

    def drain(self) -> None:
        """Send what was left over, now that there is room."""
        with self.sending:
            try:
                if self._writer.flush():
                    self._blocked = False
                    self._want_out(False)
            except Closed:
                pass

    def _write(self, frame: bytes) -> None:
        """Send a frame, or leave to the io thread what the socket does not take; under `sending`."""
        try:
            self._writer.put(frame)
            if not self._blocked and not self._writer.flush():
                self._blocked = True
                self._want_out(True)
        except Closed:
            pass  # the io thread sees the end of the connection, and tells everybody why

    # ---- the end ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether tasks are not yet stored."""
        return bool(self.flights or self._bundle.tasks or self._held)

    def end(self, why: PoolStopped) -> list[Bundle]:
        """Take nothing more, and return the bundles that will never be stored; under the lock."""
        self.ended = why
        bundles = [*self.flights.values(), *(held for held in self._held if held.seq not in self.flights), self._bundle]
        self.flights, self._held, self._bundle = {}, deque(), Bundle(self._link)
        return bundles

    def stopped(self) -> PoolStopped:
        """Return the exception for whoever comes too late."""
        assert self.ended is not None
        return PoolStopped(self.ended.message, hint=self.ended.hint)


def _checked(request: Request) -> bytes:
    """Return a request's frame. What is no request would end the connection, and with its owner's the pool: raise InvalidTask."""
    from taskpool.wire.requests import request_decoder

    try:
        frame = encoder.encode(request)
        request_decoder.decode(frame)
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        # Its fields travel as a list behind its tag; say their names.
        fields = type(request).__struct_fields__
        words = re.sub(r"\$\[(\d+)\]", lambda found: fields[int(found[1]) - 1], str(error))
        raise InvalidTask(f"{type(request).__name__} cannot be asked like that: {words}") from error
    return frame


def draw_uids() -> Iterator[bytes]:
    """Yield UUIDv7 bytes of this moment: 48 bits of ms, 52 random ones, then a counter of 22, so that one bundle's are in order."""
    drawn = int.from_bytes(os.urandom(7), "little")
    high = (time.time_ns() // 1_000_000 << 16) | 0x7000 | (drawn & 0xFFF)
    low = (high << 64) | (2 << 62) | ((drawn >> 12 & (1 << 40) - 1) << 22)
    return map(int.to_bytes, count(low), repeat(16), repeat("big"))  # type: ignore[arg-type]  # all of it in C
