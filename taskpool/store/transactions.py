"""The owner's transactions: each is all or nothing, looks first whether this is still the owner, and ends with nothing left open.

What goes wrong is said in our words. After some errors nothing may be written any more over this connection: what was being written
may or may not be there, or somebody else owns the store. From then on every transaction raises what it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from taskpool.errors import TaskpoolError
from taskpool.store import connection
from taskpool.store.conditions import StaleEpoch, StoreIOError, in_our_words
from taskpool.store.ledger import Ledger


class Transactions:
    """Those of one connection. epoch: of the owner; turn: number of the last that was a turn; broken: why nothing may be written.

    commits: how many there were since somebody cleared that count.
    """

    def __init__(self, db: sqlite3.Connection, path: str, durability: str) -> None:
        self._db = db
        self._path = path
        self._durability = durability
        self._ledger: Ledger | None = None
        self.broken: TaskpoolError | None = None
        self.epoch = self.turn = self.commits = 0

    def remember(self, ledger: Ledger) -> None:
        """Have the number of each turn remembered in a ledger, until `close`."""
        self._ledger = ledger

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()

    def check(self) -> None:
        """Raise what keeps all from being written, if anything does."""
        if self.broken is not None:
            raise self.broken

    @contextmanager
    def one(self, *, fence: bool = True, count: bool = True, join: bool = False) -> Iterator[None]:
        """One transaction, all or nothing. fence: look at the epoch; count: it is a turn, which the ledger remembers.

        join: go on in the one that `begin_anew` began. Any other begins anew, and nothing of that one is left.
        """
        self.check()
        with self.errors():
            if not join:
                self.begin_anew(fence=fence, count=count)
            yield
            self._db.execute("COMMIT")
        self.commits += 1
        if fence and count:
            self.turn += 1
            if self._ledger is not None:
                self._ledger.write(self.turn)

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """One transaction that is no turn and is not worth a disk write of its own: a loss of power may take it, as a whole."""
        try:
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self.one(count=False):
                yield
        finally:
            self._db.execute(f"PRAGMA synchronous = {connection.DURABILITIES[self._durability]}")

    @contextmanager
    def errors(self, *, keep: bool = False) -> Iterator[None]:
        """Say in our words what SQLite says, and leave no transaction open. keep: unless all went well."""
        well = False
        try:
            yield
            well = True
        except (sqlite3.Error, OSError) as error:
            known = in_our_words(error, self._path)
            if known is None:
                raise
            if isinstance(known, StoreIOError):
                self.broken = known
            raise known from error
        finally:
            if not (keep and well):
                self.rollback()

    def begin_anew(self, *, fence: bool = True, count: bool = True) -> None:
        """Begin a transaction; of one that is open nothing is left."""
        self.rollback()
        self._db.execute("BEGIN IMMEDIATE")
        if fence:
            self._fence(count=count)

    def _fence(self, *, count: bool = True) -> None:
        """Make sure, under the write lock, that this is still the store's owner."""
        if count:
            mine = self._db.execute("UPDATE meta SET turn = ? WHERE epoch = ?", (self.turn + 1, self.epoch)).rowcount
        else:
            mine = self._db.execute("SELECT COUNT(*) FROM meta WHERE epoch = ?", (self.epoch,)).fetchone()[0]
        if mine != 1:
            self.broken = StaleEpoch(f"{self._path} has a newer owner than this one of epoch {self.epoch}")
            raise self.broken

    def rollback(self) -> None:
        """End a transaction that is still open; after some errors SQLite has ended it by itself."""
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # the first error tells more
