"""Waiting for a task inside an event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskpool.doors.future import TaskFuture


async def wait_in_loop(future: TaskFuture[Any]) -> None:
    """Return when the task has ended. Cancelled meanwhile: cancel the task, wait for its end, and pass the cancellation on.

    A second cancellation does not wait any more.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(_: object) -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            pass  # the loop was closed; nobody waits any more

    future.add_done_callback(tell)
    try:
        await ended.wait()
    except asyncio.CancelledError:
        future._link.cancel_soon(future, "its awaiting scope was cancelled")
        await ended.wait()
        raise
