"""Flow: a graph of tasks that is built first and handed in as a whole. A step as an argument of another is the edge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar

from taskpool.core import graph
from taskpool.doors.encoders import Encoders
from taskpool.doors.future import TaskFuture
from taskpool.errors import InvalidTask
from taskpool.model import Filter, FlowSpec, FlowState, Status, StepSpec
from taskpool.wire import references
from taskpool.wire.messages import Cancel, GetFlows, List, Retry

if TYPE_CHECKING:
    from taskpool.doors.link import Link
    from taskpool.doors.submitter import Plan, Submitter

    Call = tuple[Plan, int, bytes, list["Edge"]]

P = ParamSpec("P")
R = TypeVar("R")
On = Literal["success", "any", "failed"]
Encode = Callable[[Sequence[Any], dict[str, Any]], tuple[int, bytes]]
Edge = tuple[int, int, bool]  # as a StepSpec has them

LIVE = tuple(status for status in Status if not status.is_terminal)
STEPS_MAX = 100_000  # of one flow
NAME_LENGTH_MAX = 200
ARGUMENT_BYTES_MAX = 32 << 20  # arguments of all steps together: they travel in one frame


class Step(Generic[R]):
    """One task of a flow. As an argument of another step it stands for its result; once the flow is submitted it has a future."""

    __slots__ = ("_after", "_call", "_flow", "_future", "_number", "_on", "_sent", "label")
    _is_reference = True

    def __init__(self, flow: Flow, fn: Any, args: Sequence[Any], kwargs: dict[str, Any], on: int, label: str) -> None:
        self._flow = flow
        self._call = (fn, args, kwargs)
        # By name, only a pool can say how. What else cannot be sent is refused here, at the line that adds it.
        self._sent = None if isinstance(fn, str) else _encoded(flow._encoders.of(fn).encode, args, kwargs)
        self._on = on  # for the steps among its arguments
        self._after: dict[int, tuple[Any, int]] = {}  # by identity: parent, condition
        self._future: TaskFuture[R] | None = None
        self._number = 0  # in its flow, when that is submitted
        self.label = label

    def after(self, *parents: Any, on: On = "success") -> Self:
        """Let this step wait for others too: steps of this flow, futures, or ids of tasks. Returns the step.

        on: "success": each must succeed, else this one is cancelled; "any": end, however; "failed": end in any other way.
        """
        condition = _condition(on)
        if self._future is not None:
            raise InvalidTask("this flow was submitted already")
        for parent in parents:
            _check_parent(parent)
            self._after[id(parent)] = (parent, condition)
        return self

    @property
    def future(self) -> TaskFuture[R]:
        """Return the future of its task. InvalidTask before the flow is submitted."""
        if self._future is None:
            raise InvalidTask(
                f"flow {self._flow.name!r} is not submitted yet", hint="pool.submit_flow(flow), or leave its with block"
            )
        return self._future

    @property
    def id(self) -> int:
        """Return the number of its task."""
        return self.future.id

    def result(self, timeout: float | None = None) -> R:
        """Wait for its result. As `TaskFuture.result`."""
        return self.future.result(timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return references.to(self)

    def __repr__(self) -> str:
        return f"<Step {self.label!r} of {self._flow.name!r}>"


class Flow:
    """A graph of tasks. `step` adds one; `pool.submit_flow(flow)` stores all of them, or none.

    fail_fast: the first step that fails for good cancels all others, running ones too. Otherwise only those are cancelled that
    need a success which did not come.
    """

    def __init__(self, name: str, *, fail_fast: bool = False, pool: Submitter | None = None) -> None:
        """pool: the one that a `with` block submits it to. InvalidTask."""
        text: Any = name
        if not isinstance(text, str) or not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise InvalidTask(f"a flow's name must be a text of 1 to {NAME_LENGTH_MAX} printable characters: {name!r:.120}")
        self.name = name
        self.fail_fast = bool(fail_fast)
        self.steps: list[Step[Any]] = []
        self._pool = pool
        self._link: Link | None = None
        self._encoders = Encoders() if pool is None else pool._encoders

    # ---- building -----------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
        """Add a step that runs fn(*args, **kwargs). Steps and futures among the arguments, at any depth, become their results.

        The arguments are taken as they are now. Raises InvalidPayload, ArgCountError, ArgTypeError for what cannot be sent.
        """
        return self._add(Step(self, fn, args, kwargs, graph.ON_SUCCESS, _label(fn)))

    def step(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        after: Any = (),
        on: On = "success",
        label: str | None = None,
        **kwargs: Any,
    ) -> Step[R]:
        """Add a step, as `submit`; it waits for the steps among its arguments and for those of `after`.

        on: what it needs of both ("success", "any", "failed"; an argument that did not succeed is None then). label: its name in
        the flow. Arguments of fn that are called like these options go through `submit`.
        """
        text: Any = label
        if text is not None and not (isinstance(text, str) and len(text) <= NAME_LENGTH_MAX and text.isprintable()):
            raise InvalidTask(f"label must be a text of at most {NAME_LENGTH_MAX} printable characters: {label!r:.120}")
        made: Step[R] = Step(self, fn, args, kwargs, _condition(on), _label(fn) if label is None else label)
        parents = (after,) if isinstance(after, int) or not isinstance(after, Iterable) else tuple(after)
        return self._add(made.after(*parents, on=on))

    def _add(self, step: Step[R]) -> Step[R]:
        if self._link is not None:
            raise InvalidTask(f"flow {self.name!r} was submitted already; make another")
        if len(self.steps) >= STEPS_MAX:
            raise InvalidTask(f"a flow has at most {STEPS_MAX:,} steps")
        self.steps.append(step)
        return step

    def __enter__(self) -> Self:
        if self._pool is None:
            raise InvalidTask("this flow has no pool", hint="with pool.flow(name) as flow: …, or pool.submit_flow(flow)")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._pool is not None:
            self._pool.submit_flow(self)

    # ---- handing in ---------------------------------------------------------------------------------------------------

    def _submit(self, pool: Submitter) -> Flow:
        from taskpool.doors.naming import names
        from taskpool.doors.outbox import Bundle

        if self._link is not None:
            raise InvalidTask(f"flow {self.name!r} was submitted already; make another")
        if not self.steps:
            raise InvalidTask(f"flow {self.name!r} has no steps")
        link = pool._link
        for number, one in enumerate(self.steps):
            one._number = number
        calls = [self._call(pool._plan(one._call[0]), one, link) for one in self.steps]
        order = self._order(calls)
        bundle = Bundle(link, flow=FlowSpec(self.name, self.fail_fast))
        futures = []
        for number in order:
            step, (plan, codec, payload, edges) = self.steps[number], calls[number]
            options, at = plan.travel()
            named = names(plan.names_of, *step._call[1:], depends=True)
            call = (plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description)
            futures.append(link.put(bundle, *call, None, None, StepSpec(step.label, edges), *named))
        if bundle.bytes > ARGUMENT_BYTES_MAX:
            raise InvalidTask(
                f"the arguments of flow {self.name!r} take {bundle.bytes >> 20} MiB, the limit is {ARGUMENT_BYTES_MAX >> 20}"
            )
        link.send(bundle)
        bundle.wait()
        if not futures[0]._id:
            assert futures[0]._exception is not None
            raise futures[0]._exception
        self._link = link
        for number, future in zip(order, futures, strict=True):
            self.steps[number]._future = future
        self._first = futures[0]
        return self

    def _call(self, plan: Plan, step: Step[Any], link: Link) -> Call:
        """Return how a step travels, and what it waits for: those whose results it takes first."""
        codec, payload, met = step._sent or _encoded(plan.encode, *step._call[1:])
        conditions = step._after
        if plan.after:
            conditions = {id(target): (target, graph.ON_SUCCESS) for target in plan.after} | conditions
        edges = []
        if met:
            conditions = conditions.copy()
            for target in met:
                _, condition = conditions.pop(id(target), (target, step._on))
                edges.append((self._parent(step, target, link), condition, True))
        for target, condition in conditions.values():
            edges.append((self._parent(step, target, link), condition, False))
        return plan, codec, payload, _distinct(edges)

    def _parent(self, step: Step[Any], target: Any, link: Link) -> int:
        """Return what an edge calls a parent: -1, -2, … for the first, second, … step of this flow, else the id of its task."""
        if type(target) is Step:
            if target._flow is self:
                return -target._number - 1
            if target._future is None:
                raise InvalidTask(f"step {step.label!r} depends on {target!r}, which is not submitted yet")
        return _id(target, link)

    def _order(self, calls: list[Call]) -> Sequence[int]:
        """Return the numbers of the steps such that each comes after its parents, and make their edges say so. InvalidTask."""
        if all(not edges or min(edges)[0] >= -number for number, (*_, edges) in enumerate(calls)):
            return range(len(calls))
        inner = [[-parent - 1 for parent, _, _ in edges if parent < 0] for *_, edges in calls]
        order = graph.order(inner, lambda number: f"{self.steps[number].label} ({number + 1})")
        place = {number: index for index, number in enumerate(order)}
        for *_, edges in calls:
            edges[:] = [(-place[-parent - 1] - 1 if parent < 0 else parent, on, takes) for parent, on, takes in edges]
        return order

    # ---- afterwards ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Return its number: that of its first task. InvalidTask before it is submitted."""
        self._connected()
        return self._first.id

    @property
    def state(self) -> FlowState:
        """Return how it stands."""
        reply = self._connected().request(lambda seq: GetFlows(seq, 1, None, self._first.id))
        assert reply.flows
        return reply.flows[0]

    def wait(self, timeout: float | None = None) -> FlowState:
        """Wait until all its steps have ended, and return how it stands. TimeoutError after `timeout` seconds.

        Steps to which somebody else gave another round are waited for again; those that run then have new futures.
        """
        from concurrent.futures import wait

        link = self._connected()
        live = Filter(flow=self.id, statuses=LIVE)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if wait([step.future for step in self.steps], left).not_done:
                raise TimeoutError(f"flow {self.name!r} did not end in time")
            state = self.state
            if state.status != Status.RUNNING:
                return state
            self._watch({task.id for task in link.request(lambda seq: List(seq, live)).tasks or ()})

    def cancel(self, reason: str = "") -> int:
        """Cancel all its steps that have not ended, running ones too. Return how many those were."""
        wanted = Filter(flow=self.id)
        return len(self._connected().request(lambda seq: Cancel(seq, wanted, reason)).ids or ())

    def retry(self) -> int:
        """Give a new round to all its steps that ended badly, and to those cancelled for them; what succeeded is used again.

        Returns how many those were; the steps have new futures then.
        """
        link = self._connected()
        wanted = Filter(flow=self.id, statuses=("failed", "cancelled", "interrupted"))
        again = set(link.request(lambda seq: Retry(seq, wanted)).ids or ())
        self._watch(again)
        return len(again)

    def _watch(self, again: set[int]) -> None:
        """Give steps that run again, by the ids of their tasks, new futures."""
        for step in self.steps:
            if step.id in again:
                old = step.future
                step._future = self._connected().watch(step.id)
                step._future._description = old._description

    def _connected(self) -> Link:
        if self._link is None:
            raise InvalidTask(f"flow {self.name!r} is not submitted yet", hint="pool.submit_flow(flow), or leave its with block")
        return self._link

    def __repr__(self) -> str:
        return f"<Flow {self.name!r}, {len(self.steps)} steps{'' if self._link is None else f', id {self._first._id}'}>"


def dependent(link: Link, plan: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, bytes, StepSpec | None]:
    """Return (codec, payload, step) of a call outside of a flow, whose arguments may be, or hold, futures."""
    with references.Noted() as met:
        codec, payload = plan.encode(args, kwargs)
    parents = [(_id(target, link), graph.ON_SUCCESS, True) for target in met]
    parents += [(_id(target, link), graph.ON_SUCCESS, False) for target in plan.after]
    return codec, payload, StepSpec("", _distinct(parents)) if parents else None


def _encoded(encode: Encode, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, bytes, list[Any]]:
    """Return (codec, payload) of a step's call, and what stands in it for results."""
    with references.Noted() as met:
        return *encode(args, kwargs), met


def _distinct(parents: list[Edge]) -> list[Edge]:
    """Return each parent once. An argument keeps its number, so two futures of one task are refused. InvalidTask."""
    if len(parents) < 2 or max(parents)[0] < 0:  # each of them is another step
        return parents
    seen: dict[int, Edge] = {}
    for parent in parents:
        known = seen.setdefault(parent[0], parent)
        if known is not parent and parent[2]:
            raise InvalidTask(f"two arguments stand for the result of task {parent[0]} by different futures", hint="give one twice")
    return list(seen.values())


def _id(target: Any, link: Link) -> int:
    """Return the id of a task that another is to depend on. Raises what kept it from being stored."""
    if isinstance(target, Step):
        target = target.future
    if isinstance(target, TaskFuture):
        if target._link is not link:
            raise InvalidTask(f"{target!r} belongs to another pool", hint="a task can depend on tasks of its own store only")
        return target.id
    return int(target)


def _condition(on: object) -> int:
    if not isinstance(on, str) or on not in graph.CONDITIONS:
        raise InvalidTask(f"on must be {', '.join(map(repr, graph.CONDITIONS))}: {on!r:.120}")
    return graph.CONDITIONS[on]


def _check_parent(parent: Any) -> None:
    is_id = isinstance(parent, int) and not isinstance(parent, bool) and 0 < parent < 2**63
    if not (is_id or hasattr(parent, "_is_reference")):
        raise InvalidTask(f"a step can depend on steps, futures, or ids of tasks: {parent!r:.120}")


def _label(fn: Any) -> str:
    return str(fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__))[:NAME_LENGTH_MAX]
