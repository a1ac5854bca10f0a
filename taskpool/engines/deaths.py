"""How a worker died, in words and as a TaskError."""

from __future__ import annotations

import os
import resource
import signal

from taskpool.engines.engine import Limits
from taskpool.model import TaskError
from taskpool.worker.link import EXIT_DESCRIPTORS

STACK_CHARS_MAX = 16 * 1024  # of the stack that goes into the error
OUTPUT_CHARS_MAX = 4 * 1024  # of the output that does

Usage = resource.struct_rusage

_KINDS = {"timeout": "timeout", "deadline": "deadline", "heartbeat": "heartbeat", "cancel": "cancelled", "memory": "memory"}


def error_of(
    status: int,
    usage: Usage,
    *,
    why: str,
    fault: str,
    lasted_s: float,
    limits: Limits | None,
    memory: int,
    stack: str,
    output: str,
) -> TaskError:
    """Return the error of the attempt that a death ended.

    status: as wait4 has it; why: who killed the worker ("": nobody of us); fault: why it had to be killed although no limit or
    request said so; lasted_s: from the begin of the body to the death; memory: bytes it and its children held at the last look.
    """
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    kind = _KINDS.get(why, "interrupted") if why else "panic"
    return TaskError(
        kind=kind,
        message=_of_ours(why, lasted_s, limits, memory, peak)
        if why
        else f"its worker cannot be used: {fault}"
        if fault
        else _by_itself(code, peak),
        retryable=kind in ("panic", "timeout", "heartbeat", "memory"),
        traceback=stack[-STACK_CHARS_MAX:],
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        peak_rss_bytes=peak,
        output_tail=output[-OUTPUT_CHARS_MAX:],
    )


def without_ours(stack: str) -> str:
    """Return faulthandler's stacks without the frames below the body, which are the same for every task."""
    kept = []
    ours = False
    for line in stack.splitlines(keepends=True):
        if not line.startswith("  File "):
            ours = False
        elif line.endswith(" in call_body\n"):
            ours = True
        if not ours:
            kept.append(line)
    return "".join(kept)


def signal_name(number: int) -> str:
    """Return SIGSEGV for 11, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _of_ours(why: str, lasted_s: float, limits: Limits | None, memory: int, peak: int) -> str:
    after = f"killed {lasted_s:.3f} s after it began"
    if why == "timeout" and limits is not None and limits.timeout_s is not None:
        return f"over its timeout of {limits.timeout_s:g} s: {after}"
    if why == "heartbeat" and limits is not None and limits.heartbeat_s is not None:
        return f"no sign of life for {limits.heartbeat_s:g} s: {after}"
    if why == "memory" and limits is not None and limits.memory is not None:
        used = f"it and its processes held {memory / 1e6:.0f} MB, its own peak was {peak / 1e6:.0f} MB"
        return f"over its memory limit of {limits.memory / 1e6:.0f} MB: {used}; {after}"
    if why == "deadline":
        return f"its deadline passed: {after}"
    if why == "cancel":
        return f"cancelled: {after}"
    if why == "stop":
        return f"the pool was stopped: {after}"
    return f"its worker was ended ({why}): {after}"


def _by_itself(code: int, peak: int) -> str:
    memory = f"peak RSS {peak / 1e6:.0f} MB"
    if code == -signal.SIGKILL:
        return f"killed by SIGKILL, not by us; {memory} (the kernel does this when memory runs out)"
    if code < 0:
        return f"killed by {signal_name(-code)}; {memory}"
    if code == EXIT_DESCRIPTORS:
        return f"closed our file descriptors (exited with code {code})"
    return f"exited with code {code}; {memory}"
