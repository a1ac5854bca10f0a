"""One question to the supervisor of a store, over a connection of its own: cheaper than a Client, for those who need no more."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

import msgspec

from taskpool.config import socket_path
from taskpool.errors import TaskpoolError
from taskpool.wire.answers import answer_decoder
from taskpool.wire.frames import FrameReader
from taskpool.wire.messages import Find, Reply, encoder


def find(store: str, uids: Sequence[bytes], timeout_s: float) -> list[int] | None:
    """Have a store's supervisor look into its inbox, and return the ids of these uids (0: not stored); None if nobody answers."""
    until = time.monotonic() + timeout_s
    frame = encoder.encode(Find(1, list(uids)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.settimeout(timeout_s)
            sock.connect(os.fspath(socket_path(store)))
            sock.sendall(len(frame).to_bytes(4, "little") + frame)
            reader = FrameReader(sock)
            while not reader.eof:
                sock.settimeout(max(1e-3, until - time.monotonic()))
                for answer in map(answer_decoder.decode, reader.read()):
                    return answer.ids if isinstance(answer, Reply) else None
        except (OSError, TaskpoolError, msgspec.MsgspecError):
            return None
    return None
