"""Executing a zygote: with the standard library only, so that a supervisor can do it first of all and import the rest meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import NamedTuple

MARK = "TASKPOOL_MARK"  # in the environment of all that descends from a zygote: whose it is (`sweep`)

# Run with `python -c`, which puts the directory that the pool happens to be started in before the standard library. The library is
# the one that runs here, whatever else is installed; its place in the path is for the user's modules to decide.
COMMAND = """\
import gc, sys
gc.disable()
sys.path[:] = [sys.argv[1], *filter(None, sys.path)]
import taskpool
del sys.path[0]
from taskpool.engines.zygote import main
main()
"""
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


class Launched(NamedTuple):
    """A zygote that was executed and waits for its Prepare: the process, our end of its socket, its owner's mark."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    mark: str


def settle_in() -> None:
    """Undo what a process of our own may have inherited from a careless parent.

    Standard descriptors that are closed: prints would be written to what is opened next. SIGCHLD ignored: children that die could
    not be asked how. Signals that are blocked.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free is this one
            os.set_inheritable(fd, True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def launch(mark: str, *, python: str = sys.executable, environment: dict[str, str] | None = None) -> Launched:
    """Execute a zygote whose descendants bear the mark. OSError if that cannot be."""
    mine, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            [python, *_interpreter_flags(), "-c", COMMAND, _ROOT, str(theirs.fileno()), str(os.getpid()), mark],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=marked_environment(dict(os.environ) if environment is None else environment, mark),
            start_new_session=True,
        )
    except BaseException:
        mine.close()
        raise
    finally:
        theirs.close()
    mine.setblocking(False)
    return Launched(process, mine, mark)


def marked_environment(environment: dict[str, str], mark: str) -> dict[str, str]:
    """Return the environment with an owner's mark (without spaces) added to whatever marks it has: pools nest."""
    return {**environment, MARK: " ".join([*environment.get(MARK, "").split(), mark])}


def _interpreter_flags() -> list[str]:
    """Return the options this interpreter was started with (-O, -W, -X …), as multiprocessing hands them on."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags
