"""What was started goes to its workers, one batch each: by the specs of new tasks that are still in memory, else by the store."""

from __future__ import annotations

from collections.abc import Sequence

from taskpool import faults
from taskpool.core import graph
from taskpool.core.commands import Insert, Start
from taskpool.core.scheduler import Scheduler
from taskpool.engines.engine import Engine, Limits
from taskpool.model import TaskSpec
from taskpool.store.store import Store
from taskpool.supervisor.server import Server
from taskpool.wire.jobs import Input, Job
from taskpool.wire.messages import Reply

SPEC_BYTES_MAX = 64 << 20  # payloads of waiting tasks kept in memory; the others are read when they start
STEP_SPECS_MAX = 20_000  # … and no step's beside so many


class Sender:
    """Sends jobs, and keeps until then what new tasks were submitted with, within bounds."""

    def __init__(self, store: Store, engine: Engine, scheduler: Scheduler, server: Server, memory_limit: int | None) -> None:
        """memory_limit: bytes that a task may use which says nothing of its own."""
        self._store = store
        self._engine = engine
        self._scheduler = scheduler
        self._server = server
        self._memory_limit = memory_limit
        self._specs: dict[int, TaskSpec] = {}  # of tasks that wait to be sent for the first time
        self._spec_bytes = 0

    def keep(self, insert: Insert) -> None:
        """Keep a new task's spec for its start."""
        if insert.place is not None and len(self._specs) >= STEP_SPECS_MAX:
            return  # it may be long until it starts
        self._specs[insert.id] = insert.spec
        self._spec_bytes += len(insert.spec.payload)

    def forget(self, task_id: int) -> None:
        """The task is not stored, will not start, or the store knows better what it is to start with."""
        spec = self._specs.pop(task_id, None)
        if spec is not None:
            self._spec_bytes -= len(spec.payload)

    def trim(self) -> None:
        """Keep within bounds; after a commit, when all of them are in the store."""
        if self._spec_bytes > SPEC_BYTES_MAX:
            self._specs.clear()
            self._spec_bytes = 0

    def send(self, starts: Sequence[Start]) -> None:
        """Send what was started."""
        tasks, specs = self._scheduler.tasks, self._specs
        stored = [start.id for start in starts if start.attempt > 1 or start.id not in specs]
        payloads = self._store.payloads(stored) if stored else {}
        inputs = self._inputs(starts)
        batches: dict[int, tuple[list[Job], list[Limits]]] = {}
        for start in starts:
            task_id = start.id
            if task_id in payloads:
                codec, payload, packed, name, checkpoint = payloads[task_id]
                job = Job(start.n, task_id, start.attempt, name, codec, payload, packed, checkpoint, inputs.get(task_id))
            else:
                spec = specs.pop(task_id)
                self._spec_bytes -= len(spec.payload)
                given = inputs.get(task_id)
                job = Job(start.n, task_id, start.attempt, spec.name, spec.codec, spec.payload, spec.options, inputs=given)
            if start.caller is not None:
                self._server.send(start.caller[0], Reply(start.caller[1], lent=(start.worker, job)))
                continue
            batch = batches.get(start.worker)
            if batch is None:
                batch = batches[start.worker] = ([], [])
            jobs, limits = batch
            jobs.append(job)
            options = tasks[task_id].options
            memory = options.memory or self._memory_limit
            if options.timeout_s or options.deadline_at or options.soft_timeout_s or options.heartbeat_timeout_s or memory:
                durations = (options.timeout_s, options.soft_timeout_s, options.deadline_at, options.heartbeat_timeout_s)
                limits.append(Limits(start.n, *durations, memory))
        for index, (worker, (jobs, limits)) in enumerate(batches.items()):
            if index:
                faults.point("start.half")
            self._engine.send(worker, jobs, limits)

    def _inputs(self, starts: Sequence[Start]) -> dict[int, list[Input]]:
        """Return the results that started tasks take as arguments, by task. Must come before their specs are taken out."""
        if not self._store.has_graphs:
            return {}
        specs = self._specs
        asked = [start.id for start in starts if (spec := specs.get(start.id)) is None or graph.takes_results(spec)]
        return self._store.inputs(asked) if asked else {}
