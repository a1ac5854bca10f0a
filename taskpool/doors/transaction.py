"""Tasks in the caller's own transaction: they exist if, and only if, it commits."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, Self, Unpack

from taskpool.doors import held
from taskpool.doors.knock import find
from taskpool.doors.options import NOTHING_SAID, Said, TaskOptions
from taskpool.doors.outbox import draw_uids
from taskpool.doors.submitter import Plan, Submitter
from taskpool.errors import InvalidHandler, InvalidTask
from taskpool.model import TaskSpec
from taskpool.store import inbox
from taskpool.wire.references import OutOfPlace

if TYPE_CHECKING:
    from taskpool.doors.link import Link
    from taskpool.records import Record

KNOCK_TIMEOUT_S: Final = 1.0
ALONE: Final = "a task of a transaction, or that a task spawns, cannot wait for others"

Call = Callable[..., Any]


class Enqueued:
    """A task that is stored if the transaction commits that it was put into.

    uid: its UUID, by which `pool.future(…)` and `pool.get(…)` find it; store: the path of the store's file; id: its number, 0 until
    a supervisor is known to have it (`try_execute_now`).
    """

    __slots__ = ("_uid", "id", "name", "store")

    def __init__(self, uid: bytes, store: str, name: str) -> None:
        self._uid = uid
        self.store = store
        self.name = name
        self.id = 0

    @property
    def uid(self) -> str:
        """Return its UUID."""
        import uuid

        return str(uuid.UUID(bytes=self._uid))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {f'task {self.id}' if self.id else self.uid}>"


class Recorder(Submitter):
    """Makes specs of calls, as a Submitter that sends them would."""

    @property
    def _link(self) -> Link:
        raise InvalidTask("a transaction takes one task at a time", hint="use its submit")

    def spec(self, fn: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> TaskSpec:
        """Return the task that calls fn. Raises what `pool.submit` does for what cannot be sent."""
        plan = self._plan(fn)
        if plan.after:
            raise InvalidTask(ALONE, hint="submit it after the commit")
        try:
            codec, payload = plan.encode(args, kwargs or {})
        except OutOfPlace as error:  # a future among the arguments
            raise InvalidTask(ALONE, hint="submit it after the commit, or pass a result") from error
        options, at = plan.travel()
        spec = TaskSpec(next(draw_uids()), plan.name, codec, payload, options, plan.queue, plan.priority, at)
        if plan.names_of is not None:
            spec.key, spec.unique = plan.names_of(args, kwargs or {})
            if spec.unique is not None:
                raise InvalidTask(
                    "a task in a transaction, or that a task spawns, has no unique key: who has it is settled only later",
                    hint="leave out unique here; in a transaction a UNIQUE column of your own tables does it",
                )
        return spec

    def spec_of(self, call: Any) -> TaskSpec:
        """Return the task for a call without arguments: a handler, or a partial of one."""
        if isinstance(call, partial):
            return self.spec(call.func, call.args, call.keywords)
        if not callable(call):
            hint = "functools.partial(fn, 1, 2), or a function without arguments; `tx.put_all` takes records"
            raise InvalidHandler(f"{call!r:.100} is no call", hint=hint)
        return self.spec(call)

    def _plan(self, fn: Any) -> Plan:
        if isinstance(fn, str):
            from taskpool.doors.named import NamedPlan

            plan: Any = NamedPlan(fn, self._said)
            return plan  # type: ignore[no-any-return]  # a Plan for all that use it
        return super()._plan(fn)


class Place(Protocol):
    """Where a transaction puts its tasks. locks: the path of the store that nobody else can write meanwhile, "" for none."""

    locks: str

    def put(self, specs: list[TaskSpec], *, new: bool = False) -> list[Enqueued]:
        """Put tasks into the transaction that is open. new: AlreadyExists if it is known that a uid of theirs is taken."""

    def committed(self, tasks: list[Enqueued]) -> None:
        """The transaction has committed: have them seen."""


class Own:
    """The store itself, over a connection to its file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._store = self.locks = inbox.check(connection)

    def put(self, specs: list[TaskSpec], *, new: bool = False) -> list[Enqueued]:
        """Put tasks into the inbox."""
        inbox.check_transaction(self._connection)
        inbox.insert(self._connection, specs, new=new)
        return [Enqueued(spec.uid, self._store, spec.name) for spec in specs]

    def committed(self, tasks: list[Enqueued]) -> None:
        """Tell the live supervisor."""
        try_execute_now(*tasks)


def enqueue(*calls: Call, connection: sqlite3.Connection, **options: Unpack[TaskOptions]) -> list[Enqueued]:
    """Put tasks into the transaction that is open on your connection to a store's file; they exist if, and only if, it commits.

    A call is `functools.partial(fn, *args)`, or a function without arguments. All are put, or none. Where Python begins
    transactions by itself this begins one, as an INSERT does. Once it is committed, `try_execute_now` starts them at once; without
    that a live supervisor is told by the file system, and one that starts later finds them.

    Raises InvalidTask for a connection that is closed, or on which no transaction is open; StoreUnusable for another file, or a
    connection that may only read; InvalidPayload and its like for what cannot be sent; and what sqlite3 says.
    """
    recorder = Recorder(NOTHING_SAID.plus(options))
    inbox.lock(connection)
    place = Own(connection)
    tasks = place.put([recorder.spec_of(call) for call in calls])
    held.note(place.locks, connection)
    return tasks


def try_execute_now(*tasks: Enqueued, timeout: float = KNOCK_TIMEOUT_S) -> bool:
    """Tell the live supervisor of these tasks, whose transaction has committed, and return whether it has all of them.

    They then have their `id`. Best effort: without a supervisor, or an answer within `timeout` seconds, they are in the store for
    whoever comes.
    """
    stores: dict[str, list[Enqueued]] = defaultdict(list)
    for task in tasks:
        stores[task.store].append(task)
    for store, those in stores.items():
        ids = find(store, [task._uid for task in those], timeout)
        for task, task_id in zip(those, ids or (), strict=False):
            task.id = task_id
    return all(task.id for task in tasks)


class Transaction:
    """`with taskpool.transaction(connection) as tx`: a transaction of yours, into which `tx.submit` puts tasks.

    It begins at once (BEGIN IMMEDIATE), commits when the block is left, and then tells the live supervisor; by an exception it is
    rolled back, and the tasks have never been. tasks: those that were put into it.
    """

    def __init__(
        self, connection: sqlite3.Connection, place: Place, said: Said = NOTHING_SAID, of: Transaction | None = None
    ) -> None:
        """Use `taskpool.transaction`."""
        self.connection = connection
        self._place = place
        self._recorder = Recorder(said)
        self._said = said
        self._of = of
        self._is_open = False
        self.tasks: list[Enqueued] = [] if of is None else of.tasks

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Enqueued:
        """Run fn(*args, **kwargs) as a task, once this has committed. Raises what `enqueue` does."""
        self._check_open()
        (task,) = self._place.put([self._recorder.spec(fn, args, kwargs)])
        self.tasks.append(task)
        return task

    def put_all(self, *records: Record) -> list[Enqueued]:
        """Store new records if this commits, all or none, and give a task_id to each that has none. PoolStore finds them then.

        AlreadyExists if a task_id is stored already (of an Outbox: such a record is the one that there is); InvalidTask,
        InvalidPayload.
        """
        from taskpool.doors.putting import specs_of

        self._check_open()
        if self._said != NOTHING_SAID:
            raise InvalidTask("a record says all of itself", hint="put_all of the transaction, without options")
        tasks = self._place.put(specs_of(records), new=True)
        self.tasks += tasks
        return tasks

    def options(self, **options: Unpack[TaskOptions]) -> Transaction:
        """Return a view of this transaction under which its tasks have these options. Raises InvalidTask, naming the option."""
        return Transaction(self.connection, self._place, self._said.plus(options), self._of or self)

    def _check_open(self) -> None:
        if not (self._of or self)._is_open:
            raise InvalidTask("this transaction is not open", hint="with taskpool.transaction(connection) as tx: tx.submit(…)")

    def __enter__(self) -> Self:
        if self._of is not None or self._is_open:
            raise InvalidTask("this transaction is open already")
        begin(self.connection)
        self._is_open = True
        held.hold(self._place.locks, self.connection)
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._is_open = False
        try:
            if kind is not None:
                roll_back(self.connection)
                return
            commit(self.connection)
        finally:
            held.release(self.connection)
        if self.tasks:
            self._place.committed(self.tasks)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transaction belongs to its connection")


def transaction(connection: sqlite3.Connection) -> Transaction:
    """Return a transaction on your connection to a store's file, for a `with`.

    Raises InvalidTask for a connection that is closed or has a transaction open already; StoreUnusable for another file.
    """
    return Transaction(connection, Own(connection))


# ---- transactions, in each of Python's ways of having them ----------------------------------------------------------------


def begin(connection: sqlite3.Connection) -> None:
    """Begin a transaction that may write. InvalidTask if one is open, unless Python keeps one open at all times."""
    if getattr(connection, "autocommit", None) is False:
        return
    if connection.in_transaction:
        raise InvalidTask(
            "a transaction is open on this connection already", hint="end it first, or use taskpool.enqueue(…, connection=…) in it"
        )
    connection.execute("BEGIN IMMEDIATE")


def commit(connection: sqlite3.Connection) -> None:
    """Commit; if that fails, roll back."""
    try:
        if getattr(connection, "autocommit", None) is False:
            connection.commit()
        elif connection.in_transaction:  # else it was ended inside
            connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back what is open."""
    if getattr(connection, "autocommit", None) is False:
        connection.rollback()
    elif connection.in_transaction:
        connection.execute("ROLLBACK")
