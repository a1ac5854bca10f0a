"""Handing in tasks: the part that a Client, a Pool and the views that `options(…)` makes of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, cast, overload

from taskpool.doors import held
from taskpool.doors.encoders import Encoders
from taskpool.doors.naming import names
from taskpool.doors.options import NOTHING_SAID, Said, TaskOptions
from taskpool.errors import ArgTypeError, InvalidPayload

if TYPE_CHECKING:
    from taskpool.doors.flow import Flow
    from taskpool.doors.future import TaskFuture
    from taskpool.doors.link import Link
    from taskpool.model import StepSpec, Task
    from taskpool.wire.codec import CallEncoder

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

PLANS_MAX = 512  # functions whose way of travelling is remembered
BULK_TASKS = 512  # tasks of one frame of submit_many
BULK_BYTES = 8 << 20


class Plan:
    """How calls of one function travel from one submitter: encoder, name, and everything that was said of it."""

    __slots__ = ("after", "description", "encode", "fixed", "fn", "name", "names_of", "priority", "queue", "said")

    def __init__(self, fn: Callable[..., Any], encoder: CallEncoder, said: Said) -> None:
        self.fn = fn
        self.said = said
        self.encode = encoder.encode
        self.name = encoder.name
        self.description = encoder.description if encoder.description.msgpack else None
        self.queue, self.priority = said.queue, said.priority
        self.fixed = said.fixed
        self.after = said.after
        self.names_of = said.names_of

    def call(self, link: Link, args: Sequence[Any]) -> tuple[int, bytes, StepSpec | None]:
        """Return (codec, payload) of a call, and what it depends on, if on anything."""
        if not self.after:
            try:
                return (*self.encode(args), None)
            except (InvalidPayload, ArgTypeError):
                pass  # such as a future that was not looked for
        from taskpool.doors.flow import dependent

        return dependent(link, self, args, {})

    def travel(self) -> tuple[bytes, int]:
        """Return (packed options, scheduled_at) for now."""
        return self.fixed or self.said.packed()


class Submitter(ABC):
    """Hands in tasks, all with the same options. Safe to use from several threads."""

    def __init__(self, said: Said, encoders: Encoders | None = None) -> None:
        self._said = said
        self._encoders = encoders or Encoders()
        self._plans: dict[int, Plan] = {}

    @property
    @abstractmethod
    def _link(self) -> Link:
        """The connection that tasks go over."""

    @overload
    def submit(self, fn: str, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]: ...

    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run fn(*args, **kwargs) as a task; it is durable when this returns. Threads that submit together share a commit.

        fn may be the name of a handler that this process has not got: then the arguments travel as JSON, and the worker makes of
        them what the handler's annotations say. Raises InvalidPayload, ArgCountError, ArgTypeError for what cannot be sent,
        HandlerNotFound for a name (with the nearest), PoolStopped when nobody is there to run it.
        """
        if held.by_thread:
            held.check(self._link.welcome.store)
        future: TaskFuture[Any] = self._submit(fn, args, kwargs)
        future._bundle.wait()
        if future._id:
            return future
        assert future._exception is not None
        raise future._exception

    def submit_nowait(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Run fn(*args, **kwargs) as a task, durable within a moment; what keeps it from being stored is raised by the future."""
        return self._submit(fn, args, kwargs)

    def submit_many(self, fn: Callable[[T], R], items: Iterable[T], /) -> list[TaskFuture[R]]:
        """Run fn(item) for each item, as many tasks; all are durable when this returns.

        All are encoded before the first is sent, so an item that cannot be sent leaves nothing behind. An item whose unique key
        another task has, with on_conflict="raise", is the only one not stored: its future has the AlreadyExists.
        """
        from taskpool.doors.outbox import Bundle

        if held.by_thread:
            held.check(self._link.welcome.store)
        bundles: list[Bundle] = []
        futures: list[TaskFuture[R]] = []
        for call in self._calls(fn, ((item,) for item in items)):
            if not bundles or len(bundles[-1].tasks) >= BULK_TASKS or bundles[-1].bytes > BULK_BYTES:
                bundles.append(Bundle(self._link))
            futures.append(self._link.put(bundles[-1], *call))
        for bundle in bundles:
            self._link.send(bundle)
        for bundle in bundles:
            bundle.wait()
        for future in futures:
            if not future._id and future._exception is not None and not future._is_taken:
                raise future._exception
        return futures

    def map(
        self,
        fn: Callable[..., R],
        /,
        *iterables: Iterable[Any],
        batch: str | None = None,
        fresh: bool = False,
        buffersize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        timeout: float | None = None,
        progress: bool | str = False,
    ) -> Iterator[R]:
        """Return an iterator over fn's results for the items of the iterables (in parallel, until the shortest ends).

        It is lazy: at most buffersize items (10,000) are under way or wait to be taken, so the input may be endless; the first are
        submitted now. ordered False: results come as they are ready. return_exceptions: a failure is returned in its place instead
        of raised. timeout: seconds from now until TimeoutError. progress: draw a bar on stderr (a text: its title).

        batch: a name under which item i is task (batch, i) for ever. The same call, after whatever death, finds what is done and
        does the rest; other work under that name is BatchConflict, fresh=True begins it anew. Without batch all work is new, and
        what nobody took the result of is cancelled when the iterator is closed.
        """
        from taskpool.doors.mapping import MapRun

        run: MapRun[R] = MapRun(
            self,
            fn,
            iterables,
            batch=batch,
            fresh=fresh,
            buffersize=buffersize,
            ordered=ordered,
            return_exceptions=return_exceptions,
            timeout=timeout,
            progress=progress,
        )
        return run.results()

    def publish(self, queue: str, type: str, payload: Any = None, /, **options: Unpack[TaskOptions]) -> Task:
        """Hand in a task by its queue and its type, and return it as it was stored. What runs it, its consumer says.

        payload: the handler's one argument, which travels as JSON. Raises InvalidQueueName, InvalidTaskType, HandlerNotFound
        (with the nearest types), InvalidPayload, InvalidTask, QueueFull.
        """
        from taskpool.core.directory import route

        name = route(queue, type)
        view = View(self, self._said.plus({**options, "queue": queue}))
        future = view.submit(name, *(() if payload is None else (payload,)))
        return future.task()

    def options(self, **options: Unpack[TaskOptions]) -> Submitter:
        """Return a view of this pool under which all tasks have these options. Raises InvalidTask, naming the option."""
        return View(self, self._said.plus(options))

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _submit(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        plan = self._plans.get(id(fn)) or self._plan(fn)
        try:
            codec, payload = plan.encode(args, kwargs)
        except (InvalidPayload, ArgTypeError):  # such as a future that was not looked for
            return self._submit_after(plan, args, kwargs)
        if plan.after:
            return self._submit_after(plan, args, kwargs)
        options, at = plan.fixed or plan.said.packed()
        if plan.names_of is None:
            return self._link.submit(plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description)
        named = plan.names_of(args, kwargs)
        return self._link.submit(plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description, None, *named)

    def _submit_after(self, plan: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskFuture[Any]:
        """Submit a task that depends on others: on futures among its arguments, or those of its option `after`."""
        from taskpool.doors.flow import dependent

        codec, payload, step = dependent(self._link, plan, args, kwargs)
        options, at = plan.travel()
        named = names(plan.names_of, args, kwargs, depends=step is not None)
        call = (plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description)
        return self._link.submit(*call, step, *named)

    def submit_flow(self, flow: Flow, /) -> Flow:
        """Hand in a graph of tasks, all or none of them; they are durable when this returns. Returns the flow.

        Raises InvalidTask, naming the path, if steps wait for each other, and what `submit` raises.
        """
        if held.by_thread:
            held.check(self._link.welcome.store)
        return flow._submit(self)

    def flow(self, name: str, *, fail_fast: bool = False) -> Flow:
        """Return a flow for a `with` block, which submits it at its end: `with pool.flow("nightly") as f: a = f.submit(…)`."""
        from taskpool.doors.flow import Flow

        return Flow(name, fail_fast=fail_fast, pool=self)

    def _plan(self, fn: Any) -> Plan:
        """Return how a function travels. Kept by identity (the plan holds the function, so its id is not used again)."""
        found = self._plans.get(id(fn))
        if found is None and isinstance(fn, str):
            from taskpool.doors.named import plan_by_name

            return cast("Plan", plan_by_name(self._link, fn, self._said))
        if found is None:
            decorated, given = getattr(fn, "_decorated", NOTHING_SAID), getattr(fn, "_given", NOTHING_SAID)
            found = Plan(fn, self._encoders.of(fn), given.over(self._said.over(decorated)))
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[id(fn)] = found
        return found

    def _calls(self, fn: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """Yield what Link.put takes for each call of a function."""
        plan = self._plan(fn)
        options, at = plan.travel()
        names_of = plan.names_of
        for args in arguments:
            codec, payload, step = plan.call(self._link, args)
            named = names(names_of, args, {}, depends=step is not None)
            yield plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description, None, None, step, *named


class View(Submitter):
    """A pool under certain options."""

    def __init__(self, of: Submitter, said: Said) -> None:
        super().__init__(said, of._encoders)
        self._of = of

    @property
    def _link(self) -> Link:
        return self._of._link

    def __repr__(self) -> str:
        return f"{self._of!r}.{self._said!r}"
