"""The loop: wait, make events, ask the scheduler, store its saves in one transaction, then act.

Durable before visible: nothing is sent to a worker or a client before the commit of the turn that decided it. Kills do not wait
for the disk: the engine's killer is a thread of its own. Costs are per turn: one poll, one transaction, one frame a
worker, one a client.

While the store takes no writes (a guest holds its lock, the disk is full) the turn that was decided is kept and tried again by
timer. No other is decided meanwhile: events gather, workers' records stay in their rings, and of clients only those are served
who just read. What the pool's end would have to store then stays in the pages, for the next owner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from taskpool import faults
from taskpool.clock import NS, Clock, Instant
from taskpool.core import commands as cmd
from taskpool.core import effects, graph, unique
from taskpool.core import events as ev
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import TERMINAL, WAITING
from taskpool.core.scheduler import Scheduler
from taskpool.engines.engine import Engine
from taskpool.errors import StoreError
from taskpool.store.conditions import StoreBusy, StoreFull
from taskpool.store.plans import unrefused
from taskpool.store.store import Store
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.inbox import Inbox
from taskpool.supervisor.linger import Linger
from taskpool.supervisor.news import Newsroom
from taskpool.supervisor.pruning import Pruning
from taskpool.supervisor.sending import Sender
from taskpool.supervisor.server import STARVED_S, Server
from taskpool.wire.messages import Told
from taskpool.wire.poller import Poller

BUSY_RETRY_NS = 2 * NS // 1000  # between tries of a commit while a guest holds the write lock, doubled …
BUSY_RETRY_NS_MAX = NS // 20  # … up to this
BUSY_WARN_NS = NS
FULL_RETRY_NS = NS // 2  # … while there is no room on the disk
GIVE_UP_S = 0.5  # how long the end of a pool waits for a store that takes no writes
CLOCK_LOOK_S = 30.0  # between looks at the wall clock while something waits for it: it may be set, or the machine may sleep

_DISPATCH = ev.Dispatch()
# Events that may speak of ended tasks as the store has them.
_WITH_ROWS = (ev.RetryAsked, ev.CancelAsked, ev.UpdateAsked, ev.ExecuteAsked, ev.Submitted)


class Turn:
    """What one turn decided: what is to be stored, and what follows from that. refused: ids that were not stored, and why.

    events: what it is to decide, while it has not; effects: what its successes do to users' tables.
    """

    __slots__ = ("acts", "effects", "ended", "events", "mark", "now", "plans", "refused", "replaced", "saves", "starts", "why")

    def __init__(self, events: list[ev.Event], now: Instant, mark: int) -> None:
        self.events: list[ev.Event] | None = events
        self.now = now
        self.mark = mark
        self.effects = effects.NONE
        self.saves: list[cmd.Save] = []
        self.plans: list[cmd.Plan] = []
        self.starts: list[cmd.Start] = []
        self.ended: list[cmd.End | cmd.Move] = []
        self.acts: list[cmd.Act] = []
        self.refused: set[int] = set()
        self.replaced: set[int] = set()  # tasks whose unique keys new ones take
        self.why: StoreError | None = None


class Stuck:
    """A turn that the store does not take for now, since when (monotonic ns), and when it is tried again."""

    __slots__ = ("error", "pause", "retry_at", "since", "told", "turn")

    def __init__(self, turn: Turn, now: int) -> None:
        self.turn = turn
        self.since = self.retry_at = now
        self.pause = BUSY_RETRY_NS
        self.told = False
        self.error: StoreError

    def again(self, error: StoreError, now: int) -> None:
        """It was tried in vain: try again later."""
        self.error = error
        self.pause = FULL_RETRY_NS if isinstance(error, StoreFull) else min(self.pause * 2, BUSY_RETRY_NS_MAX)
        self.retry_at = now + self.pause


class Loop:
    """One supervisor's loop. `run` returns when everything has stopped; `reason` says why."""

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        scheduler: Scheduler,
        desk: Desk,
        server: Server,
        poller: Poller,
        clock: Clock,
        log: Callable[[str], None],
        memory_limit: int | None = None,
        inbox: Inbox | None = None,
        pruning: Pruning | None = None,
        clock_look_s: float = CLOCK_LOOK_S,
    ) -> None:
        """memory_limit: bytes that a task may use which says nothing of its own; inbox None: one that nobody tells of the log.

        pruning None: nothing is; clock_look_s: between looks at the wall clock while something waits for it.
        """
        self._clock_look_s = clock_look_s
        self._pruning = pruning
        if pruning is not None:
            desk.on_prune = pruning.ask
            pruning.answer = desk.tell_pruned
        self._store = store
        self._engine = engine
        self._scheduler = scheduler
        self._desk = desk
        self._server = server
        self._poller = poller
        self._linger = Linger(poller, lambda: desk.busy)
        self._alone = False  # the last turn stored something that no client had asked for
        self._clock = clock
        self._inbox = inbox or Inbox(store, log)
        desk.on_find = self._inbox.knock
        desk.readings.finds_more = self._finds_more
        self._log = log
        self._events: list[ev.Event] = []
        self._sender = Sender(store, engine, scheduler, server, memory_limit)
        self._news = Newsroom(store, engine, scheduler, desk, server)
        self._stuck: Stuck | None = None
        self._give_up_at: int | None = None  # monotonic ns: a store that takes no writes is waited for until then
        self.after_turn: Callable[[], None] = lambda: None
        self.turns = 0
        self.ended = False
        self.reason = ""

    def deliver(self, event: ev.Event) -> None:
        """Add an event to the next turn."""
        self._events.append(event)

    def run(self) -> None:
        """Turn until the scheduler halts."""
        while not self.ended:
            self._linger.wait(self._timeout, alone=self._alone)
            self.turn()

    def run_until_stored(self, patience_s: float) -> None:
        """Take what was delivered through one transaction. Raises StoreError if the store takes no writes for that long."""
        self.give_up_after(patience_s)
        self.turn()
        while self._stuck is not None:
            self._poller.wait(self._timeout())
            self.turn()
        self._give_up_at = None

    def give_up_after(self, seconds: float) -> None:
        """From then on, do not wait for a store that takes no writes: end with what it says. A second call may only shorten it."""
        at = self._clock.now().mono + round(seconds * NS)
        self._give_up_at = at if self._give_up_at is None else min(at, self._give_up_at)

    def turn(self) -> None:
        """Take all that has arrived through one transaction."""
        mark = self._engine.collect()
        if self._stuck is not None and not self._try_again(self._stuck):
            self._desk.readings.answer()
            return
        if self._desk.waits_for_lock:
            self._desk.try_again()
        events, self._events = self._events, []
        asked = self._desk.take_events()
        events += asked
        if not self._scheduler.stopping:
            events += self._inbox.take(self._clock.now().mono)
        turn = Turn(events, self._clock.now(), mark)
        self._alone = not asked
        self.turns += 1
        if not self._is_carried_out(turn):
            return
        self._engine.committed(mark)
        self._desk.readings.answer()
        self._news.look(turn.now)
        self._server.listen_again()
        self._store.tidy()  # nobody waits for it: all that this turn had to say is said
        if turn.saves or turn.plans:
            self._inbox.settle()
        else:
            self._alone = False
        self._prune(idle=self._alone or not (turn.saves or turn.plans))
        self.after_turn()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, nothing is due, and nobody has asked for anything."""
        asked = self._events or self._desk.busy or self._desk.waits_for_lock or self._inbox.due
        return not asked and self._scheduler.is_idle

    def _prune(self, *, idle: bool) -> None:
        """Take a slice of ended tasks, if it is time, and nothing that waits for the next turn may hold their rows."""
        if self._pruning is None or self._scheduler.stopping:
            return
        if not any(type(event) in _WITH_ROWS for event in (*self._desk.events, *self._events)):
            self._pruning.work(self._clock.now(), lambda: self._clock.now().mono, idle=idle)

    def _finds_more(self) -> bool:
        return self._inbox.due and not self._scheduler.stopping

    def _timeout(self) -> float | None:
        now = self._clock.now()
        if self._stuck is not None:
            at = self._stuck.retry_at if self._give_up_at is None else min(self._stuck.retry_at, self._give_up_at)
            return max(0.0, (at - now.mono) / NS)
        if self._events or self._desk.busy:
            return 0.0
        timer = self._scheduler.next_timer(now)
        if self._desk.waits_for_lock:
            timer = min(BUSY_RETRY_NS_MAX / NS, BUSY_RETRY_NS_MAX / NS if timer is None else timer)
        if self._server.starved:
            timer = min(timer, STARVED_S) if timer is not None else STARVED_S
        if self._pruning is not None and not self._scheduler.stopping:
            timer = min(self._pruning.next_look(now.mono), math.inf if timer is None else timer)
        look = None if self._scheduler.stopping else self._inbox.next_look(now.mono)
        if look is not None:
            timer = look if timer is None else min(timer, look)
        if self._news.next_look:
            look = max(0.0, (self._news.next_look - now.mono) / NS)
            return look if timer is None else min(timer, look)
        return timer if timer is None else min(timer, self._clock_look_s)

    # ---- one turn's commands ----------------------------------------------------------------------------------------

    def _is_carried_out(self, turn: Turn) -> bool:
        """Decide a turn unless that is done, store it, and act on it. Return whether that could be; if not, it is stuck."""
        if turn.events is not None and not self._is_decided(turn, turn.events):
            return False
        if turn.saves or turn.plans or turn.acts:
            if not self._is_stored(turn):
                return False
            self._follow(turn)
        return True

    def _is_decided(self, turn: Turn, events: list[ev.Event]) -> bool:
        """Ask the scheduler. What bodies want done with their success is tried before, in the transaction of this turn."""
        told = effects.told(events)
        if told:
            try:
                effects.fail(events, self._store.try_effects(told))
            except (StoreBusy, StoreFull) as error:
                self._stick(turn, error)
                return False
        turn.events = None
        now = turn.now = self._clock.now()
        handle = self._scheduler.handle
        commands: list[cmd.Command] = []
        for event in events:
            commands += handle(event, now)
        if self._store.has_graphs and (ended := graph.ended_well(commands)) and (free := self._store.steps_foreseen(ended)):
            commands += handle(ev.StepsDue(free), now)
        commands += handle(_DISPATCH, now)
        self._sort(turn, commands)
        if told:
            turn.effects = effects.wanted(turn.saves)
            if not turn.saves and not turn.plans:
                self._store.abandon()
        if commands:
            faults.point("commit.before")
        return True

    def _sort(self, turn: Turn, commands: list[cmd.Command]) -> None:
        """Sort out what is stored first, what follows, and kill what is to be killed."""
        saves, starts, ended, acts = turn.saves, turn.starts, turn.ended, turn.acts
        for command in commands:
            kind = type(command)
            if kind is cmd.Start:
                saves.append(command)  # type: ignore[arg-type]  # mypy does not narrow by `type(x) is`
                starts.append(command)  # type: ignore[arg-type]
            elif kind is cmd.End or kind is cmd.Move:
                saves.append(command)  # type: ignore[arg-type]
                if command.to in TERMINAL:  # type: ignore[union-attr]
                    ended.append(command)  # type: ignore[arg-type]
                elif kind is cmd.Move and command.options is not None:  # type: ignore[union-attr]
                    self._sender.forget(command.id)  # type: ignore[union-attr]  # the store knows its new options
            elif kind is cmd.Insert:
                saves.append(command)  # type: ignore[arg-type]
                self._sender.keep(command)  # type: ignore[arg-type]
            elif kind is cmd.Checkpoint:
                saves.append(command)  # type: ignore[arg-type]
            elif kind is cmd.Kill:
                self._engine.kill(command.worker, command.n, command.why)  # type: ignore[union-attr]  # kills wait for nothing
            elif isinstance(command, cmd.Plan):
                turn.plans.append(command)
            else:
                acts.append(command)  # type: ignore[arg-type]
                if kind is cmd.Accept:
                    turn.replaced.update(command.replaced)  # type: ignore[union-attr]

    def _follow(self, turn: Turn) -> None:
        """Act on a turn that is stored, and answer."""
        starts, ended, refused = turn.starts, turn.ended, turn.refused
        faults.point("commit.after")
        if refused:
            sent = refused.difference([start.id for start in starts])
            self._events.append(ev.Dropped(sorted(refused), self._not_replaced(turn), sorted(sent)))
            self._inbox.again(self._clock.now().mono)  # what was to be taken out of it, and was refused, lies there still
            left = set(map(id, turn.saves))
            starts = [start for start in starts if id(start) in left]
            ended = [end for end in ended if id(end) in left]
            for task_id in refused:
                self._sender.forget(task_id)
        if starts:
            self._sender.send(starts)
        faults.point("start.after")
        if self._store.has_graphs and (due := self._store.steps_due()):
            self._events.insert(0, ev.StepsDue(due))  # before what was asked meanwhile of these tasks; only refills come before it
        for act in turn.acts:
            self._act(act, turn)
        faults.point("reply.before")
        if ended:
            for end in ended:
                self._sender.forget(end.id)
            self._desk.readings.settle(ended)
        self._sender.trim()

    def _not_replaced(self, turn: Turn) -> list[TaskRow]:
        """Return the rows of those that wait as before, as what was to take their unique keys was refused."""
        ids = sorted(turn.replaced & turn.refused)
        return [row for row in self._store.rows(ids) if row.status in WAITING] if ids else []

    # ---- a store that takes no writes -------------------------------------------------------------------------------

    def _is_stored(self, turn: Turn) -> bool:
        """Store a turn and return whether that could be done now; if not, it is stuck."""
        while turn.saves or turn.plans:
            try:
                together = [act.together for act in turn.acts if isinstance(act, cmd.Accept)]
                refused = self._store.commit(turn.saves, turn.now.wall, together=together, effects=turn.effects, plans=turn.plans)
                if refused:
                    turn.refused.update(refused)
                    turn.saves = unique.without(turn.saves, refused)
                break
            except StoreBusy as error:
                self._stick(turn, error)
                return False
            except StoreFull as error:
                # What is new is refused, so that its client can tell; what was computed is held until there is room.
                if not self._refuse_new(turn, error):
                    self._stick(turn, error)
                    return False
        return True

    def _refuse_new(self, turn: Turn, error: StoreError) -> bool:
        """Tell at once those whose tasks there is no room for. Return whether there were any.

        A success and what it has spawned are stored together: both are held.
        """
        new = {save.id for save in turn.saves if type(save) is cmd.Insert and not save.of}
        turn.why = error
        turn.refused |= new | turn.replaced
        turn.saves = unique.without(turn.saves, turn.refused)
        turn.plans = unrefused(turn.plans, turn.refused)
        for act in list(turn.acts):
            if isinstance(act, cmd.Accept) and not new.isdisjoint(act.ids):
                self._desk.submits.accept(act, new, error)
                turn.acts.remove(act)
        return bool(new)

    def _stick(self, turn: Turn, error: StoreError) -> None:
        now = self._clock.now().mono
        if self._stuck is None:
            self._stuck = Stuck(turn, now)
        stuck = self._stuck
        stuck.again(error, now)
        self._desk.hold(error)
        if not stuck.told and (isinstance(error, StoreFull) or now - stuck.since >= BUSY_WARN_NS):
            stuck.told = True
            full = isinstance(error, StoreFull)
            self._log(f"{error}; {'results are held until there is room' if full else 'nothing can be stored meanwhile'}")

    def _try_again(self, stuck: Stuck) -> bool:
        """Store the turn that is stuck, if it is time. Return whether that is done. Raises what is the matter if it gives up."""
        now = self._clock.now().mono
        if self._give_up_at is not None and now >= self._give_up_at:
            raise stuck.error
        if now < stuck.retry_at or not self._is_carried_out(stuck.turn):
            return False
        self._stuck = None
        if stuck.told:
            self._log("the store takes writes again")
        self._engine.committed(stuck.turn.mark)
        self._desk.release()
        return True

    # ---- what follows -----------------------------------------------------------------------------------------------

    def _act(self, command: cmd.Act, turn: Turn) -> None:
        match command:
            case cmd.Accept():
                self._desk.submits.accept(command, turn.refused, turn.why)
            case cmd.Respond():
                self._desk.respond(command, turn.refused)
            case cmd.Agree():
                self._desk.agree(command, turn.refused)
            case cmd.CancelLive():
                self._events.append(self._desk.cancel_live(command))
            case cmd.Spawn():
                self._engine.spawn(command.worker)
            case cmd.TakeBack():
                self._engine.take_back(command.worker, command.above, command.running_ns)
            case cmd.Signal():
                self._engine.signal(command.worker, command.n, command.grace_s, command.why)
            case cmd.Kill():
                self._engine.kill(command.worker, command.n, command.why)
            case cmd.Tell():
                self._server.send(command.client, Told(command.worker, command.what))
            case cmd.Refill():
                rows, more = self._store.refill(command.queue, command.after, command.n, command.key)
                # First in the next turn: what comes after it must find the line as the store had it.
                self._events.insert(0, ev.Refilled(command.queue, rows, more, command.key))
            case cmd.Halted():
                self.ended = True
                self.reason = command.reason
            case _:
                assert_never(command)
