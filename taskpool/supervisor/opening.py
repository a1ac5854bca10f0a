"""Getting at a store that others have just now: its last owner, who ends, or a guest that holds the write lock."""

from __future__ import annotations

import time
from collections.abc import Callable

from taskpool.config import Settings
from taskpool.errors import StoreLocked
from taskpool.store.conditions import StoreBusy
from taskpool.store.store import Store

OPEN_WAIT_S = 5.0  # how long a new owner waits for one that is just ending, or for a store that takes no writes
TELL_S = 0.3  # … before it says so


def open_store(settings: Settings, log: Callable[[str], None]) -> Store:
    """Open the store; wait a little for an owner that is just ending, saying so. Raises StoreError."""
    until = time.monotonic() + OPEN_WAIT_S
    told = False
    while True:
        try:
            return Store.open(settings.store, durability=settings.durability)
        except StoreLocked as error:
            if not error.ending or time.monotonic() > until:
                raise
            if not told and time.monotonic() > until - OPEN_WAIT_S + TELL_S:
                log("waiting for the last owner to end")
                told = True
            time.sleep(0.02)  # a lock of the kernel has nothing to wait on


def patiently(commit: Callable[[], object]) -> None:
    """Do what needs the store's write lock; wait a little for a guest that holds it."""
    until = time.monotonic() + OPEN_WAIT_S
    while True:
        try:
            commit()
            return
        except StoreBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)  # nor has that of SQLite
