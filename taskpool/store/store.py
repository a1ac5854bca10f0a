"""The store of one supervisor: its file, opened once, written in one transaction a turn.

Durable before visible: when `commit` returns, the turn's rows survive what the store's durability names ("power": the loss of
power; "process": the death of any process). Who may write is settled three times over: by the record lock (`lock`), by the epoch
that every transaction looks at first, and by the version and status that every UPDATE asserts.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set

import msgspec

from taskpool import faults
from taskpool.clock import Clock, SystemClock
from taskpool.core import queues
from taskpool.core.commands import Plan, Save
from taskpool.core.effects import NONE, Key
from taskpool.core.events import DueStep
from taskpool.errors import BatchConflict, InvalidTask
from taskpool.model import Progress, Queue, TaskError
from taskpool.store import connection, eventlog, pruning, queue_rows, replies, schema, stages
from taskpool.store.check import Check
from taskpool.store.conditions import EffectChanged, Refused, StaleEpoch, StoreBusy, StoreFull, StoreIOError, in_our_words, in_words
from taskpool.store.effects import Effects
from taskpool.store.inbox import InboxReading
from taskpool.store.ledger import Ledger
from taskpool.store.lock import OwnerLock
from taskpool.store.opening import Found, boot_id, inspect
from taskpool.store.places import Places
from taskpool.store.plans import refused_with, unrefused
from taskpool.store.reading import LIVE, Reading
from taskpool.store.transactions import Transactions
from taskpool.store.writing import Writer
from taskpool.wire.jobs import Report

CHECKPOINT_ROWS = 20_000  # rows written since the last WAL checkpoint that make one due …
CHECKPOINT_COMMITS = 1_000  # … or transactions …
CHECKPOINT_BYTES = 16 << 20  # … or growth of the log
LOOK_COMMITS = 8  # … which is looked at after so many transactions
KEEP_EVENTS_S = 7 * 86_400.0  # how long a transition stays in the log
TRIM_COMMITS = 256  # between looks at whether the log of transitions is too long …
TRIM_ROWS = 1_000  # … of which so many rows at most are dropped at a time
OVERDUE = 4  # times that many rows or transactions, and `commit` itself makes the checkpoint that nobody made by `tidy`
WAL_WARN_BYTES = 64 << 20  # a log that long is kept from shrinking by somebody's open read transaction


class Store(Reading, InboxReading):
    """The owner's handle of one store. Not thread-safe: it belongs to the loop.

    epoch: how often the store has been owned; mark: the store's own name, which its processes bear; unclean: the last owner did not
    close it; rebooted: … and the machine has been booted since, so that what lay in its run directory is void; notices: what a
    person should know.
    """

    def __init__(self, db: sqlite3.Connection, places: Places, lock: OwnerLock, durability: str, *, memory: bool) -> None:
        """Use `Store.open`."""
        self._db = db
        self._lock: OwnerLock | None = lock
        self._memory = memory
        self._transactions = Transactions(db, str(places.db), durability)
        self._check: Check | None = None
        self._writer: Writer  # since the tables are there
        self._effects: Effects
        self._tried: Set[Key] = frozenset()  # whose effects stand in the transaction that is open
        self._rows = self._wal_bytes = 0  # as the last WAL checkpoint left them
        self._warned = False  # of a log that cannot shrink
        self.logged = 0  # the last turn that is in the log of transitions
        self._trim_at = 0  # turn at which that log is looked at
        self._wall = 0  # wall µs of the last turn
        self.keep_events_s = KEEP_EVENTS_S
        self.places = places
        self.path = str(places.db)
        self.tell: Callable[[str], None] = lambda notice: None  # called with what is noticed later than at the opening
        self._wal = str(places.wal)  # looked at each turn
        self.durability = durability
        self.notices: list[str] = []
        self.mark = ""
        self.boot_id = boot_id()
        self.unclean = False
        self.rebooted = False

    @property
    def epoch(self) -> int:
        """Return how often the store has been owned, this time included."""
        return self._transactions.epoch

    @property
    def has_graphs(self) -> bool:
        """Return whether any task depends on others: while none does, graphs cost nothing."""
        return self._writer.graphs.are_there

    def steps_due(self) -> list[DueStep]:
        """Return tasks that wait for their parents and need not any longer: some thousands at a time, until that is stored."""
        with in_words(self.path):
            return self._writer.graphs.due(self.rows)

    def steps_foreseen(self, ended: Mapping[int, int]) -> list[DueStep]:
        """Return tasks that may start once these have succeeded. ended: with the bytes of their results, not stored yet."""
        with in_words(self.path):
            return self._writer.graphs.foreseen(ended)

    # ---- opening and closing ----------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, durability: str = "power", clock: Clock | None = None, memory: bool = False
    ) -> Store:
        """Become the owner of a store, creating it if nothing is there, and raise its epoch.

        Raises StoreLocked, StoreTooNew, StoreCorrupt, StoreUnusable (also: StoreFull, StoreIOError) or StoreBusy; then what was
        found is as it was. memory: the rows live in this process only; the path still names the place of run files and the lock.
        """
        if durability not in connection.DURABILITIES:
            raise InvalidTask(f"there is no durability {durability!r}", hint=f"one of {', '.join(connection.DURABILITIES)}")
        places = Places(path)
        places.check()
        places.make()
        lock = OwnerLock(places.lock)
        db: sqlite3.Connection | None = None
        try:
            found = None if memory else inspect(places)
            if not memory and not places.db.exists():
                places.make_file(durable=durability == "power")
            db = connection.connect_owner(None if memory else places.db, durability)
            store = cls(db, places, lock, durability, memory=memory)
            store._set_up(found, clock or SystemClock())
        except BaseException as error:
            if db is not None:
                db.close()
            lock.release()
            known = in_our_words(error, places.db)
            if known is None:
                raise
            raise known from error
        return store

    def _set_up(self, found: Found | None, clock: Clock) -> None:
        """Bring the file to this version, and take its next epoch."""
        if found is None:
            self.mark = os.urandom(16).hex()
            schema.create(self._db, self.mark)
        else:
            if found.version < schema.VERSION:
                self._migrate(found.version)
            self.mark = found.mark
            self._transactions.epoch, self._transactions.turn = found.epoch, found.turn
            self.unclean = not found.clean
            self.rebooted = self.unclean and found.boot_id != self.boot_id
        self._transactions.epoch += 1
        with self._transactions.one(fence=False):
            self._db.execute(
                "UPDATE meta SET epoch = ?, clean = 0, boot_id = ?, durability = ?, opened_at = ?",
                (self.epoch, self.boot_id, self.durability, clock.now().wall),
            )
        self._writer = Writer(self._db, self.epoch)
        self.logged = self.last_logged()
        self._effects = Effects(self._db)
        connection.be_impatient(self._db)
        if not self._memory:
            self._transactions.remember(Ledger(self.places.ledger, self.mark, self._transactions.turn))
            if os.stat(self.path).st_mode & 0o077:
                words = "may be used by others than its owner, and whoever can write rows can run tasks (chmod 600)"
                self.notices.append(f"{self.path} {words}")

    def _migrate(self, have: int) -> None:
        from taskpool.store.migrations import migrate

        kept = migrate(self._db, None if self._memory else self.places.db, have, schema.VERSION)
        self.notices.append(f"{self.path} was migrated from schema {have} to {schema.VERSION}; as it was, it is kept in {kept}")

    def start_check(self) -> Check | None:
        """Start SQLite's quick check in a process of its own and return it, to be polled (None in memory: nothing to check)."""
        if not self._memory:
            self._check = Check(self.path)
        return self._check

    def announce_end(self) -> None:
        """Tell a process that wants to own the store next that it is worth waiting for a moment."""
        if self._lock is not None:
            self._lock.announce_end()

    def close(self, clean: bool = True) -> None:
        """Close the file and give up the lock; a second call does nothing.

        clean: empty the log, and note that nothing is left to recover: unless the last end was unclean, and no check since then has
        found the file sound. Otherwise, or if that cannot be written now, the next owner finds things as after a crash.
        """
        if self._lock is None:
            return
        found = self._check.poll() if self._check is not None else None
        try:
            if clean and not found:
                try:
                    with self._transactions.one(count=False):
                        self._db.execute("UPDATE meta SET clean = ?", (not self.unclean or found == "",))
                    self.checkpoint_wal()
                except (StoreBusy, StoreFull, StoreIOError, StaleEpoch, EffectChanged):
                    clean = False
        finally:
            if (clean and not found) or self._memory:
                self._db.close()
            else:
                connection.close_leaving_log(self._db, self.places.db)
            self._transactions.close()
            self._lock.release()
            self._lock = None

    # ---- the turn ---------------------------------------------------------------------------------------------------

    def try_effects(self, reports: Mapping[Key, Report]) -> dict[Key, TaskError]:
        """Begin the turn's transaction with the effects of these attempts; return which failed, and why. `commit` ends it.

        Attempts that the store does not have running are passed over: their reports come too late. Raises as `commit`.
        """
        self._transactions.check()
        with self._transactions.errors(keep=True):
            self._tried, failed = self._effects.try_all(reports, self._transactions.begin_anew)
        return failed

    def abandon(self) -> None:
        """Undo what `try_effects` did: nothing that it was tried for came of it."""
        self._transactions.rollback()

    def _apply_effects(self, reports: Mapping[Key, Report]) -> None:
        """Apply effects whose success is decided already. If one fails now, no word of this turn may be stored: end."""
        for (task_id, _), error in self._effects.apply_all(reports).items():
            words = f"an effect of task {task_id} that had been accepted fails now ({error.message})"
            self._transactions.broken = EffectChanged(f"{self.path}: {words}", hint="the next owner of the store decides anew")
            raise self._transactions.broken

    def commit(
        self,
        saves: Sequence[Save],
        now_wall: int = 0,
        *,
        together: Sequence[Collection[int]] = (),
        effects: Mapping[Key, Report] = NONE,
        plans: Sequence[Plan] = (),
    ) -> list[int]:
        """Store a turn in one transaction and return the ids that were refused (normally none), whose rows stay as they were.

        together: new tasks that are stored all or none, such as those of one submit; effects: the reports of the successes among
        the saves that have any, each of which is applied if that success is stored; plans: what became of schedules: where a task
        of a schedule is refused, so is all that the turn says of its times.

        Raises StoreBusy, StoreFull (nothing changed: call again), StaleEpoch (end this process), StoreIOError (likewise; what was
        written may or may not be there) and IllegalTransition (a bug: nothing was written). Each save carries its own time.
        """
        if not saves and not plans:
            self._transactions.rollback()
            return []
        grouped = self._writer.group(saves)
        self._writer.written = []
        refused: list[int] = []
        tried = self._db.in_transaction and self._tried == effects.keys()
        with self._transactions.one(join=tried):
            try:
                if not tried:
                    self._apply_effects(effects)
                for stage in grouped:
                    self._writer.write(stage)
            except (Refused, sqlite3.IntegrityError):
                self._transactions.begin_anew()
                refused = self._replay(saves, together, effects, plans)
            if plans:
                self._writer.write_plans(unrefused(plans, refused) if refused else plans)
            changed = self._writer.log(self._transactions.turn + 1, now_wall)
            self._wall = now_wall
            faults.point("commit.inside")
        if changed:
            self.logged = self._transactions.turn
        if self._has_written(OVERDUE):
            self.tidy()
        return refused

    def _replay(
        self, saves: Sequence[Save], together: Sequence[Collection[int]], effects: Mapping[Key, Report], plans: Sequence[Plan]
    ) -> list[int]:
        """Write a turn row by row, again until no tasks that belong together are stored in part."""

        def apply(key: Key) -> None:
            if key in effects:
                self._apply_effects({key: effects[key]})

        refused: set[int] = set()
        while True:
            refused.update(self._writer.replay(saves, refused, apply))
            more = {task_id for group in together if not refused.isdisjoint(group) for task_id in group}
            more |= refused_with(plans, refused)
            if more <= refused:
                return sorted(refused)
            refused |= more
            self._transactions.begin_anew()

    def forget_batch(self, batch: str) -> None:
        """Take the identity (batch, item) from the ended tasks of a batch, which stay as they are; BatchConflict if one is live."""
        with self._transactions.one():
            live = self._db.execute(f"SELECT id FROM task WHERE batch = ? AND {LIVE} LIMIT 1", (batch,)).fetchone()
            if live is not None:
                raise BatchConflict(f"task {live[0]} of batch {batch!r} has not ended", hint="cancel the batch, or wait for it")
            self._db.execute("UPDATE task SET batch = NULL, item = NULL, version = version + 1 WHERE batch = ?", (batch,))

    def register_queue(self, queue: Queue, *, replace: bool = False) -> Queue:
        """Store a queue's settings and return them, `paused` as it is now; the same again changes nothing, also not that.

        Raises QueueConfigConflict if it is registered with other settings, unless they are to be replaced.
        """
        with in_words(self.path):
            stored = queue_rows.states(self._db).get(queue.name)
        paused = queue.paused
        if stored is not None:
            paused = stored.paused or (queue.paused and not stored.registered)
            if stored.registered:
                if queues.same(stored.config, queue):
                    return msgspec.structs.replace(queue, paused=paused)
                if not replace:
                    raise queues.conflict(stored.config, queue)
        with self._transactions.one():
            queue_rows.write(self._db, queue, paused)
        return msgspec.structs.replace(queue, paused=paused)

    def limit_queue(self, name: str, concurrency: int) -> Queue:
        """Store how many tasks of a queue may run at once, and leave its other settings; return them."""
        with in_words(self.path):
            stored = queue_rows.states(self._db).get(name)
        config = Queue(name) if stored is None else stored.config
        return self.register_queue(queues.check(msgspec.structs.replace(config, concurrency=concurrency)), replace=True)

    def pause_queues(self, names: Sequence[str], paused: bool) -> list[Queue]:
        """Pause queues or let them go on (no names: all there are), and return their rules as they are now.

        What nobody registered and never had a task can be paused before it has one; to resume it is QueueNotRegistered.
        """
        known = {state.name: state.config for state in self.queues()}
        queues.check_pause(names, known, paused=paused)
        wanted = list(dict.fromkeys(names)) or list(known)
        with self._transactions.one():
            queue_rows.pause(self._db, wanted, paused)
        return [msgspec.structs.replace(known.get(name, Queue(name)), paused=paused) for name in wanted]

    def acknowledge(self, mailbox: str, seqs: Sequence[int]) -> list[int]:
        """Take responses out of a mailbox and return the numbers of those that were in it."""
        with self._transactions.one():
            return replies.take_out(self._db, mailbox, seqs)

    def save_progress(self, progress: Sequence[tuple[int, Progress]]) -> bool:
        """Store the latest progress of running tasks and return whether that could be done now.

        Progress is not worth a disk write of its own: power loss may take it.
        """
        if not progress:
            return True
        rows = [(task_id, at.done, at.total, at.text, at.at) for task_id, at in progress]
        try:
            with self._transactions.unhurried():
                self._db.executemany(stages.PROGRESS, rows)
        except (StoreBusy, StoreFull):
            return False
        return True

    # ---- retention --------------------------------------------------------------------------------------------------

    def prune(self, walk: pruning.Walk, rows: int = pruning.ROWS) -> list[int]:
        """Take one step of a walk through the ended tasks, delete what it finds, at most so many, and return which.

        All that belongs to a task goes in one transaction. The caller sees to it that no event of a turn to come speaks of ended
        tasks by their rows. Raises StoreBusy, StoreFull (nothing changed: `walk.repeat` before the next try), and as `commit`.
        """
        with in_words(self.path):
            ids = walk.find(self._db, rows)
        if walk.is_dry:
            return ids
        gone: Counter[str] = Counter()
        if ids or walk.schedules:
            with self._transactions.unhurried():
                if ids:
                    n, gone = pruning.remove(self._db, ids)
                    self._writer.rows += n
                if walk.horizon is not None:
                    self._writer.rows += pruning.remove_occurrences(self._db, walk.schedules, walk.horizon)
                faults.point("prune.inside")
        walk.gone += gone
        return ids

    # ---- the write-ahead log ----------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Make a WAL checkpoint if one is due. Called after a turn's answers are sent, so that nobody waits for it."""
        size = self.wal_bytes() if self._transactions.commits % LOOK_COMMITS == 0 else self._wal_bytes
        if self._has_written(1) or size - self._wal_bytes >= CHECKPOINT_BYTES:
            try:
                self.checkpoint_wal(truncate=size > 2 * CHECKPOINT_BYTES)
            except (StoreBusy, StoreFull):
                pass  # the log grows meanwhile; the next try comes after as much work again
            if self._wal_bytes >= WAL_WARN_BYTES and not self._warned:
                self._warned = True
                words = f"has grown to {self._wal_bytes >> 20} MB: somebody keeps a read transaction on the store open"
                self.notices.append(f"{self.places.wal} {words}")
                self.tell(self.notices[-1])
        if self._transactions.turn >= self._trim_at:
            self._trim_at = self._transactions.turn + TRIM_COMMITS
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest transitions that are too old: a slice of them, and only while nobody else writes."""
        horizon = self._wall - round(self.keep_events_s * 1e6)
        oldest = self._db.execute(eventlog.OLDEST).fetchone()
        if oldest is None or oldest[0] >= horizon:
            return
        try:
            with self._transactions.one(count=False):
                self._db.execute(eventlog.TRIM, {"horizon": horizon, "slice": TRIM_ROWS, "end": self._transactions.turn + 1})
        except (StoreBusy, StoreFull):
            pass  # there is no hurry

    def _has_written(self, times: int) -> bool:
        """Whether so many times the work that makes a checkpoint due was done since the last."""
        return self._writer.rows - self._rows >= CHECKPOINT_ROWS * times or self._transactions.commits >= CHECKPOINT_COMMITS * times

    def checkpoint_wal(self, truncate: bool = True) -> bool:
        """Copy the log into the file and return whether all of it could be; truncate: shorten the log too.

        RESTART and TRUNCATE exclude writers while they run, PASSIVE (what SQLite does by itself) does not.
        """
        if self._memory:
            return True
        try:
            with self._transactions.errors():
                faults.point("checkpoint.inside")
                busy, _, _ = self._db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'RESTART'})").fetchone()
            return not busy
        finally:
            self._rows = self._writer.rows
            self._transactions.commits = 0
            self._wal_bytes = self.wal_bytes()

    def wal_bytes(self) -> int:
        """Return the size of the log's file; beyond WAL_WARN_BYTES somebody's open read transaction keeps it from shrinking."""
        try:
            return 0 if self._memory else os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0
