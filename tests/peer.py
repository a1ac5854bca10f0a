"""A supervisor on strings: the other end of a client's socket, which does what a test says.

A thread reads requests and hands each to `on_request`; by default it accepts every Submit and lets the test settle.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from taskpool.model import TaskError, TaskSpec
from taskpool.wire import messages as wire
from taskpool.wire.codec import encode_result
from taskpool.wire.frames import Closed, FrameReader, FrameWriter
from taskpool.wire.requests import request_decoder

WELCOME = wire.Welcome(wire.PROTOCOL, 4242, "/nowhere/x.db", 1, 2)


class Peer:
    """The scripted supervisor. `ours` is the client's end; `requests` what came, in order."""

    def __init__(
        self,
        on_request: Callable[[Peer, wire.Request], None] | None = None,
        greeting: wire.Answer = WELCOME,
        sock: socket.socket | None = None,
    ) -> None:
        if sock is None:
            self.ours, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock = sock
        self._reader = FrameReader(self._sock)
        self._writer = FrameWriter(self._sock)
        self._lock = threading.Lock()
        self._on_request = on_request or Peer.accept
        self._greeting = greeting
        self.requests: list[wire.Request] = []
        self.specs: dict[int, TaskSpec] = {}
        self._next_id = 1
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, *answers: wire.Answer) -> None:
        """Send answers to the client."""
        with self._lock:
            for answer in answers:
                self._writer.put(wire.encoder.encode(answer))
            try:
                while not self._writer.flush():
                    pass
            except Closed:
                pass

    def accept(self, request: wire.Request) -> None:
        """Accept a Submit and keep its specs; answer a Stop and go; leave everything else."""
        if isinstance(request, wire.Submit):
            ids = list(range(self._next_id, self._next_id + len(request.specs)))
            self._next_id += len(ids)
            self.specs.update(zip(ids, request.specs, strict=True))
            self.send(wire.Accepted(request.seq, ids))
        elif isinstance(request, wire.Stop):
            self.send(wire.Reply(request.seq), wire.Goodbye("stopped on request"))
            self.close()

    def succeed(self, task_id: int, value: Any = None) -> None:
        """Let a task succeed."""
        self.send(wire.Settled([succeeded(task_id, value)]))

    def fail(self, task_id: int, error: TaskError, status: str = "failed") -> None:
        """Let a task end badly."""
        self.send(wire.Settled([wire.Outcome(task_id, status, 1, 1, None, error, 0)]))

    def wait_for(self, kind: type, count: int = 1) -> list[Any]:
        """Wait until so many requests of a kind have come, and return them."""
        with self._came:
            assert self._came.wait_for(lambda: sum(isinstance(r, kind) for r in self.requests) >= count, 10)
        return [request for request in self.requests if isinstance(request, kind)]

    def wait_specs(self, count: int) -> None:
        """Wait until so many tasks were submitted."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.specs) >= count, 10)

    def close(self) -> None:
        """Die without a word."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _run(self) -> None:
        while not self._reader.eof:
            for frame in self._reader.read():
                request = request_decoder.decode(frame)
                if isinstance(request, wire.Hello):
                    self.send(self._greeting)
                else:
                    self._on_request(self, request)
                with self._came:
                    self.requests.append(request)
                    self._came.notify_all()
        self._sock.close()


def succeeded(task_id: int, value: Any = None) -> wire.Outcome:
    """Return the outcome of a task that returned value."""
    codec, data = encode_result(value)
    return wire.Outcome(task_id, "succeeded", 1, codec, data, None, 0)


def echo(peer: Peer, request: wire.Request) -> None:
    """Accept a Submit and let all of it succeed at once, with the item's number, or its id."""
    first = peer._next_id
    peer.accept(request)
    if isinstance(request, wire.Submit):
        peer.send(
            wire.Settled(
                [succeeded(first + n, first + n if spec.item is None else spec.item) for n, spec in enumerate(request.specs)]
            )
        )
