"""Pool: a supervisor process of one's own, and the first of its clients.

The process is started first of all; what this side needs is imported while it starts.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from taskpool import config
from taskpool.config import Durability, OnOwnerDeath, Settings
from taskpool.doors.client import Client, enter, leave
from taskpool.doors.telling import tell
from taskpool.errors import InvalidSettings, InvalidTask, MissingGuard, PoolStopped
from taskpool.model import SECONDS_MAX
from taskpool.wire.messages import Stop, encoder
from taskpool.wire.zygote import Boot, Prepare

if TYPE_CHECKING:
    from taskpool.doors.link import Link

STOP_LIMIT_S = 30.0  # a supervisor that has not ended so long after it should have is killed, and its workers with it
POLITE_S = 0.001  # the grace of a pool that is left by an exception: bodies may not go on, but hear of it before they are killed
SAY_AFTER_S = 1.0  # of waiting for bodies that were told to stop
CAUSE_WAIT_S = 0.03  # from the end of the connection to asking how the supervisor died

# Not `-m`: that puts the working directory first in the path, with whatever modules lie there. The library is the one that runs
# here; the rest of our path comes after the interpreter's own, so that nothing of the user's hides a module of its.
_SUPERVISOR = """\
import sys
root, *path = sys.argv[3:]
sys.path.insert(0, root)
import taskpool
sys.path[:] = [*sys.path[1:], *path]
from taskpool.supervisor.start import main
sys.exit(main(sys.argv[1:3]))
"""


class Pool(Client):
    """Worker processes and the durable store they work from, for as long as a `with` block.

    store: a file (`pricing.db`: kill everything, run it again, it goes on), a bare name in the user's data directory, or nothing
    for a private one that is thrown away at the end; workers: None for as many as there are usable CPUs; durability: what an
    acknowledged submit survives, "power" (the default for a named store) or the death of "process"es (faster; the default for a
    private one); on_owner_death: what becomes of running tasks when this script dies, "stop" (back to waiting) or "drain" (they may
    end, for owner_grace seconds); cancel_grace: seconds from a cancel to the kill; preload: modules to import once, before workers
    are forked; max_workers: to so many processes it grows while work waits (None: not at all); worker_idle: seconds for which those
    beyond `workers` are not needed before they leave; retention: how long ended tasks are kept (default: succeeded and cancelled
    7 days, failed 30, interrupted for ever), seconds for all but the interrupted, "forever", or a mapping from status to either;
    poll_interval: seconds between looks at what nothing can tell the supervisor of (None: 30 at a wall clock that was set, 1 at the
    log of a store on a file system that the kernel cannot watch).

    Leaving the block waits for the futures this object handed out, and raises PoolStopped if the supervisor dies meanwhile. Leaving
    it by an exception or Ctrl-C stops: Cancelled is raised in what runs, after cancel_grace (or at another Ctrl-C) it is killed; it
    goes back to wait, and is done when a pool is opened on that store again. Raises InvalidSettings, StoreLocked, StoreError,
    MissingGuard.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        workers: int | None = None,
        durability: Durability | None = None,
        on_owner_death: OnOwnerDeath = "stop",
        owner_grace: float | timedelta = 60.0,
        cancel_grace: float | timedelta = 5.0,
        preload: Iterable[str] = (),
        max_workers: int | None = None,
        worker_idle: float | timedelta = 10.0,
        memory_limit: int | str | None = None,
        retention: float | timedelta | str | Mapping[str, float | timedelta | str] | None = None,
        labels: str | Iterable[str] | Mapping[str, int] = (),
        poll_interval: float | timedelta | None = None,
    ) -> None:
        _require_linux()
        _require_guard()
        modules = _modules(preload)
        said: dict[str, Any] = {
            "private": store is None,
            "workers": workers,
            "durability": durability,
            "on_owner_death": on_owner_death,
            "owner_grace": owner_grace,
            "cancel_grace": cancel_grace,
            "max_workers": max_workers,
            "worker_idle": worker_idle,
            "memory_limit": memory_limit,
            "retention": retention,
            "labels": labels,
            "poll_interval": poll_interval,
        }
        # All is checked before anything is started; the place of a private store is made after.
        self.settings: Settings = config.settings("/" if store is None else config.store_path(store), **said)
        self._supervisor = Supervisor()
        directory = None
        try:
            if store is None:
                directory = _private_directory()
                self.settings = config.settings(os.path.join(directory, "pool.db"), **said)
            super().__init__(self._supervisor.boot(self.settings, modules))
        except BaseException:
            self._supervisor.end()
            _throw_away(directory)
            raise
        # Also for a pool that is never left: at its collection, or at the interpreter's end.
        self._finalizer = weakref.finalize(self, _end, self._supervisor, directory, self.settings.store)
        self._left = False
        for notice in self.notices:
            tell(f"taskpool: {notice}")

    def close(self) -> None:
        """Wait for the futures that this object handed out, then end the pool. Safe to call twice."""
        self._leave(wait=True)

    def stop(self, grace: float | None = 0.0) -> None:
        """End the pool. grace: seconds that running tasks may go on (None: until they end); then they go back to wait.

        0: they are killed. More: when it is over Cancelled is raised in them, and cancel_grace later they are killed.
        Open futures raise PoolStopped. What waits stays in the store; a private store is thrown away. Safe to call twice.
        """
        _check_grace(grace)
        self._leave(wait=False, grace=grace)

    def __enter__(self) -> Self:
        if self._left:
            raise PoolStopped("this pool was closed; make another")
        enter(self)
        return self

    def __exit__(self, *exc: object) -> None:
        failed = bool(exc) and exc[0] is not None
        self._leave(wait=not failed, grace=POLITE_S if failed else 0.0)

    def _leave(self, *, wait: bool, grace: float | None = 0.0) -> None:
        leave(self)
        if self._left or self._link.forked:
            return  # what a forked child leaves goes on in its parent
        known = self._link.stopped  # whoever asked a future since then has been told
        try:
            if wait:
                self._link.join()
                if self._link.lost and not self._left:
                    self._tell_lost(known)
        except KeyboardInterrupt:
            grace = POLITE_S
            raise
        finally:
            self._left = True
            self._supervisor.ask_to_stop(grace)
            try:
                self._wait_for_bodies(grace)
                if self._hooks:
                    self._supervisor.end()
                    self._finish_hooks()  # while the file is there
            finally:
                self._finalizer()

    def _wait_for_bodies(self, grace: float | None) -> None:
        """Wait while what runs may end by itself; Ctrl-C cuts it short: the supervisor kills what runs, tree and all."""
        try:
            if grace == POLITE_S and not self._link.wait_gone(SAY_AFTER_S):
                tell("taskpool: waiting for running tasks, which were told to stop; Ctrl-C kills them")
            if grace != 0.0:
                self._link.wait_gone(self._supervisor.patience_s)
        except KeyboardInterrupt:
            self._supervisor.ask_to_stop(0.0)
            raise

    def _tell_lost(self, known: bool) -> None:
        """The pool ended before the tasks that were waited for: raise PoolStopped, or write it if it may be known already."""
        why, count = self._link.outbox.stopped(), self._link.lost
        rest = f"{count} of its tasks had not ended"
        place = "" if self.settings.private else f"; {self.settings.store} goes on with them when a pool is opened on it"
        if not known:
            raise PoolStopped(f"{why.message}: {rest}{place}")
        tell(f"taskpool: {why.message}: {rest}{place}")


class Supervisor:
    """The supervisor's process as the one who started it sees it: it starts at once, and `boot` tells it what to serve."""

    link: Link | None = None
    asked = False  # to end
    patience_s: float | None = STOP_LIMIT_S  # how long to wait for its end before it is killed
    _cancel_grace_s = 0.0

    def __init__(self) -> None:
        self._sock, theirs = map(_above_standard, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        with theirs:
            command = [sys.executable, "-P", "-c", _SUPERVISOR, "--fd", str(theirs.fileno()), *_search_path()]
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
                )
            except BaseException:
                self._sock.close()
                raise

    def boot(self, settings: Settings, preload: tuple[str, ...]) -> Link:
        """Tell it what to serve, and connect. Raises what it refuses with."""
        from taskpool.doors.link import Link

        self._cancel_grace_s = settings.cancel_grace_s
        try:
            frame = encoder.encode(Boot(settings, _prepare(preload), os.getpid()))
        except UnicodeEncodeError as error:  # such a name of a file has halves of surrogate pairs
            raise InvalidSettings(f"the path of a store or a script must be UTF-8: {error.object!r:.200}") from error
        try:
            self._sock.sendall(len(frame).to_bytes(4, "little") + frame)
        except OSError:
            pass  # it is dead already; greeting it finds out how it died
        self.link = Link(self._sock, name="pool", cause=self._cause)
        return self.link

    def ask_to_stop(self, grace_s: float | None) -> None:
        """Ask it to end; grace_s as in the Stop request. Asked again, it takes the shorter grace."""
        self.asked = True
        if self.link is not None:
            self.link.request_soon(lambda seq: Stop(seq, grace_s))
        after = self._cancel_grace_s if grace_s else 0.0
        self.patience_s = None if grace_s is None else grace_s + after + STOP_LIMIT_S

    def end(self) -> None:
        """Wait for its end, or make one, and reap it. Safe to call twice."""
        try:
            if self.link is not None:
                self.link.wait_gone(self.patience_s)
                self.link.close("the pool was closed")
            else:
                self._sock.close()  # it ends when it sees this
            self.process.wait(STOP_LIMIT_S)
        except BaseException as error:  # it hangs, or the user does not want to wait: its workers die with it
            self.process.kill()
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def _cause(self) -> str:
        """Return how it ended, in words; called when its connection has ended without any."""
        try:
            code = self.process.wait(CAUSE_WAIT_S)
        except subprocess.TimeoutExpired:
            return f"the supervisor (pid {self.process.pid}) closed the connection"
        how = f"exited with code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        return f"the supervisor (pid {self.process.pid}) {how}"


def _above_standard(sock: socket.socket) -> socket.socket:
    """Return a socket whose descriptor is none of the standard ones, which a script may have closed, and C code writes to."""
    if sock.fileno() > 2:
        return sock
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3))


def _check_grace(grace: Any) -> None:
    """Raise InvalidTask for what is no time that tasks may still run."""
    if grace is not None and not (isinstance(grace, int | float) and -SECONDS_MAX <= grace <= SECONDS_MAX):
        raise InvalidTask(f"grace must be a number of seconds, or None: {grace!r:.120}")


def _end(supervisor: Supervisor, directory: str | None, store: str) -> None:
    """End a pool for good, and throw its private store away. That a pool which nobody left had tasks to do is said."""
    link = supervisor.link
    assert link is not None
    if link.forked:
        return  # a child of the owner: nothing of it is ours
    dropped = not supervisor.asked and not link.stopped  # the script ends, or lets go of its pool, without having left it
    try:
        if dropped:
            supervisor.ask_to_stop(0.0)
        supervisor.end()
        if dropped and link.lost:
            rest = "they are gone with its private store" if directory else f"{store} goes on with them when a pool is opened on it"
            words = f"a pool was neither closed nor left by `with`, and {link.lost} of its tasks had not ended; {rest}"
            tell(f"taskpool: {words}")
    finally:
        _throw_away(directory)


def _private_directory() -> str:
    from tempfile import mkdtemp

    return mkdtemp(prefix=config.PRIVATE_PREFIX)


def _throw_away(directory: str | None) -> None:
    if directory is not None:
        from shutil import rmtree

        rmtree(directory, ignore_errors=True)


def _modules(preload: Iterable[str]) -> tuple[str, ...]:
    modules: tuple[Any, ...] = tuple(preload) if not isinstance(preload, str) else (preload,)
    if not all(isinstance(module, str) and module for module in modules):
        raise InvalidSettings(f"preload takes names of modules: {modules!r:.120}")
    return modules


def _prepare(preload: tuple[str, ...]) -> Prepare:
    """Return what workers must know of this script."""
    from taskpool.engines.preparation import describe_main
    from taskpool.wire.description import main_stem

    try:
        return Prepare(describe_main(), preload, main_stem())
    except RuntimeError as error:
        raise MissingGuard(str(error)) from error


def _require_guard() -> None:
    """Raise MissingGuard while the script is imported for workers."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise MissingGuard(
                "a pool is opened while a worker imports this script's functions",
                hint='put what starts the pool under `if __name__ == "__main__":`',
            )
        frame = frame.f_back


def _search_path() -> list[str]:
    """Return where the library lies, and our sys.path."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [root, *(os.path.abspath(entry) for entry in sys.path if entry)]


def _require_linux() -> None:
    if not sys.platform.startswith("linux"):
        raise InvalidSettings(f"taskpool runs on Linux; this is {sys.platform}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
