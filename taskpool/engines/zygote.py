"""The zygote: a process with one thread that has imported the handlers, and forks workers.

Started by exec, so that it holds nothing of the supervisor: no store, no lock, no other worker's pipe. It forks twice: the
intermediate process tells the supervisor the worker's pid and ends, whereupon the worker becomes a child of the supervisor (a
subreaper), which alone can then wait for it. When the supervisor is gone, the zygote kills what is left of its epoch, and ends.

A module that leaves a Python thread behind cannot be imported here (a lock held by a thread at the moment of a fork stays held
in the child for ever): the zygote then executes itself anew, and leaves that module to each worker.
"""

from __future__ import annotations

import _thread
import array
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from typing import NoReturn

import msgspec

from taskpool.core.registry import default_registry
from taskpool.engines import linux, preparation, sweep
from taskpool.errors import TaskpoolError
from taskpool.wire import barrier
from taskpool.wire.description import set_main_stem
from taskpool.wire.zygote import Fork, Forked, Prepare, Prepared
from taskpool.worker import main as worker

LIFELINE_SIGNAL = signal.SIGRTMIN + 3  # from the kernel, when the supervisor is gone
THREAD_GRACE_S = 0.02  # so long a thread that is about to end is waited for
TRACEBACK_CHARS_MAX = 64 * 1024

_length = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Prepare | Fork)


class Channel:
    """The zygote's blocking end of the socket to the supervisor: framed messages, descriptors beside them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.descriptors: list[int] = []

    def receive(self) -> Prepare | Fork | None:
        """Return the next message (its descriptors are in `descriptors` then), None when the supervisor is gone.

        Not a byte more is read than belongs to it: what follows must still be there after an execution anew.
        """
        head = self._exactly(4)
        body = self._exactly(_length.unpack(head)[0]) if head else b""
        return _decoder.decode(body) if body else None

    def _exactly(self, size: int) -> bytes:
        """Return so many bytes, or none when the supervisor is gone."""
        data = b""
        while len(data) < size:
            try:
                part = self._receive(size - len(data))
            except ConnectionError:
                return b""
            if not part:
                return b""
            data += part
        return data

    def _receive(self, size: int) -> bytes:
        found = array.array("i")
        space = socket.CMSG_SPACE(16 * found.itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
        self.descriptors += found
        return data

    def send(self, message: Prepared | Forked) -> None:
        """Send one message, waiting for room. A supervisor that is gone is noticed by the next `receive`."""
        body = _encoder.encode(message)
        try:
            self._sock.sendall(_length.pack(len(body)) + body)
        except ConnectionError:
            pass

    def survive_execution(self) -> None:
        """Keep it open through an exec of this process."""
        self._sock.set_inheritable(True)

    def close(self) -> None:
        """Close it in a process that is to become a worker."""
        self._sock.close()


class Zygote:
    """Prepares once, then forks on request."""

    def __init__(self, channel: Channel, supervisor: int, mark: str, kept: int | None) -> None:
        """kept: file with the Prepare that was received before this process executed itself anew."""
        self._kept = kept
        self._channel = channel
        self._supervisor = supervisor
        self._mark = mark
        self._prepare = Prepare()
        self._error = ""
        self._gc = True

    def run(self) -> NoReturn:
        """Serve until the supervisor is gone."""
        signal.signal(LIFELINE_SIGNAL, lambda *_: self._orphaned())
        linux.on_parent_death(LIFELINE_SIGNAL)
        if os.getppid() != self._supervisor:
            self._orphaned()
        if self._kept is not None:
            with open(self._kept, "rb") as file:
                message: Prepare | Fork | None = _decoder.decode(file.read())
        else:
            message = self._channel.receive()
        while message is not None:
            if isinstance(message, Prepare):
                self._prepare = message
                self._channel.send(self._prepared())
            else:
                descriptors = [self._channel.descriptors.pop(0) for _ in range(4)]
                self._fork(message.worker_id, descriptors)
            message = self._channel.receive()
        self._orphaned()

    # ---- preparing --------------------------------------------------------------------------------------------------

    def _prepared(self) -> Prepared:
        prepare = self._prepare
        notices = [f"{late} leaves a thread behind when it is imported; each worker imports it by itself" for late in prepare.late]
        code = ""
        preparation.entering = True
        try:
            self._import_all()
        except BaseException as error:  # SystemExit of a script's last line too
            self._error = _limited(_told(error))
            code = error.code if isinstance(error, TaskpoolError) else code
        preparation.entering = False
        self._gc = gc.isenabled()
        gc.collect()
        gc.disable()
        gc.freeze()  # what is imported is never collected: workers go on sharing its memory
        # Workers are born registered: a processor that idled on a worker's memory while it registered might not notice.
        barrier.register()
        known = default_registry
        return Prepared(known.names(), self._error, tuple(notices), code, known.said(), known.infos(), bool(prepare.late))

    def _import_all(self) -> None:
        prepare = self._prepare
        if prepare.main:
            preparation.enter_surroundings(prepare.main)
        set_main_stem(prepare.main_stem)
        threaded = [name for name in prepare.preload if name not in prepare.late and self._leaves_threads(name)]
        if prepare.main and "__main__" not in prepare.late and self._leaves_threads("__main__"):
            threaded.append("__main__")
        if threaded:
            self._execute_anew(threaded)

    def _leaves_threads(self, name: str) -> bool:
        before = _thread._count()  # counts threads that were made without `threading`, too
        _import(name, self._prepare)
        until = time.monotonic() + THREAD_GRACE_S
        while _thread._count() > before and time.monotonic() < until:
            time.sleep(0.001)
        return _thread._count() > before

    def _execute_anew(self, threaded: list[str]) -> NoReturn:
        late = (*self._prepare.late, *threaded)
        kept = os.memfd_create("taskpool-prepare", 0)
        os.write(kept, _encoder.encode(msgspec.structs.replace(self._prepare, late=late)))
        os.lseek(kept, 0, os.SEEK_SET)
        sys.stdout.flush()
        sys.stderr.flush()
        self._channel.survive_execution()
        # Whoever executes itself anew already has a kept file on its command line.
        arguments = sys.orig_argv if self._kept is None else sys.orig_argv[:-1]
        os.execv(sys.executable, [*arguments, str(kept)])

    # ---- forking ----------------------------------------------------------------------------------------------------

    def _fork(self, worker_id: int, descriptors: list[int]) -> None:
        try:
            if self._error:
                self._channel.send(Forked(worker_id, 0, f"the handlers' modules could not be imported: {self._error}"))
                return
            try:
                intermediate = _fork_quietly()
            except OSError as error:
                self._channel.send(Forked(worker_id, 0, f"cannot fork: {error}"))
                return
            if intermediate == 0:
                self._in_intermediate(worker_id, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        _, status = os.waitpid(intermediate, 0)
        if status:
            self._channel.send(Forked(worker_id, 0, f"the fork was cut short, status {os.waitstatus_to_exitcode(status)}"))

    def _in_intermediate(self, worker_id: int, descriptors: list[int]) -> NoReturn:
        me = os.getpid()
        try:
            pid = _fork_quietly()
        except OSError as error:
            self._channel.send(Forked(worker_id, 0, f"cannot fork: {error}"))
            os._exit(0)
        if pid == 0:
            self._in_worker(worker_id, descriptors, me)
        # Before this process ends, so that the supervisor knows the pid before it can find the worker among its children.
        self._channel.send(Forked(worker_id, pid))
        os._exit(0)

    def _in_worker(self, worker_id: int, descriptors: list[int], intermediate: int) -> NoReturn:
        try:
            self._channel.close()
            _wait_for_end(intermediate)
            # What a task leaves behind becomes a child of its worker: there it is found, and with the worker it goes.
            linux.become_subreaper()
            linux.set_name(f"tp-worker-{worker_id}")
            if self._gc:
                gc.enable()
            conn, page, stacks, output = descriptors
            os.dup2(output, 1)  # what fails from here on is told with the worker's death
            os.dup2(output, 2)
            for name in self._prepare.late:
                _import(name, self._prepare)
            worker.main(worker_id, conn, page, stacks, output, self._supervisor)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    def _orphaned(self) -> NoReturn:
        """The supervisor is gone: nothing of its epoch may live on."""
        sweep.kill_owned([self._mark])
        os._exit(0)


def _import(name: str, prepare: Prepare) -> None:
    if name == "__main__":
        preparation.enter_main(prepare.main)
    else:
        importlib.import_module(name)


def _fork_quietly() -> int:
    with warnings.catch_warnings():  # newer Pythons warn of native threads (OpenBLAS), which know how to be forked
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _wait_for_end(intermediate: int) -> None:
    """Wait until the intermediate process has ended, and this one is the supervisor's child."""
    if os.getppid() != intermediate:
        return
    pidfd = linux.pidfd_open(intermediate)
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os.close(pidfd)


def _told(error: BaseException) -> str:
    """Return the traceback of a failed import from the first frame that is neither ours nor the importer's; none if all are."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_IMPORTERS):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


_LIBRARY = os.path.dirname(os.__file__)
_IMPORTERS = (__file__, preparation.__file__, f"{_LIBRARY}/importlib/", f"{_LIBRARY}/multiprocessing/", "<frozen ")


def _limited(text: str) -> str:
    return text if len(text) <= TRACEBACK_CHARS_MAX else "…" + text[-TRACEBACK_CHARS_MAX:]


def main() -> NoReturn:
    """Be the zygote. Arguments: taskpool's directory, descriptor of the socket, pid of the supervisor, mark[, kept Prepare]."""
    _, fd, supervisor, mark, *kept = sys.argv[1:]
    gc.freeze()  # what is ours is never collected, nor looked through once more when the handlers are there
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    linux.set_name("tp-zygote")
    channel = Channel(socket.socket(fileno=int(fd)))
    os.set_inheritable(int(fd), False)
    Zygote(channel, int(supervisor), mark, int(kept[0]) if kept else None).run()
