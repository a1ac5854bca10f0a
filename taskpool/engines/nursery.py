"""The supervisor's end of the zygote: starts it, asks it for workers, starts another when it dies."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Sequence

import msgspec

from taskpool.engines import linux
from taskpool.engines.deaths import signal_name
from taskpool.engines.launch import Launched, launch
from taskpool.wire.frames import FrameReader
from taskpool.wire.poller import IN, OUT, Poller
from taskpool.wire.zygote import Fork, Forked, Prepare, Prepared

FORKS_AHEAD = 16  # sent and not answered: the kernel bounds descriptors on their way, and the zygote forks one by one
DEATHS_MAX = 3  # of zygotes in a row that die while they import the handlers
LEAVE_S = 2.0  # from the end of its socket to the kill

_decoder = msgspec.msgpack.Decoder(Prepared | Forked)
_encoder = msgspec.msgpack.Encoder()
_length = struct.Struct("<I")


class Nursery:
    """One zygote after the other. `messages` gives what they say; `lost` names workers whose fork was never answered."""

    def __init__(
        self,
        prepare: Prepare,
        mark: str,
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
        first: Launched | None = None,
    ) -> None:
        """first: a zygote with that mark that is on its way already."""
        self.mark = mark
        self._prepare = prepare
        self._python = python
        self._environment = dict(os.environ) if environment is None else environment
        self._first = first
        self._queue: deque[tuple[bytes, Sequence[int], int]] = deque()  # frame, descriptors beside it, worker they are for
        self._asked: dict[int, None] = {}  # workers whose fork is asked for and not answered
        self._sent: list[int] = []
        self._ahead: set[int] = set()  # workers of `_asked` whose request is on its way or being worked on
        self._lost: list[int] = []
        self._deaths = 0
        self._prepared = False
        self._broken = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.spoke = False  # `messages` has something to tell

    def start(self, poller: Poller) -> None:
        """Start the first zygote, if that is not done. OSError if that cannot be."""
        if self._process is not None:
            return
        self._poller = poller
        linux.become_subreaper()  # before anything is imported: what an import leaves behind is looked for here, too
        self._begin()

    def _begin(self) -> None:
        launched = self._first or launch(self.mark, python=self._python, environment=self._environment)
        self._first = None
        self._socket, self._process, self.pid = launched.sock, launched.process, launched.process.pid
        self._reader = FrameReader(self._socket)
        self._prepared = False
        self._queue.clear()
        self._asked.clear()
        self._ahead.clear()
        self._put(_encoder.encode(self._prepare), (), 0)
        self._poller.add(self._socket.fileno(), self._on_socket, IN | OUT)
        self._flush()

    def _on_socket(self, events: int) -> None:
        self.spoke = self.spoke or bool(events & ~OUT)
        if events & OUT:
            self._flush()

    def fork(self, worker_id: int, descriptors: Sequence[int]) -> Forked | None:
        """Ask for a worker; return at once the refusal of a nursery that cannot ask, else None.

        The descriptors must stay open until `handed_over` names the worker.
        """
        if self._broken:
            return Forked(worker_id, 0, self._broken)
        if self._process is None:
            try:
                self._begin()
            except OSError as error:
                return Forked(worker_id, 0, f"no process that could fork workers: {error}")
        self._asked[worker_id] = None
        self._put(_encoder.encode(Fork(worker_id)), descriptors, worker_id)
        self._flush()
        return None

    def handed_over(self) -> list[int]:
        """Return the workers whose descriptors are on their way since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def _put(self, body: bytes, descriptors: Sequence[int], worker_id: int) -> None:
        self._queue.append((_length.pack(len(body)) + body, descriptors, worker_id))

    def _flush(self) -> None:
        """Send what may be sent now; an answer, or room in the socket, sends the rest."""
        events = IN
        while self._queue:
            data, descriptors, worker_id = self._queue[0]
            if descriptors and len(self._ahead) >= FORKS_AHEAD:
                break
            try:
                sent = socket.send_fds(self._socket, [data], descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                events = IN | OUT
                break
            except OSError:
                break  # it is gone, which `messages` will find
            if descriptors:
                self._sent.append(worker_id)
                self._ahead.add(worker_id)
            if sent < len(data):
                self._queue[0] = (data[sent:], (), 0)
            else:
                self._queue.popleft()
        self._poller.modify(self._socket.fileno(), events)

    # ---- what it says -----------------------------------------------------------------------------------------------

    def messages(self) -> list[Prepared | Forked]:
        """Return what the zygote has said since the last call, and start another if it has died."""
        found: list[Prepared | Forked] = []
        self.spoke = False
        if self._process is None:
            return found
        while True:
            frames = self._reader.read()
            found += map(_decoder.decode, frames)
            if not frames:
                break
        for message in found:
            if isinstance(message, Forked):
                self._asked.pop(message.worker_id, None)
                self._ahead.discard(message.worker_id)
            else:
                self._prepared = True
                self._deaths = 0
        if self._reader.eof:
            found += self._died()
        elif found:
            self._flush()
        return found

    def lost(self) -> list[int]:
        """Return the workers whose fork died with its zygote, since the last call: they are to be asked for again."""
        lost, self._lost = self._lost, []
        return lost

    def _died(self) -> list[Prepared | Forked]:
        assert self._process is not None
        self._process.kill()  # it closed its socket, so it is at its end in any case; and before ours is closed, lest it sweeps
        code = self._process.wait()
        self._poller.remove(self._socket.fileno())
        self._socket.close()
        self._process, self.pid = None, 0
        asked = list(self._asked)
        if not self._prepared:
            self._deaths += 1
        if self._deaths >= DEATHS_MAX:
            how = f"was killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"
            self._broken = f"the process that imports the handlers {how}, {DEATHS_MAX} times in a row"
            self._asked.clear()
            return [Prepared(error=self._broken), *(Forked(worker_id, 0, self._broken) for worker_id in asked)]
        self._lost = [*self._lost, *asked]
        try:
            self._begin()
        except OSError:
            pass  # the next `fork` tries again, and tells if it cannot
        return []

    # ---- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> bool:
        """Let the zygote sweep its epoch and end; return whether it could. Safe to call twice."""
        if self._process is None:
            return True
        self._poller.remove(self._socket.fileno())
        self._socket.close()
        try:
            self._process.wait(LEAVE_S if self._prepared else 0.0)  # while it imports, it does not listen
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            self._process, self.pid = None, 0
