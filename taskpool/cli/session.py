"""What the global options say, and the two ways to the tasks: reading the file, or asking the server that owns it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import to_json, write

if TYPE_CHECKING:
    from taskpool.doors.client import Client
    from taskpool.store.reading import Reader


@dataclass
class Session:
    """One run of the program. pool: what -C said; verbose: how often -v was given."""

    pool: str | None = None
    json: bool = False
    color: str = "auto"
    quiet: bool = False
    verbose: int = 0

    @property
    def meant(self) -> str:
        """What names the pool: -C, else TASKPOOL_POOL, else TASKPOOL_DB, else the default store's name."""
        given = self.pool or os.environ.get("TASKPOOL_POOL") or os.environ.get("TASKPOOL_DB")
        return given or "default"

    def store_path(self) -> Path:
        """Return the path of the store's file, whether it exists or not."""
        if self.meant.startswith("unix:"):
            with self.client() as client:
                return Path(client.store)
        from taskpool.config import store_path

        return store_path(self.meant)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the store for reading, with a live server or without. Raises CliError when there is no such file."""
        from taskpool.store.reading import Reader

        path = self.store_path()
        if not path.exists():
            raise CliError(
                f"there is no store at {path}", Exit.NOT_FOUND, "no_store", "-C names another one; `taskpool serve` makes one"
            )
        reader = Reader(path)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect to the server that owns the store. Raises NoServer, with what to do."""
        from taskpool.doors.client import connect

        with connect(self.meant) as client:
            yield client

    def show(self, document: Any) -> None:
        """Write one JSON document on stdout."""
        write(to_json(document))

    def say(self, text: str) -> None:
        """Write one line for people on stdout, unless JSON was asked for."""
        if not self.json:
            write(text)

    def note(self, text: str) -> None:
        """Write one remark on stderr, unless -q."""
        if not self.quiet:
            write(text, sys.stderr)
