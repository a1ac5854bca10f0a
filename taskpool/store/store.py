"""The store of one supervisor: its file, opened once, written in one transaction a turn.

Durable before visible: when `commit` returns, the turn's rows survive what the store's durability names ("power": the loss of
power; "process": the death of any process). Who may write is settled three times over: by the record lock (`lock`), by the epoch
that every transaction looks at first, and by the version and status that every UPDATE asserts.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path

from taskpool import faults
from taskpool.clock import Clock, SystemClock
from taskpool.core.commands import Save
from taskpool.errors import BatchConflict, InvalidTask, TaskpoolError
from taskpool.model import Progress
from taskpool.store import schema, stages
from taskpool.store.check import Check
from taskpool.store.conditions import Refused, StaleEpoch, StoreIOError, damaged, in_our_words
from taskpool.store.connection import DURABILITIES, connect_owner, version
from taskpool.store.lock import OwnerLock
from taskpool.store.places import Places
from taskpool.store.reading import Reading

CHECKPOINT_ROWS = 20_000  # rows written since the last WAL checkpoint that make one due …
CHECKPOINT_COMMITS = 1_000  # … or transactions …
CHECKPOINT_BYTES = 16 << 20  # … or growth of the log beyond this and beyond what it was
OVERDUE = 4  # times that much, and `commit` itself makes the checkpoint that nobody made by `tidy`
WAL_WARN_BYTES = 64 << 20  # a log that long is kept from shrinking by somebody's open read transaction


class Store(Reading):
    """The owner's handle of one store. Not thread-safe: it belongs to the loop."""

    def __init__(
        self, db: sqlite3.Connection, places: Places, lock: OwnerLock | None, durability: str, clock: Clock, *, memory: bool
    ) -> None:
        """Use `Store.open`."""
        self._db = db
        self._lock = lock
        self._clock = clock
        self._memory = memory
        self._broken: TaskpoolError | None = None
        self._rows = self._commits = 0  # since the last WAL checkpoint
        self._wal_bytes = 0  # the log's file as that checkpoint left it
        self.places = places
        self.path = str(places.db)
        self.durability = durability
        self.notices: list[str] = []
        self.epoch = 0
        self.mark = ""
        self.boot_id = ""
        self.unclean = False  # the last owner did not close the store
        self.rebooted = False  # … and the machine has been booted since: what lay in its run directory is void

    # ---- opening and closing ----------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, durability: str = "power", clock: Clock | None = None, memory: bool = False
    ) -> Store:
        """Become the owner of a store, creating it if nothing is there, and raise its epoch.

        Raises StoreLocked, StoreTooNew, StoreCorrupt, StoreUnusable (also: StoreFull, StoreIOError) or StoreBusy; then nothing was
        changed. memory: the rows live in this process only; the path still names the place of run files and the lock.
        """
        if durability not in DURABILITIES:
            raise InvalidTask(f"there is no durability {durability!r}", hint=f"one of {', '.join(DURABILITIES)}")
        places = Places(path)
        places.check()
        places.make()
        lock = OwnerLock(places.lock)
        db: sqlite3.Connection | None = None
        try:
            if not memory:
                _prepare_file(places, durability)
            db = connect_owner(None if memory else places.db, durability)
            store = cls(db, places, lock, durability, clock or SystemClock(), memory=memory)
            store._set_up()
        except BaseException as error:
            if db is not None:
                db.close()
            lock.release()
            known = in_our_words(error, places.db)
            if known is None:
                raise
            raise known from error
        return store

    def _set_up(self) -> None:
        have = version(self._db, self.path)
        if have is None:
            schema.create(self._db, uuid.uuid4().hex)
            self.checkpoint_wal()  # from now on the file itself says whose it is, whatever becomes of the log
        elif have < schema.VERSION:
            self._migrate(have)
        if not self._memory and os.stat(self.path).st_mode & 0o077:
            self.notices.append(
                f"{self.path} may be used by others than its owner: whoever can write rows can run tasks (chmod 600)"
            )
        self._begin()
        try:
            found = dict(self._db.execute("SELECT name, value FROM meta"))
            self.epoch = int(found["epoch"]) + 1
            self.mark = str(found["mark"])
            self.boot_id = boot_id()
            self.unclean = not found["clean"]
            self.rebooted = self.unclean and found["boot_id"] != self.boot_id
            self._db.executemany(
                "UPDATE meta SET value = ? WHERE name = ?", [(self.epoch, "epoch"), (self.boot_id, "boot_id"), (0, "clean")]
            )
            self._queues = {queue for (queue,) in self._db.execute("SELECT DISTINCT queue FROM tally")}
            self._saved = {task_id for (task_id,) in self._db.execute("SELECT task_id FROM checkpoint")}
            self._db.execute("COMMIT")
        except KeyError as error:
            raise damaged(self.path, f"its meta table lacks {error}") from error
        finally:
            self._rollback()

    def _migrate(self, have: int) -> None:
        from taskpool.store.migrations import migrate

        kept = migrate(self._db, None if self._memory else Path(self.path), have, schema.VERSION)
        self.notices.append(f"{self.path} was migrated from schema {have} to {schema.VERSION}; the file as it was is {kept}")

    def start_check(self) -> Check | None:
        """Start SQLite's quick check in a process of its own and return it, to be polled (None in memory: nothing to check)."""
        return None if self._memory else Check(self.path)

    def announce_end(self) -> None:
        """Tell a process that wants to own the store next that it is worth waiting for a moment."""
        if self._lock is not None:
            self._lock.announce_end()

    def close(self, clean: bool = True) -> None:
        """Close the file and give up the lock; a second call does nothing. clean: note that nothing is left to recover."""
        if self._lock is None:
            return
        try:
            if clean and self._broken is None:
                self._begin()
                try:
                    self._fence()
                    self._db.execute("UPDATE meta SET value = 1 WHERE name = 'clean'")
                    self._db.execute("COMMIT")
                finally:
                    self._rollback()
                self.checkpoint_wal()
        except sqlite3.Error as error:
            raise self._in_our_words(error) from error
        finally:
            self._db.close()
            self._lock.release()
            self._lock = None

    # ---- the turn's transaction -------------------------------------------------------------------------------------

    def commit(self, saves: Sequence[Save], now_wall: int = 0) -> list[int]:
        """Store a turn in one transaction and return the ids that were refused (normally none), whose rows stay as they were.

        Raises StoreBusy, StoreFull (nothing changed: call again), StaleEpoch (end this process), StoreIOError (likewise; what was
        written may or may not be there) and IllegalTransition (a bug: nothing was written).
        """
        if not saves:
            return []
        if self._broken is not None:
            raise self._broken
        grouping = stages.Grouping(self.epoch, self._saved)
        grouped = grouping.group(saves)
        refused: list[int] = []
        try:
            self._begin()
            try:
                self._fence()
                try:
                    for stage in grouped:
                        self._write(stage)
                except (Refused, sqlite3.IntegrityError):
                    self._db.execute("ROLLBACK")
                    self._begin()
                    self._fence()
                    refused = self._replay(saves)
                faults.point("commit.inside")
                self._db.execute("COMMIT")
            finally:
                self._rollback()
        except (sqlite3.Error, OSError) as error:
            raise self._in_our_words(error) from error
        self._saved |= grouping.saving
        self._commits += 1
        if self._overdue(OVERDUE):
            self.checkpoint_wal()
        return refused

    def _write(self, stage: stages.Stage) -> None:
        """Write one stage; Refused or IntegrityError if a row was not as it was said to be."""
        params = stage.params
        executemany = self._db.executemany
        for statement in stages.ASSERTED:
            rows = params.get(statement)
            if rows:
                if executemany(statement, rows).rowcount != len(rows):
                    raise Refused
                self._rows += len(rows)
        for statement in stages.UNASSERTED:
            rows = params.get(statement)
            if rows:
                executemany(statement, rows)
                self._rows += len(rows)
        self._count(stage)

    def _count(self, stage: stages.Stage) -> None:
        """Change the tally by what the stage changed."""
        queues = stage.queues
        self._queues.update(queues.values())
        deltas: dict[tuple[str, str], int] = {}
        if len(self._queues) == 1:
            (queue,) = self._queues
            for (before, after), ids in stage.changes.items():
                deltas[queue, after] = deltas.get((queue, after), 0) + len(ids)
                if before:
                    deltas[queue, before] = deltas.get((queue, before), 0) - len(ids)
        else:
            stored = [task_id for (before, _), ids in stage.changes.items() if before for task_id in ids]
            if stored:
                queues = queues | dict(self._db.execute(_QUEUES_OF, (f"[{','.join(map(str, stored))}]",)))
            for (before, after), ids in stage.changes.items():
                for task_id in ids:
                    queue = queues[task_id]
                    deltas[queue, after] = deltas.get((queue, after), 0) + 1
                    if before:
                        deltas[queue, before] = deltas.get((queue, before), 0) - 1
        if deltas:
            self._db.executemany(_TALLY, [(n, *key, n) for key, n in deltas.items() if n])

    def _replay(self, saves: Sequence[Save]) -> list[int]:
        """Store a turn row by row, each in a savepoint, and return the tasks whose writes were refused."""
        refused: dict[int, None] = {}
        for save in saves:
            if save.id in refused:
                continue
            self._db.execute("SAVEPOINT one")
            try:
                for stage in stages.Grouping(self.epoch, self._saved).group([save]):
                    self._write(stage)
            except (Refused, sqlite3.IntegrityError):
                self._db.execute("ROLLBACK TO one")
                refused[save.id] = None
            self._db.execute("RELEASE one")
        return list(refused)

    # ---- other writes -----------------------------------------------------------------------------------------------

    def save_progress(self, progress: Sequence[tuple[int, Progress]]) -> None:
        """Store the latest progress of running tasks; not worth a disk write of its own, so power loss may take it."""
        if not progress:
            return
        try:
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._begin()
            self._fence()
            self._db.executemany(stages.PROGRESS, [(task_id, at.done, at.total, at.text, at.at) for task_id, at in progress])
            self._db.execute("COMMIT")
            self._commits += 1
        except (sqlite3.Error, OSError) as error:
            raise self._in_our_words(error) from error
        finally:
            self._rollback()
            self._db.execute(f"PRAGMA synchronous = {DURABILITIES[self.durability]}")

    def forget_batch(self, batch: str) -> None:
        """Take the identity (batch, item) from the ended tasks of a batch, which stay as they are; BatchConflict if one is live."""
        try:
            self._begin()
            try:
                self._fence()
                live = self._db.execute(
                    "SELECT id FROM task WHERE batch = ? AND (status = 'running' OR status = 'queued' OR status = 'pending' "
                    "OR status = 'retrying') LIMIT 1",
                    (batch,),
                ).fetchone()
                if live is not None:
                    raise BatchConflict(f"task {live[0]} of batch {batch!r} has not ended", hint="cancel the batch, or wait for it")
                self._db.execute("UPDATE task SET batch = NULL, item = NULL, version = version + 1 WHERE batch = ?", (batch,))
                self._db.execute("COMMIT")
            finally:
                self._rollback()
        except (sqlite3.Error, OSError) as error:
            raise self._in_our_words(error) from error

    # ---- the write-ahead log ----------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Make a WAL checkpoint if one is due. Called after a turn's answers are sent, so that nobody waits for it."""
        if self._overdue(1):
            self.checkpoint_wal(truncate=self.wal_bytes() > CHECKPOINT_BYTES * 2)

    def _overdue(self, times: int) -> bool:
        if self._rows >= CHECKPOINT_ROWS * times or self._commits >= CHECKPOINT_COMMITS * times:
            return True
        return self.wal_bytes() > max(self._wal_bytes, CHECKPOINT_BYTES * times)

    def checkpoint_wal(self, truncate: bool = True) -> bool:
        """Copy the log into the file and return whether all of it could be; truncate: shorten the log too.

        RESTART and TRUNCATE exclude writers while they run, PASSIVE (what SQLite does by itself) does not.
        """
        self._rows = self._commits = 0
        if self._memory:
            return True
        faults.point("checkpoint.inside")
        try:
            busy, _, _ = self._db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'RESTART'})").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self._in_our_words(error) from error
        self._wal_bytes = self.wal_bytes()
        return not busy

    def wal_bytes(self) -> int:
        """Return the size of the log's file; beyond WAL_WARN_BYTES somebody's open read transaction keeps it from shrinking."""
        try:
            return 0 if self._memory else os.stat(self.places.wal).st_size
        except FileNotFoundError:
            return 0

    # ---- transactions -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def _fence(self) -> None:
        """Look once, under the write lock, whether this is still the store's owner."""
        epoch = self._db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
        if epoch != self.epoch:
            self._broken = StaleEpoch(f"{self.path} is owned by epoch {epoch}, this is {self.epoch}")
            raise self._broken

    def _rollback(self) -> None:
        """End a transaction that is still open; SQLite has ended it by itself after some errors."""
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # the first error tells more

    def _in_our_words(self, error: BaseException) -> BaseException:
        known = in_our_words(error, self.path)
        if isinstance(known, StoreIOError):
            self._broken = known
        return known or error


_QUEUES_OF = "SELECT task.id, task.queue FROM json_each(?) AS wanted CROSS JOIN task ON task.id = wanted.value"
_TALLY = "INSERT INTO tally(n, queue, status) VALUES(MAX(?, 0), ?, ?) ON CONFLICT(queue, status) DO UPDATE SET n = n + ?"


def _prepare_file(places: Places, durability: str) -> None:
    """Create the file if nothing is there; refuse a log without its file, which SQLite would delete as worthless."""
    try:
        empty = os.stat(places.db).st_size == 0
    except FileNotFoundError:
        places_wal = places.wal
        if places_wal.exists() and places_wal.stat().st_size > 0:
            raise damaged(places.db, f"it is gone, but its log {places_wal} is there") from None
        places.make_file(durable=durability == "power")
        return
    if empty and places.wal.exists() and places.wal.stat().st_size > 0:
        raise damaged(places.db, f"it is empty, but its log {places.wal} is not")


def boot_id() -> str:
    """Return the kernel's name for this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
