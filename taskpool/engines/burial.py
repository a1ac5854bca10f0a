"""A dead worker's last event, from what it left: its page, its stack, its output, its exit status."""

from __future__ import annotations

import time

from taskpool.clock import NS
from taskpool.core.events import WorkerDied
from taskpool.engines import deaths
from taskpool.engines.link import Link
from taskpool.wire.page import STARTED


def death(link: Link, status: int, usage: deaths.Usage, begun: int, output: str) -> WorkerDied:
    """Return the event. status, usage: as wait4 has them; begun: the job whose body died with it (0: none); output: its own."""
    if not link.ready and not link.why and not link.fault:
        link.fault = f"it died before it was ready: {(output.strip() or 'it said nothing').splitlines()[-1]}"
    began_ns = link.page.words[STARTED] if begun else 0
    stack = deaths.without_ours(link.stack()) if begun or not link.why else ""
    error = deaths.error_of(
        status,
        usage,
        why=link.why,
        fault=link.fault,
        lasted_s=(time.monotonic_ns() - began_ns) / NS if begun else 0.0,
        limits=link.watch.limits(begun),
        memory=link.watch.memory_used,
        stack=stack,
        output=output,
    )
    died = WorkerDied(link.worker_id, link.pid, begun, began_ns, link.why, error, stack, output)
    if begun:  # what the worker used, less what its other bodies did
        died.cpu_user_us = max(0, round(usage.ru_utime * 1e6) - link.cpu_us[0])
        died.cpu_system_us = max(0, round(usage.ru_stime * 1e6) - link.cpu_us[1])
    return died
