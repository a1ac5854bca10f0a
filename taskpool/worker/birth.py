"""Becoming a worker: what a freshly forked copy of the zygote does before its first task.

It gives up what it shares with the zygote (signal handlers, session, random state, bookkeeping of multiprocessing) and makes sure
that it dies with the supervisor: the kernel's signal when its parent ends, set only once the supervisor is its parent.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import random
import signal
import sys

from taskpool.wire import barrier
from taskpool.worker.interrupt import STACK_SIGNAL

EXIT_ORPHAN = 71
OOM_SCORE_ADDED = 300  # of 1000: when memory runs out, a worker goes before the supervisor

_PR_SET_PDEATHSIG = 1
_KEPT_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, so that writes fail with an error


def die_with(supervisor: int) -> None:
    """Have the kernel kill this process when the supervisor ends; end it at once if the supervisor is not its parent.

    The process between had ended before this is called, so the parent now stays it: the supervisor, or nobody of ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != supervisor:
        os._exit(EXIT_ORPHAN)


def leave_session() -> None:
    """Lead a session and a process group of its own, so that Ctrl-C does not reach it and one kill reaches what it starts."""
    try:
        os.setsid()
    except PermissionError:
        pass  # it leads one already


def offer_to_oom_killer() -> None:
    """Let the kernel take a worker rather than the supervisor when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            now = int(file.read())
            file.seek(0)
            file.write(str(min(1000, now + OOM_SCORE_ADDED)))
    except (OSError, ValueError):
        pass  # a container may forbid it


def reset_signals() -> None:
    """Give every signal its default meaning, and block none."""
    for signo in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signo, signal.SIG_IGN if signo in _KEPT_IGNORED else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def take_null_stdin() -> None:
    """Make descriptor 0 read from /dev/null."""
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if fd != 0:
        os.dup2(fd, 0)
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]


def tell_stacks(fd: int) -> None:
    """Write the Python stacks of all threads to `fd` on a crash, and whenever STACK_SIGNAL comes."""
    faulthandler.disable()  # if a module enabled it in the zygote: its handlers went with the reset of the signals
    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True, chain=False)


def forget_the_parent() -> None:
    """Drop state that must not be the same in two workers: random generators, multiprocessing's children and finalizers."""
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    for package in ("multiprocessing", "multiprocess"):
        process, util = sys.modules.get(f"{package}.process"), sys.modules.get(f"{package}.util")
        if process is not None:
            process._children = set()  # type: ignore[attr-defined]
        if util is not None:
            util._finalizer_registry.clear()
            util._run_after_forkers()


def settle_memory() -> None:
    """Keep the collector from touching what all workers share, and let take-backs see what this process has begun."""
    gc.collect()
    gc.freeze()
    barrier.register()
