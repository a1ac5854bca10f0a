"""Clients as sources of requests: the inherited socket of a Pool, and the store's Unix socket for everybody else of this user.

A client that does not read is dropped at OUT_BYTES_MAX, so that nobody else waits for it; the owner, whose process the
supervisor belongs to, is the exception: it may be in one long C call while its results pile up here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from taskpool import errors
from taskpool.errors import StoreUnusable, TaskpoolError
from taskpool.wire.frames import Closed, FrameReader, FrameTooLong, FrameWriter
from taskpool.wire.messages import Answer, Goodbye, Refused, Request, encoder
from taskpool.wire.poller import GONE, IN, OUT, Poller
from taskpool.wire.requests import request_decoder

OUT_BYTES_MAX = 64 << 20  # unsent answers of one client: a frame may be large, a pile of them means it does not read
CLIENTS_MAX = 256
RESERVE_FDS = 16  # kept free of clients, for workers
STARVED_S = 0.25  # between tries to serve clients when there is none for them
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection:
    """One client. follows: task ids whose progress it wants (None: it does not; empty: all that it watches)."""

    def __init__(self, number: int, sock: socket.socket, *, owner: bool) -> None:
        sock.setblocking(False)
        self.number = number
        self.sock = sock
        self.owner = owner
        self.reader = FrameReader(sock)
        self.writer = FrameWriter(sock)
        self.follows: set[int] | None = None
        self.greeted = False
        self.pid = 0  # as it says itself


class Server:
    """Accepts clients, decodes their requests, sends answers. Nothing here blocks."""

    def __init__(
        self, poller: Poller, on_request: Callable[[Connection, Request], None], on_gone: Callable[[Connection], None]
    ) -> None:
        self._poller = poller
        self._on_request = on_request
        self._on_gone = on_gone
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._next = 1
        self.connections: dict[int, Connection] = {}
        self.to_worker: Callable[[int, Answer], None] = lambda worker, answer: None
        self.starved = False  # clients wait for a descriptor to be free: call listen_again after STARVED_S
        self._again_at = 0.0  # monotonic seconds

    def listen(self, path: Path) -> None:
        """Listen on a Unix socket (0600, in a directory of ours, 0700). Only the holder of the store's lock calls this."""
        parent = path.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = parent.lstat()
        if found.st_uid != os.geteuid() or not os.path.isdir(parent) or parent.is_symlink():
            raise StoreUnusable(f"the directory of the control socket, {parent}, belongs to somebody else", hint="remove it")
        parent.chmod(0o700)
        path.unlink(missing_ok=True)  # left by a killed owner; the lock proves that nobody listens
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        umask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        listener.listen(128)
        self._listener, self._path = listener, path
        self._poller.add(listener.fileno(), self._accept)

    def adopt(self, sock: socket.socket, *, owner: bool = False) -> Connection:
        """Take a connected socket as a client."""
        connection = Connection(self._next, sock, owner=owner)
        self._next += 1
        self.connections[connection.number] = connection
        self._poller.add(sock.fileno(), lambda events: self._ready(connection, events))
        return connection

    def send(self, number: int, answer: Answer) -> None:
        """Send to a client; one that has left is passed over. A negative number is that of a worker which asked."""
        connection = self.connections.get(number)
        if connection is None:
            if number < 0:
                self.to_worker(-number, answer)
            return
        try:
            if not connection.writer.send(encoder.encode(answer)):
                self._poller.modify(connection.sock.fileno(), IN | OUT)
                if connection.writer.pending > OUT_BYTES_MAX and not connection.owner:
                    self.drop(connection)
        except FrameTooLong as error:
            if isinstance(answer, Refused):
                self.drop(connection)
            else:
                self.send(number, Refused(getattr(answer, "seq", 0), error.code, str(error), "ask for less at once"))
        except Closed:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a client's connection and say so."""
        if self.connections.pop(connection.number, None) is not None:
            self._poller.remove(connection.sock.fileno())
            connection.sock.close()
            self._on_gone(connection)

    def close(self, reason: str) -> None:
        """Say goodbye to all, wait a moment for what they have not taken, and stop listening. Safe to call twice."""
        if self._listener is not None:
            self._poller.remove(self._listener.fileno())
            self._listener.close()
            self._listener = None
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        for connection in list(self.connections.values()):
            try:
                connection.writer.put(encoder.encode(Goodbye(reason)))
                while not connection.writer.flush():
                    _wait_writable(connection.sock)
            except (Closed, OSError):
                pass
            self._poller.remove(connection.sock.fileno())
            connection.sock.close()
        self.connections.clear()

    def listen_again(self) -> None:
        """Try whether there is a descriptor for the clients that wait, if that was tried long enough ago."""
        if self.starved and self._listener is not None and time.monotonic() >= self._again_at:
            self.starved = False
            self._poller.modify(self._listener.fileno(), IN)

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _STARVED:
                self._poller.modify(self._listener.fileno(), 0)  # it would be ready all the time
                self.starved = True
                self._again_at = time.monotonic() + STARVED_S
            return  # else it left before it was served
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid not in (os.geteuid(), 0) or len(self.connections) >= CLIENTS_MAX or not _has_reserve():
            sock.close()
            return
        self.adopt(sock)

    def _ready(self, connection: Connection, events: int) -> None:
        if events & OUT and not events & GONE:
            try:
                if connection.writer.flush():
                    self._poller.modify(connection.sock.fileno(), IN)
            except Closed:
                self.drop(connection)
                return
        if not events & (IN | GONE) or connection.number not in self.connections:
            return
        try:
            frames = connection.reader.read()
            requests = [request_decoder.decode(frame) for frame in frames]
        except (
            FrameTooLong,
            msgspec.MsgspecError,
            ValueError,
            RecursionError,
            OverflowError,
        ) as error:  # ValueError: text that is none
            self.send(connection.number, Refused(0, "protocol", f"not a request of this protocol: {error}"))
            self.drop(connection)
            return
        for request in requests:
            self._on_request(connection, request)
        if connection.reader.eof:
            self.drop(connection)


def refusal(seq: int, error: TaskpoolError) -> Refused:
    """Return the answer that makes a client raise such an error; what is only ours to know is told as the public class above it."""
    code = next(one.code for one in type(error).__mro__ if issubclass(one, TaskpoolError) and one.__module__ == errors.__name__)
    return Refused(seq, code, error.message or str(error), error.hint)


def _wait_writable(sock: socket.socket) -> None:
    import select

    if not select.select([], [sock], [], 1.0)[1]:
        raise TimeoutError


def _has_reserve() -> bool:
    """Whether enough descriptors are left for workers."""
    try:
        probe = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(probe)
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return probe < soft - RESERVE_FDS
