"""What clients submit: checked, merged with what is stored already, and answered once it is stored.

A client's batch items that are stored already are not submitted again: it is attached to them (ended well: their result; alive:
their end; ended badly: a new round).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set

import msgspec

from taskpool.core import events as ev
from taskpool.core import graph, queues
from taskpool.core.admission import Room
from taskpool.core.commands import Accept
from taskpool.core.directory import Directory
from taskpool.core.lifecycle import SUCCEEDED, TERMINAL, WAITING
from taskpool.errors import AlreadyExists, InvalidPayload, InvalidTask, NotFound, StoreError
from taskpool.model import Codec, Options, Queue, StepSpec, TaskSpec, check_queue_name
from taskpool.store.store import Store
from taskpool.supervisor.readings import Readings
from taskpool.supervisor.server import refusal
from taskpool.supervisor.watchers import Watchers
from taskpool.wire import messages as wire
from taskpool.wire.limits import PAYLOAD_BYTES_MAX

OPTIONS_CACHE_MAX = 10_000
QUEUE_NAMES_MAX = 10_000
_JSON = int(Codec.JSON)


class Submits:
    """Takes them in for the desk, turn by turn."""

    def __init__(
        self,
        store: Store,
        room: Room,
        directory: Directory,
        readings: Readings,
        watchers: Watchers,
        send: Callable[[int, wire.Answer], None],
    ) -> None:
        """room: what the machine has; directory: who runs tasks of which name; send: to a client, by its number."""
        self._store = store
        self._room = room
        self._directory = directory
        self._readings = readings
        self._watchers = watchers
        self._send = send
        self._merges: dict[tuple[int, int], list[int]] = {}  # ids of a Submit, 0 where a new one belongs
        self._backlogs: dict[str, Queue] = {}  # queues that bound what may wait
        self._admitted: Counter[str] = Counter()  # tasks of those queues that this turn will store
        self._queue_names = {queues.DEFAULT}  # that were found good
        self._options: dict[bytes, Options] = {b"": Options()}
        self._options_decoder = msgspec.msgpack.Decoder(Options)

    def know_queues(self, rules: Sequence[Queue]) -> None:
        """Learn of queues' limits on what may wait, from the store."""
        for queue in rules:
            self._backlogs.pop(queue.name, None)
            if queue.max_backlog is not None:
                self._backlogs[queue.name] = queue

    def taken(self) -> None:
        """The turn that takes what was submitted stores it: from now on the store counts it."""
        if self._admitted:
            self._admitted.clear()

    def submit(self, client: int, request: wire.Submit, events: list[ev.Event]) -> None:
        """Check what a client submits, and add what follows to the events. Raises TaskpoolError for what cannot be taken."""
        specs = request.specs
        self._check_parents(specs)
        for spec in specs:
            if spec.codec == _JSON:  # made by somebody who knows but the name of its handler
                spec.name = self._directory.find(spec.name).name
            if len(spec.payload) > PAYLOAD_BYTES_MAX:
                words = f"the arguments of a task are {len(spec.payload)} bytes; the limit is {PAYLOAD_BYTES_MAX}"
                raise InvalidPayload(words, hint="pass the name of a file")
            if spec.queue not in self._queue_names:
                self._learn_queue_name(check_queue_name(spec.queue))
        known: dict[bytes, int] = {}
        if request.resend:
            known = self._store.find_uids([spec.uid for spec in specs])
        again: list[int] = []
        if specs and specs[0].batch is not None and not request.fresh:
            items, again = self._find_items(request)
            known.update(items)
        holders = self._unique_holders(specs)
        if self._backlogs:
            self._check_backlogs([spec for spec in specs if spec.uid not in known and (spec.unique or "") not in holders])
        if specs and specs[0].batch is not None and request.fresh:
            self._store.forget_batch(specs[0].batch)
        if again:
            events.append(retry_of(self._store, 0, 0, again))
        if known:
            if any(spec.step is not None for spec in specs):
                raise AlreadyExists("a task of this graph is stored already")
            ids = [known.get(spec.uid, 0) for spec in specs]
            specs = [spec for spec, task_id in zip(specs, ids, strict=True) if not task_id]
            self._attach(client, [task_id for task_id in ids if task_id], watch=request.watch)
            self._merges[client, request.seq] = ids
        elif not request.watch:
            self._merges[client, -request.seq - 1] = []  # marks that nobody watches
        options = [self.options(spec.options) for spec in specs]
        events.append(ev.Submitted(client, request.seq, specs, options, request.flow, holders))

    def accept(self, command: Accept, refused: Set[int], why: StoreError | None = None) -> None:
        """Tell a client the ids of what it submitted, and watch them for it. why: what kept the refused from being stored."""
        client, ids = command.client, command.ids
        merged = self._merges.pop((client, command.seq), None) if self._merges else None
        unwatched = self._merges.pop((client, -command.seq - 1), None) if self._merges else None
        if refused and not refused.isdisjoint(ids):
            error = why or AlreadyExists("a task with that uid or batch item is stored already")
            self._send(client, refusal(command.seq, error))
            return
        new = [task_id for task_id in ids if task_id and task_id not in command.known] if command.known or command.taken else ids
        if unwatched is None:
            self._watchers.add_new(client, new)
        known = [task_id for task_id in dict.fromkeys(command.known) if client not in self._watchers.of(task_id)]
        self._attach(client, known, watch=unwatched is None)
        taken = command.taken
        if merged is not None:
            fresh = iter(ids)
            places = [place for place, task_id in enumerate(merged) if not task_id]  # where the new ones are
            ids = [task_id or next(fresh) for task_id in merged]
            taken = [(places[place], holder) for place, holder in taken]
        self._send(client, wire.Accepted(command.seq, ids, taken))

    def options(self, packed: bytes) -> Options:
        """Return options decoded; the same bytes come with each task of a call."""
        options = self._options.get(packed)
        if options is None:
            try:
                options = self._options_decoder.decode(packed)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise InvalidTask(f"the options of a task cannot be read: {error}") from error
            self._room.check(options)
            if len(self._options) < OPTIONS_CACHE_MAX:
                self._options[packed] = options
        return options

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _unique_holders(self, specs: Sequence[TaskSpec]) -> dict[str, ev.Holder]:
        keys = {spec.unique for spec in specs if spec.unique is not None}
        if keys and specs[0].batch is not None:
            raise InvalidTask("the items of a batch have a name already, and no unique key", hint="leave out batch or unique")
        if keys and any(spec.step is not None and (spec.unique or _is_inner(spec.step)) for spec in specs):
            raise InvalidTask("a step of a graph has no unique key", hint="leave out unique")
        return self._store.unique_holders(keys) if keys else {}

    def _learn_queue_name(self, name: str) -> None:
        if len(self._queue_names) < QUEUE_NAMES_MAX:
            self._queue_names.add(name)

    def _find_items(self, request: wire.Submit) -> tuple[dict[bytes, int], list[int]]:
        """Return uid → id of the batch items that are stored, and those that ended badly and get a new round."""
        batch = request.specs[0].batch
        assert batch is not None
        items = [spec.item for spec in request.specs if spec.item is not None]
        found = {item.item: item for item in self._store.find_batch(batch, items)}
        known: dict[bytes, int] = {}
        again: list[int] = []
        for spec in request.specs:
            item = found.get(spec.item) if spec.item is not None else None
            if item is None:
                continue
            item.check_same(spec)
            known[spec.uid] = item.id
            if item.status in TERMINAL and item.status != SUCCEEDED:
                again.append(item.id)
        return known, again

    def _check_backlogs(self, new: Sequence[TaskSpec]) -> None:
        """Raise QueueFull if these tasks are more than may wait, counting what came before them in this turn."""
        coming = Counter(spec.queue for spec in new if spec.queue in self._backlogs)
        if not coming:
            return
        counts = self._store.counts_by_queue()
        for name, n in coming.items():
            waiting = sum(counts.get(name, {}).get(status, 0) for status in WAITING) + self._admitted[name]
            error = queues.full(self._backlogs[name], waiting, n)
            if error is not None:
                raise error
        self._admitted += coming

    def _check_parents(self, specs: Sequence[TaskSpec]) -> None:
        """Raise NotFound unless all parents of new tasks are stored, or come before them in their submit."""
        wanted: set[int] = set()
        conditions = graph.CONDITIONS.values()
        for number, spec in enumerate(specs):
            if spec.step is None:
                continue
            parents = spec.step.parents
            if len(parents) > 1 and len({ref for ref, _, _ in parents}) != len(parents):
                raise InvalidTask(f"task {number + 1} of a submit names a parent twice")
            for ref, condition, _ in parents:
                if ref > 0:
                    wanted.add(ref)
                if ref == 0 or -ref > number or condition not in conditions:
                    raise InvalidTask(f"task {number + 1} of a submit cannot depend on {ref} under condition {condition}")
        if wanted:
            missing = wanted - {row.id for row in self._store.rows(sorted(wanted))}
            if missing:
                raise NotFound(f"there is no task {min(missing)} to depend on")

    def _attach(self, client: int, ids: Sequence[int], *, watch: bool) -> None:
        if watch and ids:
            self._readings.ask(client, wire.Watch(-1, list(ids)))


def retry_of(store: Store, client: int, seq: int, ids: Sequence[int], *, force: bool = False) -> ev.RetryAsked:
    """Return the event that gives tasks a new round, with all that is stored of them."""
    rows = store.rows(ids)
    keys = {row.unique for row in rows if row.unique is not None}
    holders = store.unique_holders(keys) if keys else {}
    found = {row.id for row in rows}
    absent = [task_id for task_id in ids if task_id not in found]
    return ev.RetryAsked(client, seq, rows, force, store.dependent(ids), holders, absent)


def _is_inner(step: StepSpec) -> bool:
    """Return whether a step depends on another of its submit."""
    return any(ref < 0 for ref, _, _ in step.parents)
