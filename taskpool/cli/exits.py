"""Exit codes, and the errors that carry them out of a verb."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from taskpool import errors


class Exit(enum.IntEnum):
    """How a command ended; the same numbers in `--help`, in docs and in tests."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_SERVER = 4
    REFUSED = 5
    CANCELLED = 7
    PANICKED = 8
    TIMED_OUT = 124
    CTRL_C = 130
    CLOSED_STDOUT = 141


MEANING = {
    Exit.OK: "all went well",
    Exit.FAILED: "at least one awaited task failed",
    Exit.USAGE: "the command line makes no sense",
    Exit.NOT_FOUND: "no such task, schedule, handler or store",
    Exit.NO_SERVER: "no server could be reached",
    Exit.REFUSED: "refused: a newer or damaged file, a conflict, or it needs -y",
    Exit.CANCELLED: "the awaited task was cancelled",
    Exit.PANICKED: "the awaited task's process died",
    Exit.TIMED_OUT: "--timeout ran out",
    Exit.CTRL_C: "interrupted with Ctrl-C",
    Exit.CLOSED_STDOUT: "the reader of standard output went away",
}


class CliError(errors.TaskpoolError):
    """A verb cannot do what was asked. code is for programs, exit for the shell, hint says what to do.

    detail: lines that people see before the message, such as the traceback of a module of theirs.
    """

    def __init__(self, message: str, exit_code: Exit, code: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit = exit_code
        self.code = code
        self.detail = detail


_NONSENSE = (
    errors.InvalidTask,
    errors.InvalidSettings,
    errors.InvalidPayload,
    errors.InvalidHandler,
    errors.ArgCountError,
    errors.ArgTypeError,
)
_BY_ERROR: tuple[tuple[tuple[type[errors.TaskpoolError], ...], Exit], ...] = (
    ((errors.NotFound, errors.HandlerNotFound), Exit.NOT_FOUND),
    ((errors.NoServer, errors.PoolStopped), Exit.NO_SERVER),
    (_NONSENSE, Exit.USAGE),
    ((errors.TaskFailed, errors.InternalError), Exit.FAILED),
)


def exit_of(error: errors.TaskpoolError) -> Exit:
    """Return the exit code of an error: its own, or that of its class; what is left is a refusal."""
    if isinstance(error, CliError):
        return error.exit
    return next((code for classes, code in _BY_ERROR if isinstance(error, classes)), Exit.REFUSED)


def exit_of_task(status: str, kind: str | None) -> Exit:
    """Return the exit code for one ended task by its status and the kind of its error."""
    if status == "succeeded":
        return Exit.OK
    if status == "cancelled":
        return Exit.CANCELLED
    return Exit.PANICKED if kind == "panic" else Exit.FAILED


def exit_of_tasks(codes: Iterable[Exit]) -> Exit:
    """Return one exit code for several tasks: failed before panicked before cancelled before ok."""
    seen = set(codes)
    return next((code for code in (Exit.FAILED, Exit.PANICKED, Exit.CANCELLED) if code in seen), Exit.OK)
