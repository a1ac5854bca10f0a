"""A client that says what no client of ours would: bytes as a test wants them, on the store's Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from taskpool.config import socket_path
from taskpool.wire.answers import answer_decoder
from taskpool.wire.messages import PROTOCOL, Answer, Hello, Refused, Request, Welcome, encoder

WAIT_S = 30.0


class RawClient:
    """One connection to the supervisor of a store."""

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(str(socket_path(Path(store))))
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        """Send bytes as they are. A supervisor that has hung up takes none."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def frame(self, body: bytes) -> None:
        """Send a frame."""
        self.say(struct.pack("<I", len(body)) + body)

    def send(self, request: Request) -> None:
        """Send a request."""
        self.frame(encoder.encode(request))

    def answer(self) -> Answer | None:
        """Return the next answer, None when the supervisor has hung up."""
        while len(self._buffer) < 4 or len(self._buffer) < 4 + struct.unpack_from("<I", self._buffer)[0]:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data
        (size,) = struct.unpack_from("<I", self._buffer)
        body, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        return answer_decoder.decode(body)

    def greet(self) -> Welcome:
        """Say hello, and return the welcome."""
        self.send(Hello(PROTOCOL, os.getpid(), "raw"))
        answer = self.answer()
        assert isinstance(answer, Welcome), answer
        return answer

    def ask(self, request: Request) -> Answer | None:
        """Send a request and return the answer."""
        self.send(request)
        return self.answer()

    def is_refused(self) -> bool:
        """Return whether the supervisor hangs up, with one answer that says why, or none."""
        answer = self.answer()
        return answer is None or (isinstance(answer, Refused) and self.answer() is None)
