"""The model world: clients, one supervisor after another, and everything that can go wrong between them, drawn from one seed.

A run has two parts. First chance rules: steps of workers, turns, requests, faults, deaths of the supervisor between any two steps
of a turn. Then the world is calm: nothing breaks any more, time moves only as far as the scheduler's own timer says, and every
task must come to its end. The shell is `Shell`; what must hold is in `laws`.
"""

from __future__ import annotations

import copy
from collections import deque
from random import Random

import msgspec

from taskpool.clock import NS, US, ManualClock
from taskpool.core import events as ev
from taskpool.core.admission import Room
from taskpool.core.lifecycle import RUNNING, TERMINAL
from taskpool.core.scheduler import Scheduler
from taskpool.model import FlowSpec, Options, Queue, TaskSpec
from taskpool.testing.simulation.conditions import conditions, pruning, spawning
from taskpool.testing.simulation.fates import Fates, LawBroken, obey
from taskpool.testing.simulation.laws import Laws
from taskpool.testing.simulation.model_engine import ModelEngine, ModelWorker
from taskpool.testing.simulation.model_store import ModelStore
from taskpool.testing.simulation.shell import ECHOES_MAX, Ended, Killed, Said, Shell
from taskpool.testing.simulation.trace import Coverage, Trace
from taskpool.testing.simulation.traffic import LABEL, Traffic
from taskpool.timetable import next_after
from taskpool.wire.jobs import Checkpointed, Report

STEPS = 500  # of the first part of a run
TASKS_MAX = 120  # submitted in a run
REPEAT_EVERY = 100  # steps after which all that was said comes once more
CALM_STEPS_MAX = 50_000  # in which a calm world must come to rest; a loop that looks at the clock now and then takes many
TOLD = 0.3  # chance per step that the kernel tells of the log
SPIN_MAX = 50  # turns without any command that the timer may call for in a row


class Simulated(msgspec.Struct, frozen=True):
    """One run. digest: of every (now, event, commands); equal seeds give equal digests."""

    seed: int
    digest: str
    steps: int
    tasks: int
    lives: int


def simulate(
    seed: int,
    *,
    steps: int = STEPS,
    scheduler: type[Scheduler] = Scheduler,
    shell: type[Shell] = Shell,
    store: type[ModelStore] = ModelStore,
    coverage: Coverage | None = None,
    trace: Trace | None = None,
) -> Simulated:
    """Run one seed of the simulation. Raises LawBroken, naming the seed, when a promise is broken.

    steps: how long chance rules; scheduler, shell, store: those under test; coverage: counts what is met; trace: keeps the text.
    """
    world = World(seed, scheduler, shell, store, coverage or Coverage(), trace or Trace())
    try:
        return world.run(steps)
    except Exception as error:
        where = f"seed {seed}, step {world.steps}: {str(error) or type(error).__name__}"
        raise LawBroken(f"{where}\nsee it again: python -m tests.sim {seed}") from error


class World:
    """One run of one seed."""

    def __init__(
        self,
        seed: int,
        scheduler: type[Scheduler],
        shell: type[Shell],
        store: type[ModelStore],
        coverage: Coverage,
        trace: Trace,
    ) -> None:
        self.seed = seed
        self.steps = 0
        self._random = Random(seed)
        self._conditions = msgspec.structs.replace(conditions(self._random), prune=pruning(seed), children=spawning(seed))
        self._clock = ManualClock()
        self._fates = Fates()
        self._laws = Laws(self._fates)
        self._laws.paces.steady = not self._conditions.jump
        self._store = self._laws.store = store(self._laws)
        for queue in self._conditions.rules:
            self._store.register_queue(queue)
        self._traffic = Traffic(self._random, self._conditions)
        self._scheduler_class = scheduler
        self._shell_class = shell
        self._coverage = coverage
        self._trace = trace
        self._pages: dict[int, ModelWorker] = {}  # what dead supervisors' workers left
        self._said: Said = {ev.Reported: deque(maxlen=ECHOES_MAX), ev.Saved: deque(maxlen=ECHOES_MAX)}
        self._unanswered: dict[int, ev.Submitted] = {}
        self._seq = 0
        self._submitted = 0
        self._lives = 0
        self._shell = self._new_shell()

    def run(self, steps: int) -> Simulated:
        """Let chance rule for so many steps, then bring everything to its end."""
        self._trace.note(str(self._conditions))
        self._live(self._recover)
        for number in range(self._conditions.schedules):
            schedule = self._traffic.schedule(number)
            self._laws.schedules[schedule.name] = schedule
            self._shell.cron("add", schedule.name, schedule)
        while self.steps < steps:
            self.steps += 1
            self._live(self._step)
        self._calm_down()
        self._laws.all_ended()
        self._shell.farewell()
        return Simulated(self.seed, self._trace.digest, self._trace.steps, len(self._store.tasks), self._lives)

    # ---- lives of supervisors ---------------------------------------------------------------------------------------

    def _new_shell(self) -> Shell:
        self._lives += 1
        self._laws.new_life()
        engine = ModelEngine(self._random, self._clock, self._conditions, self._fates, self._laws.body_begins)
        scheduler = self._scheduler_class(
            self._conditions.size,
            spares=self._conditions.spares,
            depth_max=self._conditions.depth_max,
            line_max=self._conditions.line_max,
            grace_s=0.2,
            size_max=self._conditions.size_max,
            idle_ns=NS // 2,
            room=self._room(),
            next_after=next_after,
            labels={LABEL: self._conditions.labels} if self._conditions.labels else {},
        )
        return self._shell_class(
            scheduler,
            engine,
            self._store,
            self._clock,
            self._random,
            self._conditions,
            self._laws,
            self._trace,
            self._coverage,
            self._said,
        )

    def _room(self) -> Room:
        """Return what the machine has: at least one processor a worker."""
        weather = self._conditions
        return Room(max(weather.cpus, weather.size, weather.size_max) if weather.cpus else 0, weather.memory)

    def _live(self, deed: object) -> None:
        """Do something with the supervisor; if it dies or ends of it, another takes over."""
        assert callable(deed)
        try:
            deed()
        except (Killed, Ended) as end:
            self._trace.note(f"the supervisor {type(end).__name__.lower()}: {end}")
            self._bury(killed=isinstance(end, Killed))
            self._live(self._recover)

    def _bury(self, *, killed: bool) -> None:
        """The supervisor is gone. Its workers die a moment later; their pages stay, unless the machine went down too."""
        calm = self._shell.engine.calm
        pages = self._shell.engine.stop_all()
        rebooted = killed and not calm and self._random.random() < self._conditions.reboot
        if rebooted:
            self._pages.clear()
        else:
            self._pages.update({page.worker: page for page in pages})
        for box in pages:
            for record in box.ring:  # what nobody read may still come, when it is too late
                if isinstance(record, Report):
                    self._said[ev.Reported].append(ev.Reported(box.worker, box.pid, [copy.copy(record)]))
                elif isinstance(record, Checkpointed):
                    self._said[ev.Saved].append(ev.Saved(box.worker, record))
        for row in self._store.running():
            if row.worker in self._shell.callers.workers:
                self._shell.callers.lose(row.id, row.attempt)
            self._fates.lose(row.id, row.attempt, void=rebooted or row.worker in self._shell.callers.workers)
        self._shell = self._new_shell()
        self._shell.engine.calm = calm

    def _recover(self) -> None:
        """Tell the new scheduler what the last one left behind, as `supervisor.recovery` does."""
        running = {row.id: row for row in self._store.running()}
        reports: dict[tuple[int, int], Report] = {}
        begun: set[tuple[int, int]] = set()
        for page in self._pages.values():
            reports.update(
                {(record.task_id, record.attempt): copy.copy(record) for record in page.ring if isinstance(record, Report)}
            )
            if page.body is not None:
                begun.add((page.body.job.task_id, page.body.job.attempt))
        recovered: list[ev.Event] = []
        for row in running.values():
            key = (row.id, row.attempt)
            # Without a page nobody knows how far it came: what was sent counts as begun.
            recovered.append(ev.Recovered(row, key in begun or row.worker not in self._pages, reports.get(key)))
        opened = ev.Opened(self._store.next_id(), self._store.queues_waiting())
        spent = self._store.rates_full_at()
        kept = ev.KeysKept(self._store.kept_keys())
        rules = [ev.QueueSet(queue, spent.get(queue.name, 0)) for queue in self._store.queue_rules()]
        self._shell.turn([*rules, ev.Scheduled(self._store.schedule_rows()), kept, *recovered, opened])
        while self._shell.is_stuck:
            self._shell.let_time_pass()
            self._shell.turn()
        self._pages.clear()
        for submitted in list(self._unanswered.values()):
            self._send_again(submitted)

    # ---- chance -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        random, shell = self._random, self._shell
        shell.let_time_pass()
        chance = random.random()
        if chance < 0.4:
            for _ in range(random.choice((1, 1, 3))):
                shell.engine.step()
            shell.step_callers()
        elif chance < 0.6:
            self._request()
        elif chance < 0.63:
            self._sleep()
        elif chance < 0.72 and self._store.schedules:
            self._meddle()
        if random.random() < TOLD:
            shell.stir()
        if self.steps % REPEAT_EVERY == 0 and self._conditions.echo:
            shell.repeat_everything()
        if random.random() < self._conditions.jump:
            self._clock.jump_wall(random.choice((-86_400.0, -5.0, 5.0, 86_400.0)))
        if shell.is_called(random.random() < self._conditions.haste):
            shell.turn()
            self._hear_answers()

    def _sleep(self) -> None:
        """Let the world sleep, at most until the timer's next call."""
        timer = self._shell.timer()
        self._clock.advance(min(self._random.choice((0.001, 0.1, 1.0, 100.0)), 200.0 if timer is None else timer))
        self._shell.engine.expire()

    def _meddle(self) -> None:
        """Let time pass as schedules need it, or do something to one of them."""
        random = self._random
        if random.random() < 0.7:
            timer = self._shell.scheduler.next_timer(self._clock.now())
            self._clock.advance(50.0 if timer is None else timer)
            self._shell.engine.expire()
            return
        name = random.choice(sorted(self._store.schedules))
        if random.random() < 0.1:
            self._laws.meddled.add(name)
            self._shell.cron(random.choice(("pause", "resume")), name)
        else:
            self._shell.cron("run", name)

    def _request(self) -> None:
        random, shell = self._random, self._shell
        chance = random.random()
        if random.random() < self._conditions.stop:
            shell.stop(random.choice((None, 0.0, 0.01, 2.0)))
        elif random.random() < self._conditions.pause:
            name = random.choice(self._conditions.queues)
            shell.pause(name, paused=not self._store.queues.get(name, Queue(name)).paused)
        elif chance < 0.5:
            alive = sum(stored.row.status not in TERMINAL for stored in self._store.tasks.values())
            if alive < self._conditions.tasks_max and self._submitted < TASKS_MAX and not shell.scheduler.stopping:
                if random.random() < self._conditions.guests:
                    self._guest()
                else:
                    self._submit()
        else:
            statuses = {task_id: stored.row.status for task_id, stored in self._store.tasks.items()}
            ids = self._traffic.targets(statuses)
            if random.random() < 0.4:
                for task_id in ids:
                    self._update(task_id)
            if random.random() < self._conditions.callers:
                for task_id in ids:
                    shell.execute(task_id, random.choice((1, 2)), random.choice(([], [LABEL])))
            if chance < 0.75:
                shell.cancel(ids, random.choice((None, None, 0.0, 0.05)), force=random.random() < 0.3)
            else:
                shell.retry(ids, force=self._traffic.forces(statuses, ids))

    def _update(self, task_id: int) -> None:
        """Change a task, now and then as it was before."""
        random, wall = self._random, self._clock.now().wall
        version = self._store.tasks[task_id].row.version if task_id in self._store.tasks else 1
        at_s = random.choice((None, None, -1.0, 0.0, 0.05, 2.0, 30.0))
        options = random.choice((None, None, self._traffic.options(wall)))
        self._shell.update(
            task_id,
            version - (random.random() < 0.1),
            random.choice((None, 0, 1, -1)),
            None if at_s is None else wall + round(at_s * US),
            options,
        )

    def _submit(self) -> None:
        pairs = self._traffic.specs(self._clock.now().wall)
        for spec, options in pairs:
            self._store.options[spec.options] = options
        pairs, flow = self._traffic.graph(pairs, list(self._store.tasks))
        self._submitted += len(pairs)
        self._deliver(pairs, flow)
        if self._random.random() < self._conditions.twice:
            if any(spec.step is not None for spec, _ in pairs):
                self._deliver(pairs, flow)
                return
            others = self._traffic.specs(self._clock.now().wall)[: self._random.choice((0, 0, 1, 3))]
            for spec, options in others:
                self._store.options[spec.options] = options
            again = [*pairs[: self._random.choice((1, 8))], *others]  # among new ones: then none of them is stored
            self._random.shuffle(again)
            self._deliver(again)

    def _deliver(self, pairs: list[tuple[TaskSpec, Options]], flow: FlowSpec | None = None) -> None:
        self._seq += 1
        submitted = ev.Submitted(1, self._seq, [spec for spec, _ in pairs], [options for _, options in pairs], flow)
        self._unanswered[self._seq] = submitted
        self._shell.deliver(submitted)

    def _guest(self) -> None:
        """Somebody stores tasks in a transaction of their own, or rolls it back; a uid may be stored already."""
        pairs = self._traffic.specs(self._clock.now().wall)
        for spec, options in pairs:
            self._store.options[spec.options] = options
        self._submitted += len(pairs)
        specs = [spec for spec, _ in pairs]
        for spec in specs:
            spec.unique = None  # nobody is there to be told
        if self._random.random() < 0.7:
            self._laws.guests.update(spec.uid for spec in specs)
            if self._random.random() < 0.2:
                self._seq += 1
                submitted = ev.Submitted(1, self._seq, specs, [options for _, options in pairs])
                self._unanswered[self._seq] = submitted
                self._shell.deliver(submitted)
            self._store.guest(specs)

    def _send_again(self, submitted: ev.Submitted) -> None:
        """A client whose supervisor died asks again under the same uids; what is stored is not stored twice."""
        pairs = [
            (spec, options)
            for spec, options in zip(submitted.specs, submitted.options, strict=True)
            if spec.uid not in self._store.uids and spec.uid not in self._store.pruned.values()
        ]
        parents = {ref for spec, _ in pairs if spec.step is not None for ref, _, _ in spec.step.parents if ref > 0}
        if not parents <= self._store.tasks.keys():
            pairs = []  # the desk would say that there is no such task
        if pairs and self._random.random() < 0.7:
            again = ev.Submitted(1, submitted.seq, [spec for spec, _ in pairs], [options for _, options in pairs], submitted.flow)
            self._unanswered[submitted.seq] = again
            self._shell.deliver(again)
        else:
            del self._unanswered[submitted.seq]

    def _hear_answers(self) -> None:
        for accepted in self._shell.accepted:
            submitted = self._unanswered.pop(accepted.seq)
            obey(len(accepted.ids) == len(submitted.specs), f"submit {accepted.seq} was answered with {len(accepted.ids)} ids")
            for place, task_id in enumerate(accepted.ids):
                if any(place == one for one, _ in accepted.taken):
                    continue
                obey(task_id in self._store.tasks, f"task {task_id} was acknowledged, and is not stored")
                self._laws.answered(submitted.specs[place], task_id)
        for seq in self._shell.refused:
            del self._unanswered[seq]
        self._shell.accepted.clear()
        self._shell.refused.clear()

    # ---- calm -------------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """Nothing breaks any more: go on until everything has ended, moving time only as far as timers say."""
        self._shell.be_calm()
        for _ in range(CALM_STEPS_MAX):
            if self._at_rest():
                return
            self._live(self._calm_step)
        obey(not self._store.inbox, f"nobody looks at what guests have stored: {sorted(self._store.inbox)}")
        still = {task_id: stored.row.status for task_id, stored in self._store.tasks.items() if stored.row.status not in TERMINAL}
        raise LawBroken(f"a calm world does not come to rest; tasks {still}")

    def _at_rest(self) -> bool:
        if self._store.inbox:
            return False
        if any(stored.row.status not in TERMINAL for stored in self._store.tasks.values()):
            return False
        if any(occurrence.outcome == "queued" for occurrence in self._store.occurrences.values()):
            return False
        return not self._shell.scheduler.stopping and not any(box.leaving for box in self._shell.scheduler.workers.values())

    def _calm_step(self) -> None:
        shell = self._shell
        shell.be_calm()
        shell.stir()
        for queue in self._store.queue_rules():
            if queue.paused:
                shell.pause(queue.name, paused=False)
        for name, schedule in self._store.schedules.items():
            if not schedule.paused:
                shell.cron("pause", name)  # or there is no end to it
        worked = shell.engine.step_all() or shell.step_callers()
        shell.let_time_pass()
        if shell.is_called():
            shell.turn()
            self._hear_answers()
            obey(shell.idle_turns <= SPIN_MAX, f"the timer called {shell.idle_turns} times for nothing")
        elif not worked:
            now = self._clock.now()
            timer = shell.timer()
            kill = shell.engine.next_kill()
            waits = [wait for wait in (timer, None if kill is None else max(0.0, (kill - now.mono) / NS)) if wait is not None]
            running = [stored.row.id for stored in self._store.tasks.values() if stored.row.status == RUNNING]
            obey(waits, f"nothing is going to happen any more; tasks {running} run, {len(self._store.waiting)} wait")
            self._clock.advance(min(waits) + 1 / US)
            shell.engine.expire()
