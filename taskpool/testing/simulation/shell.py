"""One supervisor's loop in the model world: what `taskpool.supervisor.loop` does, with a death possible between any two steps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from random import Random

import msgspec

from taskpool.clock import Instant, ManualClock
from taskpool.core import commands as cmd
from taskpool.core import effects, graph
from taskpool.core import events as ev
from taskpool.core.lifecycle import CANCELLED, RUNNING, SUCCEEDED, TERMINAL, WAITING
from taskpool.core.scheduler import Scheduler
from taskpool.core.unique import without
from taskpool.model import Options, Schedule
from taskpool.supervisor.inbox import Inbox
from taskpool.testing.simulation.callers import ModelCallers
from taskpool.testing.simulation.conditions import Conditions
from taskpool.testing.simulation.fates import obey
from taskpool.testing.simulation.laws import Laws
from taskpool.testing.simulation.model_engine import ModelEngine, ModelJob
from taskpool.testing.simulation.model_store import ModelStore
from taskpool.testing.simulation.trace import NEW, Coverage, Trace
from taskpool.testing.simulation.traffic import RARE, rarity

ECHOES_MAX = 30  # messages of a kind that may come again
ECHOING: tuple[type[ev.Event], ...] = (
    ev.Reported,
    ev.Saved,
    ev.Passed,
    ev.WorkerReady,
    ev.WorkerDied,
)  # those that say all they speak of
CANCEL, RETRY, UPDATE, CRON, EXECUTE = 1, 2, -3, 0, -4  # seqs of the simulated client's requests


Said = dict[type[ev.Event], deque[ev.Event]]  # the latest messages of a kind


class Killed(Exception):
    """The supervisor was killed at this point."""


class Ended(Exception):
    """The supervisor ended because the scheduler halted."""


class Shell:
    """Turns events into commands and carries them out, durable before visible."""

    def __init__(
        self,
        scheduler: Scheduler,
        engine: ModelEngine,
        store: ModelStore,
        clock: ManualClock,
        random: Random,
        conditions: Conditions,
        laws: Laws,
        trace: Trace,
        coverage: Coverage,
        said: Said,
    ) -> None:
        self.scheduler = scheduler
        self.engine = engine
        self.accepted: list[cmd.Accept] = []
        self.refused: list[int] = []  # seqs of submits
        self.callers = ModelCallers(random, clock, conditions, laws.fates, laws.body_begins)
        self.idle_turns = 0  # turns in a row that the timer called for and that did nothing
        self._decide = scheduler.handle
        self._inbox = Inbox(store, lambda line: None, watch=store)
        self._store = store
        self._clock = clock
        self._random = random
        self._conditions = conditions
        self._laws = laws
        laws.scheduler = scheduler
        self._trace = trace
        self._coverage = coverage
        self._events: list[ev.Event] = []
        self._requests: list[ev.Event] = []
        # Reports and checkpoints may even come from a dead supervisor's time; the others only from this one's.
        self._echoes = {kind: said[kind] if kind in said else deque(maxlen=ECHOES_MAX) for kind in ECHOING}
        self._asked: dict[int, list[int]] = {}  # task → versions at which clients asked for a change of it
        self._dropped: frozenset[int] = frozenset()  # refused in the last turn: the scheduler may have spoken of them once more
        self._calm = False
        self._pruner = Random(f"prune {clock.now()}")  # beside the others' chances, which stay what they are

    # ---- what comes from outside ------------------------------------------------------------------------------------

    def deliver(self, event: ev.Event) -> None:
        """Take an event for the next turn."""
        if isinstance(event, (ev.Submitted, ev.RetryAsked)):
            asked = event.specs if isinstance(event, ev.Submitted) else event.rows
            keys = {one.unique for one in asked if one.unique is not None}
            event = msgspec.structs.replace(event, holders=self._store.unique_holders(sorted(keys)))
        self._requests.append(event)

    def cancel(self, ids: list[int], grace_s: float | None, *, force: bool) -> None:
        """A client cancels: rows that are not in memory come with the event."""
        absent = [task_id for task_id in ids if not self.scheduler.knows(task_id)]
        self.deliver(ev.CancelAsked(1, CANCEL, ids, self._store.rows(absent), "simulated", grace_s, force))

    def retry(self, ids: list[int], *, force: bool) -> None:
        """A client gives tasks a new round."""
        if force:
            self._laws.forced.update(ids)
        self.deliver(ev.RetryAsked(1, RETRY, self._store.rows(sorted(ids)), force, self._store.graphs.dependent(ids)))

    def cron(self, verb: str, name: str, schedule: Schedule | None = None) -> None:
        """A client does something to a schedule."""
        self.deliver(ev.CronAsked(1, CRON, verb, name, schedule))

    def update(self, task_id: int, version: int, priority: int | None, at: int | None, options: Options | None) -> None:
        """A client changes a task."""
        rows = [] if self.scheduler.knows(task_id) else self._store.rows([task_id])
        row = rows[0] if rows else None
        self._asked.setdefault(task_id, []).append(version)
        self.deliver(ev.UpdateAsked(1, UPDATE, task_id, version, row, priority, at, options, self._store.graphs.is_held(task_id)))

    def execute(self, task_id: int, client: int, labels: list[str]) -> None:
        """A client wants to run a task itself."""
        rows = [] if self.scheduler.knows(task_id) else self._store.rows([task_id])
        row = rows[0] if rows else None
        held = self._store.graphs.is_held(task_id)
        self.deliver(ev.ExecuteAsked(client, EXECUTE, task_id, 20_000 + client, row, held, labels))

    def step_callers(self) -> bool:
        """Let a client go on with what it runs itself; return whether it says something."""
        events = self.callers.step(self.engine.outcome, calm=self._calm)
        for event in events:
            self.deliver(event)
        return bool(events)

    def stop(self, grace_s: float | None) -> None:
        """Somebody stops the pool."""
        self.deliver(ev.StopAsked(grace_s))

    def pause(self, name: str, *, paused: bool) -> None:
        """Somebody pauses a queue or lets it go on: that is stored before the scheduler hears of it."""
        for queue in self._store.pause_queues([name], paused):
            self.deliver(ev.QueueSet(queue))

    @property
    def inbox(self) -> Inbox:
        """Return the inbox of this life's loop."""
        return self._inbox

    def stir(self) -> None:
        """The kernel tells that the log was written, unless that was taken note of meanwhile."""
        if self._store.log_written:
            self.inbox.stirred(self._clock.now().mono)

    def be_calm(self) -> None:
        """From now on nothing breaks."""
        self._calm = self.engine.calm = True

    def farewell(self) -> None:
        """Everything has come to its end."""

    def let_time_pass(self) -> None:
        """Move the clock a little, as it does between any two steps."""
        self._clock.advance(self._random.choice((0.0, 1e-6, 1e-4, 1e-3, 3e-2)))
        self.engine.expire()

    @property
    def is_stuck(self) -> bool:
        """Whether a turn was decided that the store does not take for now."""
        return False

    def timer(self) -> float | None:
        """Return the seconds after which the loop wakes up by itself."""
        now = self._clock.now()
        timer = self.scheduler.next_timer(now)
        look = None if self.scheduler.stopping else self._inbox.next_look(now.mono)
        return timer if look is None else look if timer is None else min(timer, look)

    def is_called(self, anyhow: bool = False) -> bool:
        """Return whether the loop wakes up: something has come, or the timer says so."""
        self.engine.collect()
        timer = self.timer()
        return anyhow or bool(self._events or self._requests or self.engine.news) or timer == 0.0

    # ---- the turn ---------------------------------------------------------------------------------------------------

    def turn(self, first: Sequence[ev.Event] = ()) -> None:
        """Take all that has come through one transaction. Raises Killed or Ended."""
        events = [*first, *self._events, *self._news(), *self._requests]
        if not self.scheduler.stopping:
            events += self._inbox.take(self._clock.now().mono)
        mark = self.engine.mark()
        self._events, self._requests = [], []
        now = self._clock.now()
        told = effects.told(events)
        if told:
            effects.fail(events, self._store.try_effects(told))
            self._peril("after the effects were tried")
        commands: list[cmd.Command] = []
        for event in events:
            commands += self._handle(event, now)
            self._peril("while it handles events")
        if (ended := graph.ended_well(commands)) and (free := self._store.steps_foreseen(ended)):
            commands += self._handle(ev.StepsDue(free), now)
        commands += self._handle(ev.Dispatch(), now)
        self.idle_turns = 0 if events or commands else self.idle_turns + 1
        refused = self._apply(commands, now)
        self.engine.committed(mark)
        self._peril("after the turn")
        self._laws.turn(self.scheduler, self.engine, now, refused)
        self.callers.judge(self.timer(), self._clock.now())
        self._judge_inbox(now)
        self._judge_answers([command for command in commands if isinstance(command, cmd.Respond)], refused)
        self._prune()

    def _prune(self) -> None:
        """Now and then what has ended is deleted, when no event that is to come holds rows of it."""
        chance = self._pruner
        holds_rows = any(isinstance(event, ev.CancelAsked) for event in self._events)
        if not (self._calm or holds_rows) and chance.random() < self._conditions.prune:
            wall = self._clock.now().wall
            self._store.prune(wall, chance.choice((0.5, 5.0, 60.0)), chance.choice((1, 3, 100)))
            self._peril("after it pruned")

    def _handle(self, event: ev.Event, now: Instant) -> list[cmd.Command]:
        self._coverage.meet(self._statuses(event), event)
        self._trace.event(now, event)
        self.callers.before(event, now)
        commands = self._decide(event, now)
        self.callers.after(event, commands, lambda task_id: self.scheduler.tasks[task_id].options, now)
        self._trace.commands(commands)
        if isinstance(event, ev.StopAsked):
            self._laws.stopping = True
        if isinstance(event, ev.CancelAsked):
            self._laws.asked.update(event.ids)
        self.scheduler.check()
        return commands

    def _apply(self, commands: list[cmd.Command], now: Instant) -> frozenset[int]:
        saves = [command for command in commands if isinstance(command, cmd.Save)]
        for command in commands:
            if isinstance(command, cmd.Kill):
                self.engine.kill(command.worker, command.n, command.why)  # kills wait for nothing
        for save in saves:
            if isinstance(save, cmd.Move) and (save.rank is not None or save.options is not None):
                obey(save.version in self._asked.get(save.id, ()), f"task {save.id} was changed at another version than was asked")
        started = [save for save in saves if isinstance(save, cmd.Start) and save.caller is None]
        rows = [self.scheduler.tasks[save.id] for save in started]
        self._laws.served += [row.queue for row in rows if not row.options.target]
        self._laws.served_aside.update(row.queue for row in rows if row.options.target)
        for save in started:
            obey(self._may_run(save), f"task {save.id} was started on worker {save.worker}, which is not its target")
        self._peril("before the commit")
        self._wait_for_the_disk()
        full = not self._calm and self._random.random() < self._conditions.full
        accepts = [command for command in commands if isinstance(command, cmd.Accept)]
        together = [accept.together for accept in accepts]
        replaced = {task_id for accept in accepts for task_id in accept.replaced}
        plans = [command for command in commands if isinstance(command, cmd.Plan)]
        wanted = effects.wanted(saves)
        refused = self._store.commit(saves, now.wall, together=together, effects=wanted, plans=plans, full=full)
        if saves or plans:
            self._inbox.settle()
        self._expect(refused - replaced, saves)
        self._peril("after the commit")
        if refused:
            rows = [row for row in self._store.rows(sorted(replaced & refused)) if row.status in WAITING]
            sent = refused.difference([command.id for command in saves if isinstance(command, cmd.Start)])
            self._events.append(ev.Dropped(sorted(refused), rows, sorted(sent)))
            self._inbox.again(now.mono)
        self._send([command for command in without(saves, refused) if isinstance(command, cmd.Start)], now)
        if commands and (due := self._store.steps_due()):
            self._events.insert(0, ev.StepsDue(due))
        for command in commands:
            self._act(command, refused)
        return refused

    def _may_run(self, start: cmd.Start) -> bool:
        target = self.scheduler.tasks[start.id].options.target
        return not target or target in self.scheduler.workers[start.worker].labels

    def _wait_for_the_disk(self) -> None:
        """A guest holds the write lock: meanwhile workers go on, and kills come."""
        while not self._calm and self._random.random() < self._conditions.busy:
            self.let_time_pass()
            self.engine.step()

    def _expect(self, refused: frozenset[int], saves: list[cmd.Save]) -> None:
        """The owner is the only writer: nothing but a new task may be refused."""
        new = {save.id for save in saves if isinstance(save, cmd.Insert)}
        known = {task_id for task_id in refused if task_id in self._store.tasks or task_id not in new | self._dropped}
        obey(not known, f"the store refused what was said of tasks {sorted(known)}")
        self._dropped = refused

    def _send(self, starts: list[cmd.Start], now: Instant) -> None:
        batches: dict[int, list[ModelJob]] = {}
        for start in starts:
            if start.caller is not None:
                self.callers.begin(start.worker)
                continue
            row = self.scheduler.tasks[start.id]
            deadline_at = row.options.deadline_at
            deadline = None if deadline_at is None else now.mono + (deadline_at - now.wall) * 1000
            job = ModelJob(start.n, row.id, start.attempt, row.name, row.options, deadline)
            batches.setdefault(start.worker, []).append(job)
        for worker, jobs in batches.items():
            self.engine.send(worker, jobs)
            self._peril("while it sends")

    def _act(self, command: cmd.Command, refused: frozenset[int]) -> None:
        match command:
            case cmd.Accept():
                new = [task_id for task_id in command.ids if task_id and task_id not in command.known]
                stored = sum(task_id in self._store.tasks for task_id in new)
                obey(stored in (0, len(new)), f"of the {len(new)} tasks of submit {command.seq} {stored} are stored")
                if refused.isdisjoint(command.ids):
                    self.accepted.append(command)
                else:
                    self.refused.append(command.seq)
            case cmd.CancelLive():
                absent = [task_id for task_id in command.ids if not self.scheduler.knows(task_id)]
                self._events.append(ev.CancelAsked(0, 0, command.ids, self._store.rows(absent), command.reason))
            case cmd.Spawn():
                self.engine.spawn(command.worker)
            case cmd.TakeBack():
                self.engine.take_back(command.worker, command.above, command.running_ns)
            case cmd.Signal():
                self.engine.signal(command.worker, command.n, command.grace_s, command.why)
            case cmd.Refill():
                rows, more = self._store.refill(command.queue, command.after, command.n, command.key)
                self._events.insert(0, ev.Refilled(command.queue, rows, more, command.key))
            case cmd.Halted():
                raise Ended(command.reason)
            case _:
                return
        self._peril(f"after {type(command).__name__}")

    def _peril(self, where: str) -> None:
        if not self._calm and self._random.random() < self._conditions.kill:
            raise Killed(where)

    def repeat_everything(self) -> None:
        """All that was said lately is said once more."""
        for event in itertools.chain(*self._echoes.values()):
            self.deliver(event)

    # ---- messages that come twice -----------------------------------------------------------------------------------

    def _news(self) -> list[ev.Event]:
        """Return what the engine tells in this turn, now and then with something that it told before."""
        news = self.engine.take_news()
        echoes = self._echoes
        again = []
        if self._random.random() < self._conditions.echo and not self._calm:
            of_one_kind = echoes[self._random.choice(ECHOING)]
            again = sorted(of_one_kind, key=self._rarity)[:3]
        for event in news:
            if type(event) in ECHOING:
                echoes[type(event)].append(event)
        return [*news, *again]

    def _rarity(self, event: ev.Event) -> int:
        return min(map(rarity, self._statuses(event)), default=len(RARE))

    # ---- judging ----------------------------------------------------------------------------------------------------

    def _judge_inbox(self, now: Instant) -> None:
        """Somebody will look at what lies in the inbox."""
        awaited = self._store.log_written or self.inbox.next_look(now.mono) is not None
        obey(
            awaited or not self._store.inbox or self.scheduler.stopping,
            f"rows {sorted(self._store.inbox)} of the inbox are forgotten",
        )

    def _judge_answers(self, answers: list[cmd.Respond], refused: frozenset[int]) -> None:
        """What a client was told of its cancel is what the store says."""
        retried = {task_id for answer in answers if answer.seq == RETRY for task_id in answer.ids}
        for answer in answers:
            if answer.seq == CANCEL:
                for task_id in {*answer.ids} - retried - refused:
                    row = self._store.tasks[task_id].row
                    marked = row.status == RUNNING and row.cancel_requested_at is not None
                    obey(
                        marked or row.status in (CANCELLED, SUCCEEDED),
                        f"the cancel of task {task_id} was accepted; it is {row.status}",
                    )
                for task_id in {*answer.refused} - retried - refused:
                    stored = self._store.tasks.get(task_id)
                    over = stored is None or stored.row.status in TERMINAL
                    obey(over, f"the cancel of task {task_id} was refused, and it goes on")

    def _statuses(self, event: ev.Event) -> Iterable[str]:
        """Return the statuses that meet an event: of the tasks it names, or of all that there are."""
        match event:
            case ev.Submitted() | ev.Arrived():
                return [NEW] * len(event.specs)
            case ev.Scheduled():
                return [self._status(task_id) for row in event.rows for task_id in row.live]
            case ev.Reported():
                return [self._status(report.task_id) for report in event.reports]
            case ev.Saved():
                return [self._status(event.checkpoint.task_id)]
            case ev.TakenBack() | ev.WorkerDied():
                box = self.scheduler.workers.get(event.worker)
                return [row.status for row in box.sent.values()] if box is not None else ()
            case ev.UpdateAsked() | ev.ExecuteAsked():
                return [self._status(event.id)]
            case ev.CancelAsked() | ev.Dropped():
                return [self._status(task_id) for task_id in event.ids]
            case ev.StepsDue():
                return [self._status(step.row.id) for step in event.steps]
            case ev.RetryAsked() | ev.Refilled() | ev.KeysKept():
                return [self._status(row.id) for row in event.rows]
            case ev.Recovered():
                return [event.row.status]
            case _:
                return {stored.row.status for stored in self._store.tasks.values()}

    def _status(self, task_id: int) -> str:
        held = self.scheduler.tasks.get(task_id)
        if held is not None:
            return held.status
        stored = self._store.tasks.get(task_id)
        return NEW if stored is None else stored.row.status
