"""What workers run where callers do the same by themselves."""

from __future__ import annotations

import time

from taskpool import controller


def slowly(n: int) -> int:
    """Leave a row with the success."""
    controller().on_success("INSERT INTO shop_done VALUES(?)", (controller().task.id,))
    time.sleep(0.05)
    return n


def never() -> None:
    """Fail where it must not run."""
    raise AssertionError("the callers run it, no worker does")


def hold() -> None:
    """Keep a worker busy."""
    time.sleep(3600)
