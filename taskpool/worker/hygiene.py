"""What a body may leave behind in its process, and how the next one finds it as if nothing had run.

Most is put back: directory, environment, signal handlers and mask, timers, umask, limits, streams, descriptors 0 to 2. Children are
killed. What cannot be undone (threads that go on, a lowered hard limit, objects that still refer to a child that was killed) makes
the worker dirty: it begins nothing more, and the supervisor replaces it. Threads of numeric libraries are not Python's and do not
count. Not looked at, and so inherited: imported modules and their globals, warnings filters, locale.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the functions of `signal` make enums of all they return: 28 µs a look
import _thread
import gc
import os
import resource
import signal
import sys
import time

from taskpool.worker.output import Output, identity_of

THREAD_GRACE_S = 0.02  # so long a thread that is about to end is waited for
CHILD_GRACE_S = 0.5  # so long killed children are waited for

_SIGNALS = sorted(_signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


class Hygiene:
    """The state of a clean worker, taken when it is made, and the way back to it."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._threads = thread_count()
        self._directory = _directory()
        self._environ = os.environ
        self._variables = dict(os.environb)
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._umask = _umask()
        self._limits = list(map(resource.getrlimit, _LIMITS))
        self._null = identity_of(0)
        self._recursion = sys.getrecursionlimit()
        self._collects = gc.isenabled()
        self._main = sys.modules.get("__main__")

    def has_threads(self) -> bool:
        """Return whether a thread was left that does not end soon. Cheap when there is none."""
        if thread_count() <= self._threads:
            return False
        until = time.monotonic() + THREAD_GRACE_S
        while thread_count() > self._threads:
            if time.monotonic() > until:
                return True
            time.sleep(0.001)
        return False

    def restore(self, thorough: bool = True) -> bool:
        """Put back all that can be. Return whether the worker is clean. Not thorough: without what costs most and is rarest."""
        clean = not self.has_threads()
        clean &= self._restore_interpreter()
        clean &= self._restore_signals()
        clean &= self._restore_places()
        clean &= self._output.restore(thorough)
        if thorough:
            clean &= self._restore_limits()
        if identity_of(0) != self._null:
            clean &= _null_as_stdin() == self._null
        return no_children() and clean

    def restore_rest(self) -> bool:
        """Put back what `restore` leaves out unless it is thorough. Return whether the worker is clean."""
        return self._output.restore() and self._restore_limits()

    def _restore_interpreter(self) -> bool:
        if sys.gettrace() is not None:
            sys.settrace(None)
        if sys.getprofile() is not None:
            sys.setprofile(None)
        if sys.getrecursionlimit() != self._recursion:
            sys.setrecursionlimit(self._recursion)
        if gc.isenabled() != self._collects:
            (gc.enable if self._collects else gc.disable)()
        if os.environ is not self._environ:
            os.environ = self._environ  # noqa: B003  # the object itself was replaced, its contents follow
        variables = os.environb
        if getattr(variables, "_data", None) != self._variables:
            for name in [name for name in variables if name not in self._variables]:
                del variables[name]
            variables.update(self._variables)
        return sys.modules.get("__main__") is self._main  # whoever takes that away has taken more

    def _restore_signals(self) -> bool:
        for timer in _TIMERS:
            if signal.getitimer(timer)[0]:
                signal.setitimer(timer, 0)
        if _signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return list(map(_signal.getsignal, _SIGNALS)) == self._handlers or self._restore_handlers()

    def _restore_handlers(self) -> bool:
        for signo, handler in zip(_SIGNALS, self._handlers, strict=True):
            if _signal.getsignal(signo) is not handler:
                if handler is None:
                    return False  # it was not set from Python, and so cannot be again
                signal.signal(signo, handler)
        return True

    def _restore_places(self) -> bool:
        if _umask() != self._umask:
            os.umask(self._umask)
        if _directory() != self._directory:
            try:
                os.chdir(self._directory)
            except OSError:
                return False
        return True

    def _restore_limits(self) -> bool:
        if list(map(resource.getrlimit, _LIMITS)) == self._limits:
            return True
        for limit, (soft, hard) in zip(_LIMITS, self._limits, strict=True):
            if resource.getrlimit(limit) != (soft, hard):
                try:
                    resource.setrlimit(limit, (soft, hard))
                except (OSError, ValueError):
                    return False
        return True


def thread_count() -> int:
    """Return the number of threads that Python started, by whatever module."""
    return int(_thread._count())


def no_children() -> bool:
    """End all child processes. Return True if none was alive; orphans of theirs count, as this process is their subreaper."""
    killed = False
    until = 0.0
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return not killed
        if ended is not None:
            continue  # a zombie, now reaped
        killed = True
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        until = until or time.monotonic() + CHILD_GRACE_S
        if time.monotonic() > until:
            return False
        time.sleep(0.001)


def _children() -> list[int]:
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                pids += map(int, file.read().split())
        except OSError:
            continue  # the thread has ended, or the kernel does not tell: the supervisor's sweep finds them
    return pids


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _null_as_stdin() -> tuple[int, int] | None:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if fd != 0:
        os.dup2(fd, 0)
        os.close(fd)
    return identity_of(0)
