"""The supervisor's own loop, desk and store in the model world: only workers, clients and time are models.

`RealStore` keeps the model store beside the real one and compares them after each commit. `RealShell` lets the real `Loop` turn; it
dies at the named fault points, finds the store locked or the disk full, and listens to what clients are told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest import mock

import msgspec

from taskpool import faults
from taskpool.clock import NS, US, Instant
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.effects import NONE
from taskpool.core.effects import Key as EffectKey
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import SUCCEEDED, TERMINAL
from taskpool.core.line import Key
from taskpool.engines.engine import Limits
from taskpool.model import Filter, Options, Queue, Stats, TaskError, TaskSpec
from taskpool.retention import Retention
from taskpool.store import inbox
from taskpool.store.conditions import StoreBusy, StoreFull
from taskpool.store.eventlog import START, walk
from taskpool.store.inbox import Arrival
from taskpool.store.pruning import Rule, Walk
from taskpool.store.store import Store
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.inbox import Inbox
from taskpool.supervisor.loop import Loop
from taskpool.supervisor.server import Connection, Server
from taskpool.testing.simulation.effects import TABLES
from taskpool.testing.simulation.fates import obey
from taskpool.testing.simulation.model_engine import Mark, ModelJob
from taskpool.testing.simulation.model_store import ARRIVALS_MAX, ModelStore, Witness
from taskpool.testing.simulation.shell import CANCEL, CRON, EXECUTE, RETRY, UPDATE, Ended, Shell
from taskpool.wire import messages as wire
from taskpool.wire.jobs import Job, Report
from taskpool.wire.poller import Poller

CLIENT = 1
FIELDS = tuple(field for field in TaskRow.__struct_fields__ if field not in ("n", "rules"))
_options = msgspec.msgpack.Decoder(Options)


class RealStore(ModelStore):
    """The model store, and a real one in memory that must say the same."""

    directory: ClassVar[Path]
    opened: ClassVar[list[Store]]

    def __init__(self, witness: Witness) -> None:
        super().__init__(witness)
        self.real = Store.open(self.directory / f"{len(self.opened)}.db", memory=True)
        self.opened.append(self.real)
        for statement in TABLES:
            self.real._db.execute(statement)
        self._logged = START  # place in the log of transitions up to which it was compared
        self._replied: list[int] = []  # numbers of the responses that were compared

    def rows(self, ids: Any) -> list[TaskRow]:
        ids = list(ids)
        mine, theirs = super().rows(ids), self.real.rows(ids)
        self._compare({row.id: row for row in mine}, {row.id: row for row in theirs})
        return theirs

    def running(self) -> list[TaskRow]:
        self.real.abandon()  # its owner died: SQLite would have seen to it
        mine, theirs = super().running(), self.real.running()
        self._compare({row.id: row for row in mine}, {row.id: row for row in theirs})
        return theirs

    def queues_waiting(self) -> list[str]:
        queues = self.real.queues_waiting()
        obey(queues == super().queues_waiting(), f"the store names the queues {queues}")
        return queues

    def next_id(self) -> int:
        free = self.real.next_id()
        obey(free == super().next_id(), f"the store says that {free} is the next id")
        return free

    def kept_keys(self) -> list[TaskRow]:
        theirs = sorted(self.real.kept_keys(), key=lambda row: row.id)
        ids = [row.id for row in super().kept_keys()]
        obey(sorted(ids) == [row.id for row in theirs], f"the store says that tasks {theirs} may keep their keys, not {ids}")
        return theirs

    def unique_holders(self, keys: Any) -> dict[str, ev.Holder]:
        keys = sorted(keys)
        mine, theirs = super().unique_holders(keys), self.real.unique_holders(keys)
        for key in keys:
            here, there = mine.get(key), theirs.get(key)
            same = (here and (here.row.id, here.until)) == (there and (there.row.id, there.until))
            obey(same, f"the store says that {there} has the unique key {key}, not {here}")
        return theirs

    def refill(self, queue: str | None, after: Key | None, n: int, key: str | None = None) -> tuple[list[TaskRow], bool]:
        (mine, more), (rows, really_more) = super().refill(queue, after, n, key), self.real.refill(queue, after, n, key)
        obey([row.id for row in mine] == [row.id for row in rows], f"the store refills {queue} by other rows")
        obey(more == really_more, f"the store says {really_more} of more in {queue}")
        return rows, more

    def commit(
        self,
        saves: Sequence[cmd.Save],
        now_wall: int,
        *,
        together: Sequence[Collection[int]] = (),
        effects: Mapping[EffectKey, Report] = NONE,
        plans: Sequence[cmd.Plan] = (),
        full: bool = False,
    ) -> frozenset[int]:
        assert not full
        theirs = frozenset(self.real.commit(saves, now_wall, together=together, effects=effects, plans=plans))
        mine = super().commit(saves, now_wall, together=together, effects=effects, plans=plans)
        self._compare_effects()
        obey(mine == theirs, f"the store refused {sorted(theirs)}, the model {sorted(mine)}")
        touched = list(dict.fromkeys(save.id for save in saves))
        self.rows(touched)
        for save in saves:
            if isinstance(save, cmd.End) and save.id not in theirs:
                self._compare_history(save.id)
        counts: dict[str, int] = {}
        for stored in self.tasks.values():
            counts[stored.row.status] = counts.get(stored.row.status, 0) + 1
        for name in {plan.occurrence.schedule for plan in plans if isinstance(plan, cmd.Occur)}:
            here = [one for one in self.occurrences.values() if one.schedule == name]
            there = self.real.occurrences(name, len(here) + 1)
            obey(there == sorted(here, key=lambda one: -one.planned_at), f"the store has other occurrences of schedule {name}")
        obey(self.real.counts() == counts, f"the store counts {self.real.counts()}, there are {counts}")
        self._compare_replies()
        self._compare_log(now_wall)
        self._compare_graphs()
        return theirs

    def prune(self, now_wall: int, seconds: float, rows: int) -> list[int]:
        """The store prunes what it may, all of it where the clock was never set back, and counts what is left."""
        may = self.prunable(now_wall, seconds)
        stored = [(task_id, self.tasks[task_id].row.created_at) for task_id in sorted(self.tasks)]
        times = [at for _, at in stored]
        in_order = times == sorted(times) and all(at <= now_wall - seconds * US for task_id, at in stored if task_id in may)
        walk = Walk(Rule(Retention(seconds, seconds, seconds, seconds), now_wall))
        gone: list[int] = []
        while not walk.done:
            some = self.real.prune(walk, rows)
            obey(may.issuperset(some), f"the store pruned {some}, of which {sorted(set(some) - may)} are needed")
            self.forget(some)
            gone += some
        obey(may == set(gone) or not in_order, f"the store left {sorted(may - set(gone))}, which nobody needs")
        obey(self.real.counts_by_queue() == self.real.recount(), "the store counts other tasks than it has")
        self.next_id()
        for table, column in (
            ("attempt", "task_id"),
            ("step", "task_id"),
            ("edge", "child"),
            ("edge", "parent"),
            ("checkpoint", "task_id"),
        ):
            left = self.real._db.execute(f"SELECT {column} FROM {table} WHERE {column} NOT IN (SELECT id FROM task)").fetchall()
            obey(not left, f"{table} speaks of tasks that were pruned: {left}")
        return gone

    def try_effects(self, reports: Mapping[EffectKey, Report]) -> dict[EffectKey, TaskError]:
        mine, theirs = super().try_effects(reports), self.real.try_effects(reports)
        obey(mine.keys() == theirs.keys(), f"the store cannot apply the effects of {sorted(theirs)}, the model of {sorted(mine)}")
        return theirs

    def steps_due(self) -> list[ev.DueStep]:
        mine, theirs = super().steps_due(), self.real.steps_due()
        said = [(step.row.id, bool(step.culprit)) for step in theirs]
        obey(said == [(step.row.id, bool(step.culprit)) for step in mine], f"the store says that steps {said} are due")
        return theirs

    def steps_foreseen(self, ended: Mapping[int, int]) -> list[ev.DueStep]:
        mine, theirs = super().steps_foreseen(ended), self.real.steps_foreseen(ended)
        said = [step.row.id for step in theirs]
        obey(said == [step.row.id for step in mine], f"the store foresees that steps {said} may start when {sorted(ended)} succeed")
        return theirs

    def _compare_graphs(self) -> None:
        """The counts of a graph always match its rows."""
        for task_id, opened, broken, held in self.real._db.execute("SELECT task_id, open, broken, held FROM step"):
            counts = self.graphs.counts(task_id)
            obey((opened, broken) == counts, f"the store counts {opened} and {broken} edges of task {task_id}, they are {counts}")
            obey(held == self.graphs.steps[task_id].held, f"the store says {held} of whether task {task_id} waits for its parents")

    def _compare_effects(self) -> None:
        found = Counter(self.real._db.execute("SELECT task, attempt FROM sim_row").fetchall())
        obey(found == self.effects, f"effects wrote {found - self.effects} too often, {self.effects - found} not often enough")

    def schedule_rows(self) -> list[ev.ScheduleRow]:
        theirs, mine = self.real.schedule_rows(), super().schedule_rows()
        for row in (*theirs, *mine):
            row.live.sort()
            row.queued.sort()
        mine.sort(key=lambda row: row.schedule.name)
        theirs.sort(key=lambda row: row.schedule.name)
        obey(mine == theirs, f"the store has the schedules {theirs}, not {mine}")
        return theirs

    def guest(self, specs: Sequence[TaskSpec]) -> None:
        super().guest(specs)
        guest = self.real._db  # the one connection that there is to a database in memory
        guest.execute("BEGIN")
        inbox.insert(guest, specs)
        guest.execute("COMMIT")

    def arrivals(self, but: Collection[int] = ()) -> tuple[list[Arrival], bool]:
        (mine, more), (theirs, really_more) = super().arrivals(but), self.real.arrivals(but)
        obey((mine, more) == (theirs, really_more), f"the inbox of the store holds {theirs}, that of the model {mine}")
        return theirs, really_more

    def register_queue(self, queue: Queue) -> Queue:
        if queue.name not in self.queues:
            obey(self.real.register_queue(queue) == queue, f"the store registers another queue than {queue}")
        return super().register_queue(queue)

    def pause_queues(self, names: Sequence[str], paused: bool) -> list[Queue]:
        theirs, mine = self.real.pause_queues(names, paused), super().pause_queues(names, paused)
        obey(mine == theirs, f"the store has the rules {theirs}, not {mine}")
        return theirs

    def queue_rules(self) -> list[Queue]:
        theirs = self.real.queue_rules()
        obey(theirs == super().queue_rules(), f"the store has the rules {theirs}")
        return theirs

    def rates_full_at(self) -> dict[str, int]:
        theirs, mine = self.real.rates_full_at(), super().rates_full_at()
        obey(theirs == mine, f"the store says of rates {theirs}, not {mine}")
        return theirs

    def _compare_replies(self) -> None:
        """What is new in the mailbox is what ended; it stays there until it is acknowledged, which nobody does here."""
        new = self.real.replies("box", self._replied[-1] if self._replied else 0, 100_000)
        said = sorted((one.mailbox, one.task_id, one.status, one.attempts) for one in new)
        expected = sorted(self.replies[len(self._replied) :])
        obey(said == expected, f"the store holds the new responses {said}, not {expected}")
        self._replied += [one.seq for one in new]

    def _compare_log(self, now_wall: int) -> None:
        """The log has just what the rows went through in this turn, also after a restart, and nothing else."""
        logged: dict[int, list[tuple[str, str, int]]] = {}
        for event in walk(self.real, self._logged):
            obey(event.seq > self._logged, f"the log has {event.seq} behind {self._logged}")
            obey(event.at == now_wall, f"the log has {event.seq} at {event.at}, and it is {now_wall}")
            self._logged = event.seq
            logged.setdefault(event.id, []).append((event.before or "", event.status, event.attempt))
            row = self.tasks[event.id].row
            obey((event.name, event.queue) == (row.name, row.queue), f"the log names task {event.id} {event.name}")
        moved: dict[int, list[tuple[str, str, int]]] = {}
        for task_id, *move in self.moves:
            moved.setdefault(task_id, []).append((move[0], move[1], move[2]))  # type: ignore[arg-type]
        said = {task_id: _joined(moves) for task_id, moves in logged.items()}
        done = {task_id: _joined(moves) for task_id, moves in moved.items()}
        obey(said == done, f"the log has {said}, the rows went through {done}")

    def _compare(self, mine: dict[int, TaskRow], theirs: dict[int, TaskRow]) -> None:
        obey(mine.keys() == theirs.keys(), f"the store has the tasks {sorted(theirs)}, not {sorted(mine)}")
        for task_id, row in mine.items():
            for field in FIELDS:
                here, there = getattr(row, field), getattr(theirs[task_id], field)
                obey(here == there, f"task {task_id}: {field} is {there!r} in the store, {here!r} by what was written")

    def _compare_history(self, task_id: int) -> None:
        stored = self.tasks[task_id]
        outcomes = {attempt: outcome for attempt, outcome in stored.attempts.items() if outcome}
        attempts = {one.attempt: one.outcome for one in self.real.attempts(task_id)}
        obey(attempts == outcomes, f"task {task_id} has the attempts {attempts} in the store, not {outcomes}")
        has_result = self.real.task(task_id).result is not None
        obey(
            has_result == (stored.row.status == SUCCEEDED), f"task {task_id} is {stored.row.status}; it has a result: {has_result}"
        )


def _joined(moves: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """A new task and its first change are one row, and may be one transition."""
    if len(moves) > 1 and not moves[0][0]:
        return [("", *moves[1][1:]), *moves[2:]]
    return moves


class LoopStore:
    """The store as the loop and the desk see it: now and then it is locked, or the disk is full."""

    def __init__(self, shell: RealShell, store: RealStore) -> None:
        self._shell = shell
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(
            self._store
            if name
            in ("rows", "refill", "unique_holders", "pause_queues", "steps_due", "steps_foreseen", "arrivals", "data_version")
            else self._store.real,
            name,
        )

    def try_effects(self, reports: Mapping[EffectKey, Report]) -> dict[EffectKey, TaskError]:
        if self._shell.chance("busy"):
            raise StoreBusy("a guest writes")
        return self._store.try_effects(reports)

    def commit(
        self,
        saves: Sequence[cmd.Save],
        now_wall: int,
        *,
        together: Sequence[Collection[int]] = (),
        effects: Mapping[EffectKey, Report] = NONE,
        plans: Sequence[cmd.Plan] = (),
    ) -> list[int]:
        shell = self._shell
        if not self._store.real._db.in_transaction and shell.chance("busy"):  # effects have taken the lock
            raise StoreBusy("a guest writes")
        if shell.chance("full") and any(isinstance(save, cmd.Insert) for save in saves):
            self._store.real.abandon()
            new = [save.spec.key for save in saves if isinstance(save, cmd.Insert)]
            self._store.denied_keys.update(key for key in new if key is not None)
            raise StoreFull("no room")
        return sorted(self._store.commit(saves, now_wall, together=together, effects=effects, plans=plans))


class LoopEngine:
    """The engine as the loop sees it, over the model engine."""

    def __init__(self, shell: RealShell) -> None:
        self._shell = shell
        self._model = shell.engine
        self._marks: list[Mark] = []

    def collect(self) -> int:
        self._model.collect()
        self._deliver()
        self._marks.append(self._model.mark())
        return len(self._marks) - 1

    def _deliver(self) -> None:
        for event in self._shell.news():
            self._shell.loop.deliver(event)

    def committed(self, mark: int | None = None) -> None:
        self._model.committed(self._marks[-1 if mark is None else mark])

    def spawn(self, worker: int) -> None:
        self._model.spawn(worker)
        self._shell.peril("after a spawn")

    def send(self, worker: int, jobs: Sequence[Job], limits: Sequence[Limits] = ()) -> None:
        deadlines = {limit.n: limit.deadline_at for limit in limits}
        now = self._shell.clock_now()
        made = []
        for job in jobs:
            at = deadlines.get(job.n)
            deadline = None if at is None else now.mono + (at - now.wall) * 1000
            made.append(
                ModelJob(
                    job.n, job.task_id, job.attempt, job.name, _options.decode(job.options) if job.options else Options(), deadline
                )
            )
        self._model.send(worker, made)

    def take_back(self, worker: int, above: int, running_ns: int = 0) -> None:
        self._model.take_back(worker, above, running_ns)
        self._deliver()  # its answer comes from within the call

    def signal(self, worker: int, n: int, grace_s: float, why: str = "cancel") -> None:
        self._model.signal(worker, n, grace_s, why)

    def kill(self, worker: int, n: int, why: str) -> None:
        self._model.kill(worker, n, why)

    def progress(self) -> list[Any]:
        return []


class Caller:
    """The one client, as its connection."""

    number = CLIENT
    pid = 20_000 + CLIENT
    follows = None


class Mail:
    """The server as the desk and the loop see it: it keeps what clients are told."""

    starved = False

    def __init__(self) -> None:
        self.connections: dict[int, Connection] = {CLIENT: cast(Connection, Caller)}
        self.messages: list[wire.Answer] = []
        self.on_lent: Callable[[int], None] = lambda worker: None  # somebody was lent a task as that worker

    def send(self, client: int, message: wire.Answer) -> None:
        self.messages.append(message)
        if isinstance(message, wire.Reply) and message.lent is not None:
            self.on_lent(message.lent[0])  # at once: a turn that was stuck may give it up in the next moment

    def listen_again(self) -> None:
        """Nobody waits to be let in."""


class RealShell(Shell):
    """A supervisor whose loop, desk and store are the real ones."""

    living: ClassVar[RealShell | None] = None

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        RealShell.living = self
        store = cast(RealStore, self._store)
        self._mail = Mail()
        self._mail.on_lent = lambda worker: self.callers.begin(worker)
        front = cast(Store, LoopStore(self, store))
        self._desk = Desk(front, self.scheduler, lambda: cast(Stats, None))
        self._desk.server = cast(Server, self._mail)
        self.loop = Loop(
            store=front,
            engine=cast(Any, LoopEngine(self)),
            scheduler=self.scheduler,
            desk=self._desk,
            server=cast(Server, self._mail),
            poller=cast(Poller, None),
            clock=self._clock,
            log=lambda line: None,
            inbox=Inbox(front, lambda line: None, watch=store),
        )
        self.scheduler.handle = self._watched  # type: ignore[method-assign]
        self._desk.on_stop = self._stopped
        self._answers: list[cmd.Respond] = []
        self._turned_at = self._clock.now()
        self._awaited: set[int] = set()  # tasks whose end the client has not been told

    # ---- what the parts ask for -------------------------------------------------------------------------------------

    def clock_now(self) -> Instant:
        return self._clock.now()

    def news(self) -> list[ev.Event]:
        return self._news()

    def peril(self, where: str) -> None:
        self._peril(where)

    def chance(self, name: str) -> bool:
        return not self._calm and self._random.random() < getattr(self._conditions, name)

    def _watched(self, event: ev.Event, now: Instant) -> list[cmd.Command]:
        looked = now.mono - self._turned_at.mono >= NS // 10  # it looks at progress and at the clock now and then
        self._turned_at = now
        if isinstance(event, ev.Dropped):
            self._laws.found_no_room = True  # also if that was told within the turn that had been stuck
        commands = self._handle(event, now)
        started = [one for one in commands if isinstance(one, cmd.Start) and one.caller is None]
        rows = [self.scheduler.tasks[one.id] for one in started]
        self._laws.served += [row.queue for row in rows if not row.options.target]
        self._laws.served_aside.update(row.queue for row in rows if row.options.target)
        self._answers += [one for one in commands if isinstance(one, cmd.Respond)]
        if isinstance(event, ev.Dispatch):
            self.idle_turns = 0 if commands or looked else self.idle_turns + 1
        else:
            self._peril("while it handles events")
        return commands

    # ---- what the world does ----------------------------------------------------------------------------------------

    def deliver(self, event: ev.Event) -> None:
        if isinstance(event, ev.Submitted):
            self._ask(wire.Submit(event.seq, event.specs, resend=True, flow=event.flow))
        else:
            self.loop.deliver(event)

    def cancel(self, ids: list[int], grace_s: float | None, *, force: bool) -> None:
        self._ask(wire.Cancel(CANCEL, Filter(ids=tuple(ids)), "simulated", grace_s, force))

    def retry(self, ids: list[int], *, force: bool) -> None:
        if force:
            self._laws.forced.update(ids)
        self._ask(wire.Retry(RETRY, Filter(ids=tuple(ids)), force))

    def update(self, task_id: int, version: int, priority: int | None, at: int | None, options: Options | None) -> None:
        packed = None if options is None else msgspec.msgpack.encode(options)
        self._ask(wire.Update(UPDATE, task_id, version, priority, at, packed))

    def execute(self, task_id: int, client: int, labels: list[str]) -> None:
        self._ask(wire.Execute(EXECUTE, task_id, labels))

    def stop(self, grace_s: float | None) -> None:
        self._ask(wire.Stop(4, grace_s))

    def pause(self, name: str, *, paused: bool) -> None:
        known = {state.name for state in cast(RealStore, self._store).real.queues()}
        if name in known:
            self._ask(wire.PauseQueues(5, [name], paused))

    def _stopped(self, grace_s: float | None) -> None:
        self._desk.refusal = wire.Refused(0, "pool_stopped", "the pool is stopping")
        self.loop.deliver(ev.StopAsked(grace_s))

    def _ask(self, request: wire.Request) -> None:
        self._desk.on_request(self._mail.connections[CLIENT], request)

    @property
    def inbox(self) -> Inbox:
        return self.loop._inbox

    @property
    def is_stuck(self) -> bool:
        return self.loop._stuck is not None

    def timer(self) -> float | None:
        return self.loop._timeout()

    def turn(self, first: Sequence[ev.Event] = ()) -> None:
        for event in first:
            self.loop.deliver(event)
        if not self.is_stuck:
            self._answers = []
        self.loop.turn()
        self._hear()
        if self.is_stuck:
            self._peril("while a turn is stuck")
            return  # nothing new was decided, or it is not stored
        if self.loop.ended:
            raise Ended(self.loop.reason)
        self._peril("after the turn")
        refused = frozenset(task_id for event in self.loop._events if isinstance(event, ev.Dropped) for task_id in event.ids)
        again = {row.id for event in self.loop._events if isinstance(event, ev.Dropped) for row in event.rows}
        stored = [task_id for task_id in refused - again if task_id in self._store.tasks]
        obey(not stored, f"the store refused what was said of tasks {stored}")
        self._laws.turn(self.scheduler, self.engine, self._turned_at, refused)
        self.callers.judge(self.timer(), self._clock.now())
        self._judge_answers(self._answers, refused)
        self._judge_inbox(self._turned_at)
        if not any(isinstance(event, ev.CancelAsked) for event in (*self.loop._events, *self._desk.events)):
            self._prune()

    def _hear(self) -> None:
        """The client hears: what is accepted is stored, what has settled has ended so, and nothing is told twice."""
        messages, self._mail.messages = self._mail.messages, []
        for message in messages:
            match message:
                case wire.Accepted():
                    self.accepted.append(cmd.Accept(CLIENT, message.seq, message.ids, taken=message.taken))
                    self._awaited.update(filter(None, message.ids))
                case wire.Refused() if message.seq not in (CRON, UPDATE, EXECUTE):
                    self.refused.append(message.seq)
        submits = Counter(task_id for one in messages if isinstance(one, wire.Accepted) for task_id in {*one.ids})
        for message in messages:
            if isinstance(message, wire.Settled):
                for outcome in message.outcomes:
                    self._settled(outcome, submits)

    def _settled(self, outcome: wire.Outcome, submits: Counter[int]) -> None:
        """submits: how many of this moment were answered with a task; each may be told of its end."""
        row = self._store.tasks[outcome.id].row
        awaited = outcome.id in self._awaited or submits[outcome.id] > 0
        obey(awaited, f"the end of task {outcome.id} was told to nobody who waits, or twice")
        submits[outcome.id] -= 1
        self._awaited.discard(outcome.id)
        obey(outcome.status in TERMINAL, f"task {outcome.id} was told to have ended {outcome.status}")
        retried = {task_id for answer in self._answers if answer.seq == RETRY for task_id in answer.ids}
        same = row.status == outcome.status or outcome.id in retried
        obey(same, f"task {outcome.id} was told to be {outcome.status}; it is {row.status}")
        obey((outcome.value is not None) == (outcome.status == SUCCEEDED), f"task {outcome.id} came without its value")

    def farewell(self) -> None:
        obey(not self._awaited, f"nobody was told how tasks {sorted(self._awaited)} ended")


@contextmanager
def real_parts(directory: Path) -> Iterator[type[RealStore]]:
    """Let the loop die at fault points; close the stores in the end."""

    def point(name: str) -> None:
        assert name in faults.POINTS
        if RealShell.living is not None:
            RealShell.living.peril(name)

    class Here(RealStore):
        pass

    Here.directory, Here.opened = directory, []
    rows, inbox.ROWS_MAX = inbox.ROWS_MAX, ARRIVALS_MAX
    try:
        with mock.patch.object(faults, "point", point):
            yield Here
    finally:
        inbox.ROWS_MAX = rows
        RealShell.living = None
        for store in Here.opened:
            store.close(clean=False)
