"""The first two frames of a connection: our Hello, and what the supervisor answers once it has loaded its handlers."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from taskpool.doors.refusals import error_of
from taskpool.errors import NoServer, PoolStopped
from taskpool.wire.answers import answer_decoder
from taskpool.wire.frames import FrameReader
from taskpool.wire.messages import PROTOCOL, Goodbye, Hello, Refused, Welcome, encoder


def greet(sock: socket.socket, reader: FrameReader, frames: deque[bytes], name: str, cause: Callable[[], str]) -> Welcome:
    """Say hello and wait for the answer: a socket with a timeout makes this NoServer when it runs out.

    frames: takes what was read beyond the answer. cause: says what is known of the other side's end.
    """
    try:
        # Not through a writer: it never waits, and this is the one place that may.
        hello = encoder.encode(Hello(PROTOCOL, os.getpid(), name))
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have refused us, and left, before: that is there to be read
            sock.sendall(len(hello).to_bytes(4, "little") + hello)
        while not frames:
            frames += reader.read()
            if reader.eof and not frames:
                raise PoolStopped(cause() or "the supervisor closed the connection before it was open")
    except TimeoutError as error:
        raise NoServer("the supervisor does not answer", hint="it may be stopped or overloaded") from error
    except OSError as error:
        raise PoolStopped(cause() or f"the supervisor cannot be reached: {error}") from error
    answer = answer_decoder.decode(frames.popleft())
    if isinstance(answer, Welcome):
        return answer
    if isinstance(answer, Refused):
        raise error_of(answer)
    raise PoolStopped(answer.reason if isinstance(answer, Goodbye) else f"an unexpected first answer: {answer!r:.200}")
