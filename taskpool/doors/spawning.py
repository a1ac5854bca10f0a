"""What makes tasks of the calls that a running task spawns. Workers load it by its name (`taskpool.worker.children`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskpool.core.registry import default_registry
from taskpool.doors.options import NOTHING_SAID, Said
from taskpool.doors.outbox import draw_uids
from taskpool.doors.submitter import PLANS_MAX, Plan, Submitter
from taskpool.errors import InvalidTask
from taskpool.model import Running, TaskSpec

if TYPE_CHECKING:
    from taskpool.doors.link import Link


class Recorder(Submitter):
    """Makes specs of calls, as a Submitter that sends them would."""

    def __init__(self, task: Running, said: Said = NOTHING_SAID) -> None:
        """task: the one that runs; id 0 outside of any."""
        super().__init__(said)
        self._task = task
        self._uids = draw_uids()

    @property
    def _link(self) -> Link:
        raise InvalidTask("a running task spawns one task at a time", hint="ctl.spawn(fn, …)")

    def under(self, options: Mapping[str, Any]) -> Recorder:
        """Return one whose tasks have these options. InvalidTask, naming the option."""
        return Recorder(self._task, self._said.plus(options))

    def spec(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskSpec:
        """Return the task that calls fn. Raises what `pool.submit` does for what cannot be sent."""
        plan = self._plans.get(id(fn)) or self._plan(fn)
        codec, payload = plan.encode(args, kwargs)
        options, at = plan.travel()
        return TaskSpec(next(self._uids), plan.name, codec, payload, options, plan.queue, plan.priority, at)

    def _plan(self, fn: Any) -> Plan:
        """Return how a function travels. HandlerNotFound for a name that this process has not got."""
        if isinstance(fn, str):
            handler = default_registry.get(fn)
            plan = Plan(
                handler.fn, self._encoders.of(handler.fn), self._inherited(self._said.over(handler.options or NOTHING_SAID))
            )
        else:
            decorated, given = getattr(fn, "_decorated", NOTHING_SAID), getattr(fn, "_given", NOTHING_SAID)
            plan = Plan(fn, self._encoders.of(fn), self._inherited(given.over(self._said.over(decorated))))
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        if not isinstance(fn, str):  # a plan holds its function, so that its id is not used again; a name it does not hold
            self._plans[id(fn)] = plan
        return plan

    def _inherited(self, said: Said) -> Said:
        """Return options with what a child has of its parent."""
        if said.after:
            raise InvalidTask("a spawned task cannot wait for others", hint="spawn it from the last of them, or submit a flow")
        if said.options.parent_id is not None:
            raise InvalidTask("the parent of a spawned task is the task that spawns it", hint="leave parent_id out")
        heritage: dict[str, Any] = {}
        if self._task.id:
            heritage["parent_id"] = self._task.id
        if self._task.trace_ctx and not said.options.trace_ctx:
            heritage["trace_ctx"] = self._task.trace_ctx
        return said.plus(heritage)
