"""Effects applied: a user's statements, inside the transaction that records the success they belong to.

They are the only SQL here that is not ours, so they run with their hands bound. An authorizer lets them read and change tables that
are not taskpool's, by triggers too, and nothing else: no schema, no PRAGMA, no ATTACH, no transactions. A budget of instructions
ends what would hold up everybody. Those of one attempt stand in a savepoint: if one fails, none of them has happened.

Some failures end the whole transaction, whatever savepoints there are: a statement that runs out of its budget, INSERT OR ROLLBACK,
RAISE(ROLLBACK), no memory. `Lost` tells: begin anew, without that attempt's effects.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

from taskpool.core.effects import Key
from taskpool.model import TaskError
from taskpool.store import schema
from taskpool.wire.effects import Effect
from taskpool.wire.jobs import Report

STEPS_MAX: Final = 10_000_000  # instructions of SQLite's machine for the effects of one attempt: a fraction of a second
STEPS_EACH: Final = 10_000  # … between two looks at them
VALUE_BYTES_MAX: Final = 32 << 20  # of a value that an effect computes
WORDS_MAX: Final = 200  # characters of a statement in a message

_SCHEMA: Final = frozenset(("sqlite_master", "sqlite_schema"))
_READABLE: Final = _SCHEMA | {"sqlite_sequence"}
_ALLOWED: Final = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE))
_CHANGES: Final = frozenset((sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE))
# What the store as a whole cannot do now: no fault of the statement.
_STORE: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    )
)


class Lost(Exception):
    """An effect failed and took the whole transaction with it. key: whose; error: what came of it."""

    def __init__(self, key: Key, error: TaskError) -> None:
        super().__init__(key)
        self.key = key
        self.error = error


class Effects:
    """Applies effects over the store's connection, inside its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._installed = False
        self._at_work = False  # a statement of a user's is compiled or runs
        self._steps = 0
        self._denied = ""
        self._connecting = False

    def _is_due(self, key: Key) -> bool:
        """Return whether the store has that attempt running: else its report comes too late."""
        mine = self._db.execute("SELECT 1 FROM task WHERE id = ? AND attempt = ? AND status = 'running'", key)
        return mine.fetchone() is not None

    def apply(self, key: Key, report: Report) -> TaskError | None:
        """Apply an attempt's effects, all or none; return why not. Raises Lost, and sqlite3.Error for what ails the store."""
        effects = report.effects or []
        self._install()
        self._db.execute("SAVEPOINT effects")
        self._steps = 0
        error: TaskError | None = None
        for number, effect in enumerate(effects, 1):
            error = self._try(effect, f"{number} of {len(effects)}")
            if error is not None:
                break
        if not self._db.in_transaction:
            raise Lost(key, error or TaskError("effect", "an effect ended the transaction", retryable=True))
        if error is not None:
            self._db.execute("ROLLBACK TO effects")
        self._db.execute("RELEASE effects")
        return error

    def apply_all(self, reports: Mapping[Key, Report]) -> dict[Key, TaskError]:
        """Apply all; return what failed: nothing of it may be stored then. Raises sqlite3.Error for what ails the store."""
        failed: dict[Key, TaskError] = {}
        for key, report in reports.items():
            try:
                error = self.apply(key, report)
            except Lost as lost:
                return {lost.key: lost.error}
            if error is not None:
                failed[key] = error
        return failed

    def try_all(self, reports: Mapping[Key, Report], begin: Callable[[], None]) -> tuple[Set[Key], dict[Key, TaskError]]:
        """Apply those that are due; return which could be, and which failed, and why. begin: begins a transaction, also anew."""
        failed: dict[Key, TaskError] = {}
        while True:
            begin()
            done: set[Key] = set()
            try:
                for key, report in reports.items():
                    if key in failed or not self._is_due(key):
                        continue
                    error = self.apply(key, report)
                    if error is None:
                        done.add(key)
                    else:
                        failed[key] = error
            except Lost as lost:
                failed[lost.key] = lost.error
            else:
                return done, failed

    def _try(self, effect: Effect, which: str) -> TaskError | None:
        """Run one statement; return why that could not be done."""
        # The comment keeps it from meeting a statement of ours that was compiled without an authorizer.
        sql = f"/* effect */ {effect.sql}"
        try:
            try:
                self._run(sql, effect)
            except sqlite3.DatabaseError:
                if not self._connecting:
                    raise
                self._denied = ""
                self._db.execute(f"EXPLAIN {sql}", effect.params).close()
                self._run(sql, effect)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _STORE:
                raise
            return self._failure(effect, which, error)
        except (MemoryError, OverflowError, ValueError) as error:
            return self._failure(effect, which, error)
        return None

    def _run(self, sql: str, effect: Effect) -> None:
        self._at_work, self._denied, self._connecting = True, "", False
        try:
            self._db.execute(sql, effect.params).close()
        finally:
            self._at_work = False

    def _failure(self, effect: Effect, which: str, error: Exception) -> TaskError:
        words = self._denied or str(error) or type(error).__name__
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            words = f"it takes more than {STEPS_MAX:,} steps"
        sql = " ".join(effect.sql.split())
        shown = sql if len(sql) <= WORDS_MAX else sql[:WORDS_MAX] + "…"
        kind = type(error)
        return TaskError(
            "effect", f"on_success statement {which}: {words}: {shown}", type_name=f"{kind.__module__}.{kind.__qualname__}"
        )

    # ---- what binds their hands -------------------------------------------------------------------------------------

    def _install(self) -> None:
        """Set the authorizer and the budget at the first effect of a store's life: those without effects pay nothing."""
        if not self._installed:
            self._installed = True
            self._db.set_authorizer(self._authorize)
            self._db.set_progress_handler(self._count, STEPS_EACH)
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)

    def _count(self) -> int:
        if not self._at_work:
            return 0
        self._steps += STEPS_EACH
        return self._steps > STEPS_MAX

    def _authorize(self, action: int, first: str | None, second: str | None, *where: Any) -> int:
        if not self._at_work or action in _ALLOWED:
            return sqlite3.SQLITE_OK
        name = (first or "").lower()
        if action == sqlite3.SQLITE_READ or action in _CHANGES:
            if name not in schema.TABLES and (
                not name.startswith("sqlite_") or (action == sqlite3.SQLITE_READ and name in _READABLE)
            ):
                return sqlite3.SQLITE_OK
            # A virtual table, such as that of a full-text search, declares its columns at its first use: let it, by an EXPLAIN.
            self._connecting |= action in _CHANGES and name in _SCHEMA
            self._denied = f"the table {first} is taskpool's" if name in schema.TABLES else f"the table {first} is SQLite's"
        elif action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() != "load_extension":
                return sqlite3.SQLITE_OK
            self._denied = "extensions cannot be loaded"
        elif action == sqlite3.SQLITE_PRAGMA and name == "data_version":  # which full-text search looks at by itself
            return sqlite3.SQLITE_OK
        else:
            self._denied = "only rows can be changed"
        return sqlite3.SQLITE_DENY
