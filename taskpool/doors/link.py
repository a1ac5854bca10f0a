"""One connection to a supervisor, shared by all threads of a client: who waits for what, and how it is told.

Callers send through the outbox from their own threads. One thread of ours, the io thread, reads: it gives ids to accepted tasks,
settles futures, and sends what gathered while a bundle was under way. Callbacks run in it, after all that was read is settled. What
they call of the pool may wait for answers: then the waiting call itself goes on reading (`_pump`), while further callbacks are put
off until it returns.

The end of the connection, whatever its cause, settles every open future with PoolStopped. A forked child drops its copy of the
connection at once, so that it neither keeps the supervisor alive nor speaks in its parent's name.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from taskpool.core.callers import OVER
from taskpool.doors import held
from taskpool.doors.callbacks import Callbacks
from taskpool.doors.future import TaskFuture
from taskpool.doors.greeting import greet
from taskpool.doors.open_futures import OpenFutures
from taskpool.doors.outbox import Bundle, Outbox
from taskpool.doors.refusals import error_of
from taskpool.errors import PoolStopped, TaskpoolError
from taskpool.model import Filter
from taskpool.wire.answers import answer_decoder
from taskpool.wire.frames import FrameReader, FrameTooLong
from taskpool.wire.messages import (
    Accepted,
    Answer,
    Cancel,
    Goodbye,
    News,
    Refused,
    Reply,
    Request,
    Settled,
    Speak,
    Told,
    Watch,
)
from taskpool.wire.poller import IN, OUT, Poller

FORKED = "this pool belongs to another process: a forked child cannot use it"


class Call:
    """A request whose answer somebody waits for."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.answer: Reply | TaskpoolError | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Link:
    """The connection. cause: says what is known of the other side's end, when it ended without a word.

    `lock` guards all of its tables; it is never held while anything waits or calls back.
    """

    def __init__(self, sock: socket.socket, *, name: str = "", cause: Callable[[], str] = lambda: "") -> None:
        self._sock = sock
        self._reader = FrameReader(sock)
        self._cause = cause
        self.lock = threading.Lock()
        self.outbox = Outbox(self, sock, self.lock, self._want_out)
        self.submit, self.put, self.send, self.flush = self.outbox.submit, self.outbox.put, self.outbox.send, self.outbox.flush
        self._calls: dict[int, Call] = {}
        self._ready_made = Bundle(self, stored=True)  # stands for the bundle of tasks that were stored before
        self._frames: deque[bytes] = deque()
        self._callbacks = Callbacks()
        self._due = self._callbacks.due
        self._futures = OpenFutures(self.lock, self.outbox, self._due)
        self._followers: list[Callable[[News], object]] = []
        self._shut = False  # the descriptors are closed
        self.told: dict[int, set[str]] = {}  # of attempts that this client runs: worker → what it was told of that
        self._thread_id = 0
        self.welcome = greet(sock, self._reader, self._frames, name, cause)
        sock.setblocking(False)
        self._poller = Poller()
        self._poller.add(sock.fileno(), self._on_socket)
        self._thread = threading.Thread(target=self._run, name="taskpool-io", daemon=True)
        _links.add(self)
        self._thread.start()

    # ---- waiting ------------------------------------------------------------------------------------------------------

    def wait_stored(self, bundle: Bundle) -> None:
        """Wait until a bundle's tasks are stored or refused."""
        with self.lock:
            if bundle.stored:
                return
            waiter = threading.Lock()
            waiter.acquire()
            bundle.waiters.append(waiter)
        self.flush()
        self._acquire(waiter)

    def wait_end(self, future: TaskFuture[Any], timeout: float | None) -> None:
        """Wait for the end of a future's task, at most `timeout` seconds."""
        self.flush()
        if threading.get_ident() == self._thread_id:
            self._pump(future.done, timeout)
            return
        self.check_process()
        condition = future._condition
        in_vain = bool(held.by_thread) and timeout is None and held.is_mine(self.welcome.store)
        with condition:
            if not future.done():
                condition.wait(held.WAIT_S if in_vain else timeout)
        if in_vain and not future.done():
            held.check(self.welcome.store)  # it may have ended meanwhile
            with condition:
                if not future.done():
                    condition.wait()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no future of this connection is open. Return whether that is so."""
        waiter = threading.Lock()
        waiter.acquire()
        self.flush()
        return self._acquire(waiter, timeout) if self._futures.join(waiter) else True

    @property
    def open_count(self) -> int:
        """Return how many stored tasks of this client have not ended."""
        return len(self._futures.by_id)

    @property
    def lost(self) -> int:
        """Return how many futures the end of the connection has ended."""
        return self._futures.lost

    def _acquire(self, waiter: threading.Lock, timeout: float | None = None) -> bool:
        if threading.get_ident() == self._thread_id:
            return self._pump(lambda: not waiter.locked(), timeout)
        return waiter.acquire(timeout=-1 if timeout is None else max(0.0, timeout))

    def _pump(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Read on inside a callback until `done`; its own callbacks come later."""
        until = None if timeout is None else time.monotonic() + timeout
        while not done():
            if self._frames:
                self._handle(self._frames.popleft())
                continue
            left = None if until is None else until - time.monotonic()
            if self.stopped or (left is not None and left <= 0):
                break
            self.flush()
            self._poller.wait(left)
        return done()

    # ---- requests -----------------------------------------------------------------------------------------------------

    def request(self, make: Callable[[int], Request], timeout: float | None = None, call: Call | None = None) -> Reply:
        """Send a request under the next sequence number and return its answer. Raises what the supervisor refuses it with.

        TimeoutError when there is none after `timeout` seconds. call: a new one, for who may `give_up` from elsewhere.
        """
        call, number = call or Call(), 0
        in_vain = bool(held.by_thread) and timeout is None and held.is_mine(self.welcome.store)

        def note(seq: int) -> None:
            nonlocal number
            number = seq
            self._calls[seq] = call

        try:
            self.outbox.post(make, note)
            answered = self._acquire(call.done, held.WAIT_S if in_vain else timeout)
            if in_vain and not answered:
                held.check(self.welcome.store)  # it may have ended meanwhile
                answered = self._acquire(call.done)
        except BaseException:  # Ctrl-C
            self._calls.pop(number, None)
            raise
        if not answered and call.answer is None:
            self._calls.pop(number, None)  # an answer that comes now finds nobody
            held.check(self.welcome.store)
            raise TimeoutError(f"no answer within {timeout:g} s")
        if isinstance(call.answer, Reply):
            return call.answer
        assert call.answer is not None
        raise call.answer

    def give_up(self, call: Call) -> None:
        """End the waiting for a request, also for one that is still to be sent: its `request` raises PoolStopped."""
        self._hand_over(call, PoolStopped("nobody waits for the answer any more"))

    def request_soon(self, make: Callable[[int], Request]) -> None:
        """Send a request whose answer nobody needs."""
        try:
            self.outbox.post(make, lambda seq: None)
        except PoolStopped:
            pass

    def watch(self, task_id: int) -> TaskFuture[Any]:
        """Return a future for a stored task: the open one there is, else a new one."""
        with self.lock:
            known = self._futures.by_id.get(task_id)
            if known is not None:
                return known
            future: TaskFuture[Any] = TaskFuture(self._ready_made, b"")
            future._id = task_id
            self._futures.by_id[task_id] = future
        try:
            self.request(lambda seq: Watch(seq, [task_id]))
        except TaskpoolError:
            with self.lock:
                self._futures.by_id.pop(task_id, None)
            raise
        return future

    def cancel_soon(self, future: TaskFuture[Any], reason: str) -> None:
        """Ask for a cancel without waiting, not even for the task's being stored."""

        def ask() -> None:
            if future._id and not future.done():
                wanted = Filter(ids=(future._id,))
                self.request_soon(lambda seq: Cancel(seq, wanted, reason))

        def ask_when_stored() -> None:
            future._bundle.wait()
            ask()

        if future._id:
            ask()
        else:
            self.flush()
            self._due.append((ask_when_stored, ()))
            self._wake()

    def follow(self, callback: Callable[[News], object]) -> None:
        """Call back, in the io thread, with progress and output of followed tasks. Ask for them by a Follow request."""
        with self.lock:
            self._followers.append(callback)

    def unfollow(self, callback: Callable[[News], object]) -> None:
        """Call that one no more."""
        with self.lock:
            if callback in self._followers:
                self._followers.remove(callback)

    def every(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back in the io thread every so many seconds, and once more when the connection ends. Returns what stops it."""
        stop = self._callbacks.every(seconds, callback)
        self._wake()
        return stop

    def call_later(self, call: Callable[..., object], *args: Any) -> bool:
        """In the io thread: have it called after the present callback. Return whether that is so."""
        if threading.get_ident() != self._thread_id or self._shut:
            return False
        self._due.append((call, args))
        return True

    # ---- the io thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            while not self.stopped:
                self._poller.wait(self._callbacks.next_tick())
                self.flush()
                self._callbacks.run()
                self._callbacks.tick()
                self.flush()  # a callback may have read the answer that a bundle waited for
        except BaseException as error:  # a bug of ours must not leave anybody waiting
            self._end(f"the client's io thread failed: {type(error).__name__}: {error}")
            raise
        finally:
            self._callbacks.run()
            self._callbacks.tick(math.inf)
            with self.outbox.sending, self.lock:
                self._shut = True
                self._poller.close()
                self._sock.close()

    def _wake(self) -> None:
        with self.lock:
            if not self._shut:
                self._poller.wake()

    def _want_out(self, wanted: bool) -> None:
        """Watch the socket for room to write, or no longer; under `sending`."""
        if not self._shut:
            self._poller.modify(self._sock.fileno(), IN | OUT if wanted else IN)

    def _on_socket(self, events: int) -> None:
        if events & OUT:
            self.outbox.drain()
        if events & ~OUT:
            try:
                self._frames += self._reader.read()
            except FrameTooLong as error:
                self._end(error.message)
                return
            while self._frames:
                self._handle(self._frames.popleft())
            if self._reader.eof:
                self._end(self._cause() or "the supervisor is gone without a word")

    def _handle(self, frame: bytes) -> None:
        answer: Answer = answer_decoder.decode(frame)
        kind = type(answer)
        if kind is Settled:
            self._futures.settle(answer.outcomes)  # type: ignore[union-attr]  # mypy does not narrow by `type(x) is`
        elif kind is Accepted:
            self._accept(answer)  # type: ignore[arg-type]
        elif isinstance(answer, Reply):
            self._answer(answer.seq, answer)
        elif isinstance(answer, Refused):
            self._refuse(answer)
        elif isinstance(answer, News):
            for follower in self._followers:
                self._due.append((follower, (answer,)))
        elif isinstance(answer, Told):
            if answer.worker in self.told:
                self.told[answer.worker].add(answer.what)
        elif isinstance(answer, Goodbye):
            self._end(answer.reason)

    def _accept(self, accepted: Accepted) -> None:
        """The tasks of a bundle are stored: give their futures the ids."""
        with self.lock:
            bundle = self.outbox.flights.pop(accepted.seq, None)
        if bundle is None:  # of a request, or this client was closed meanwhile
            self._answer(accepted.seq, Reply(accepted.seq, ids=accepted.ids))
        else:
            self._futures.accept(bundle, accepted)

    def refuse(self, bundle: Bundle, refused: Refused) -> None:
        """End the futures of a bundle that will not be stored."""
        self._futures.refuse(bundle, refused)

    def _refuse(self, refused: Refused) -> None:
        bundle = self.outbox.flights.get(refused.seq)
        if bundle is not None:
            self.refuse(bundle, refused)
        elif refused.seq:
            self._answer(refused.seq, error_of(refused))
        else:
            self._end(refused.message)

    def _answer(self, seq: int, answer: Reply | TaskpoolError) -> None:
        with self.lock:
            call = self._calls.pop(seq, None)
        if isinstance(answer, Reply) and answer.lent is not None:
            worker = answer.lent[0]
            if call is not None:
                self.told[worker] = set()
            else:  # who asked for it does not wait any more
                self._due.append((self.request_soon, (lambda seq: Speak(0, worker, give_up=True),)))
        if call is not None:
            self._hand_over(call, answer)

    def _hand_over(self, call: Call, answer: Reply | TaskpoolError) -> None:
        """Answer a request. The first answer stands."""
        with self.lock:
            if call.answer is None:
                call.answer = answer
                call.done.release()

    # ---- the end ------------------------------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """Return whether nothing works any more."""
        return self.outbox.ended is not None

    def close(self, reason: str = "the pool was closed") -> None:
        """Leave: open futures end with PoolStopped. Safe to call twice, from callbacks, and in a forked child (which has left)."""
        if self.forked:
            return
        self._end(reason)
        if threading.get_ident() != self._thread_id:  # else a callback closes its own pool: the thread ends after it
            self._thread.join()

    def wait_gone(self, timeout: float | None) -> bool:
        """Wait until the other side has said goodbye or died. Return whether it has."""
        if threading.get_ident() == self._thread_id:
            return self._pump(lambda: self.stopped, timeout)
        self._thread.join(timeout)
        return self.stopped

    def _end(self, reason: str) -> None:
        """Settle everything that is open, once."""
        with self.lock:
            if self.stopped:
                return
            bundles = self.outbox.end(PoolStopped(reason))
            watched, waiters = self._futures.lose(bundles, reason)
            calls = list(self._calls.values())
            for told in self.told.values():
                told.add(OVER)
            self._calls = {}
        self._futures.settle_watched(watched)
        for call in calls:
            self._hand_over(call, PoolStopped(reason))
        for waiter in waiters:
            waiter.release()
        self._wake()

    @property
    def forked(self) -> bool:
        """Return whether this is a forked child's copy, which is of no use."""
        return self._thread_id == -1

    def check_process(self) -> None:
        """Raise PoolStopped in a forked child."""
        if self._thread_id == -1:
            raise self.outbox.stopped()

    def _leave_to_parent(self) -> None:
        """In a forked child: drop the copy of the connection; whatever is called from now on says why it cannot work."""
        self.lock = threading.Lock()  # the old ones may be held by threads that are not here
        self.outbox = Outbox(self, self._sock, self.lock, self._want_out)
        self.submit, self.put, self.send, self.flush = self.outbox.submit, self.outbox.put, self.outbox.send, self.outbox.flush
        self.outbox.end(PoolStopped(FORKED, hint="make one in the child, or start children with the spawn method"))
        self._thread_id = -1
        self._shut = True
        self._poller.close()
        self._sock.close()


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork() -> None:
    for link in list(_links):
        link._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
