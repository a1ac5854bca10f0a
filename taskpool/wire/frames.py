"""Frames on a stream socket: four bytes of length (little-endian), then that many bytes.

The length is checked before anything is allocated, and both ends are buffers of the caller's: nothing here blocks.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from taskpool.errors import TaskpoolError

FRAME_BYTES_MAX = 64 << 20  # one frame: many tasks of up to 16 MiB travel in several
READ_BYTES = 1 << 16  # of one recv; from 128 KiB on, malloc maps fresh pages for each: 22 µs instead of 3 for a short frame

_length = struct.Struct("<I")
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # an int, not an enum made anew by each send


class FrameTooLong(TaskpoolError):
    """A peer announced a frame over the limit; the connection is of no further use."""

    code = "frame_too_long"


class Closed(Exception):
    """The peer closed the stream."""


class FrameReader:
    """Cuts what a socket delivers into frames. `eof` tells that the peer has closed; a torn last frame is never returned."""

    def __init__(self, sock: socket.socket, limit: int = FRAME_BYTES_MAX) -> None:
        self._sock = sock
        self._limit = limit
        self._buffer = bytearray()
        self.eof = False

    def read(self, flags: int = 0) -> list[bytes]:
        """Receive once and return the frames that are whole now (maybe none). Raises FrameTooLong; a reset counts as eof."""
        try:
            data = self._sock.recv(READ_BYTES, flags)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            self.eof = True
            return []
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        at, end = 0, len(buffer)
        while end - at >= 4:
            (size,) = _length.unpack_from(buffer, at)
            if size > self._limit:
                raise FrameTooLong(f"a frame of {size} bytes was announced; the limit is {self._limit}")
            if end - at - 4 < size:
                break
            frames.append(bytes(memoryview(buffer)[at + 4 : at + 4 + size]))
            at += 4 + size
        if at:
            del buffer[:at]
        return frames


class FrameWriter:
    """Queues frames and sends what the socket takes. `pending` bytes are left until `flush` is called again."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[memoryview] = deque()
        self.pending = 0

    def send(self, body: bytes) -> bool:
        """Queue one frame and send what is possible now. Return whether all is sent. Raises Closed."""
        self.put(body)
        return self.flush()

    def put(self, body: bytes) -> None:
        """Queue one frame without sending."""
        size = len(body)
        if size > FRAME_BYTES_MAX:
            raise FrameTooLong(f"a frame of {size} bytes is over the limit of {FRAME_BYTES_MAX}")
        if size < 65536:
            self._queue.append(memoryview(_length.pack(size) + body))
        else:
            self._queue.append(memoryview(_length.pack(size)))
            self._queue.append(memoryview(body))
        self.pending += size + 4

    def flush(self) -> bool:
        """Send what the socket takes now. Return whether nothing is left. Raises Closed when the peer is gone."""
        queue = self._queue
        while queue:
            try:
                sent = self._sock.send(queue[0], _SEND_FLAGS)
            except BlockingIOError:
                return False
            except OSError as error:
                raise Closed(str(error)) from error
            self.pending -= sent
            if sent == len(queue[0]):
                queue.popleft()
            else:
                queue[0] = queue[0][sent:]
        return True
