"""membarrier(2): makes every thread of registered processes pass a full memory barrier, for less than a microsecond.

A worker stores `CURRENT` and then loads `LIMIT`; the supervisor stores `LIMIT` and then loads `CURRENT`. Processors let a load
pass an earlier store, so without a barrier both may see the old value and a task would run twice. A barrier on the worker's side
would cost each task; membarrier puts the whole price on the rare side.
"""

from __future__ import annotations

import ctypes
import os

_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_QUERY, _GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 0, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _membarrier(command: int) -> int:
    number = _NUMBERS.get(os.uname().machine)
    return -1 if number is None else int(_libc.syscall(number, command, 0, 0))


def available() -> bool:
    """Return whether the kernel has what `everywhere` needs."""
    return (
        _membarrier(_QUERY) & (_GLOBAL_EXPEDITED | _REGISTER_GLOBAL_EXPEDITED) == (_GLOBAL_EXPEDITED | _REGISTER_GLOBAL_EXPEDITED)
        and _membarrier(_QUERY) > 0
    )


def register() -> bool:
    """Let `everywhere` of other processes reach this one; to be called again after a fork. False where there is none."""
    return available() and _membarrier(_REGISTER_GLOBAL_EXPEDITED) == 0


def everywhere() -> None:
    """Have every running thread of every registered process, and this one, pass a full barrier. OSError if it cannot."""
    if _membarrier(_GLOBAL_EXPEDITED) != 0:
        raise OSError(ctypes.get_errno(), "membarrier")
