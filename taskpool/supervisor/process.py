"""The supervisor's process: put the parts together, go on where the last owner left off, turn until the end, leave nothing behind.

It imports no user code, runs none, and decodes no user bytes. Under a script it has a session of its own, so that Ctrl-C reaches
the script alone, and a pidfd of the script, whose end ends the pool.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from taskpool import config
from taskpool.clock import NS, SystemClock
from taskpool.config import Settings
from taskpool.core import events as ev
from taskpool.core.admission import Room
from taskpool.core.scheduler import Scheduler
from taskpool.engines import sweep
from taskpool.engines.engine import Wish
from taskpool.engines.inotify import FileWatch
from taskpool.engines.launch import Launched, launch, settle_in
from taskpool.engines.node import Node
from taskpool.engines.nursery import Nursery
from taskpool.errors import InternalError, StoreError, StoreLocked, StoreUnusable, TaskpoolError
from taskpool.memory import usable_memory
from taskpool.model import Stats
from taskpool.store.store import Store
from taskpool.supervisor import recovery
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.dump import Dump
from taskpool.supervisor.inbox import FALLBACK_S, Inbox
from taskpool.supervisor.loop import CLOCK_LOOK_S, GIVE_UP_S, Loop
from taskpool.supervisor.opening import OPEN_WAIT_S, open_store, patiently
from taskpool.supervisor.pruning import Pruning
from taskpool.supervisor.server import Connection, Server, refusal
from taskpool.supervisor.spawning import Spawning
from taskpool.supervisor.start import new_mark
from taskpool.supervisor.statistics import stats_of
from taskpool.supervisor.vanished import watch_names
from taskpool.timetable import next_after
from taskpool.wire import messages as wire
from taskpool.wire.frames import FrameWriter
from taskpool.wire.poller import IN, Poller
from taskpool.wire.zygote import Boot, Prepare, Prepared

TELL_FAILURE_S = 60.0  # between two words about workers that cannot be started
GOODBYE = "the pool was stopped"


def main(argv: list[str], zygote: Launched) -> int:
    """Serve the script at the other end of an inherited socket (`--fd N`) until it leaves. Return the exit code."""
    sock = socket.socket(fileno=int(argv[argv.index("--fd") + 1]))
    sock.set_inheritable(False)
    boot = _receive_boot(sock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(boot.settings, boot.prepare, log=lambda line: None, warn=_warn, zygote=zygote)
    return supervisor.serve_owner(sock, boot.owner_pid)


def _warn(line: str) -> None:
    """Tell the people at a script what they should know; somebody or nobody may read it."""
    try:
        os.write(2, f"taskpool: {line}\n".encode())
    except OSError:
        pass


def serve(settings: Settings, prepare: Prepare, *, log: Callable[[str], None]) -> int:
    """Own the store in this process and take work from clients until SIGTERM, SIGINT or SIGHUP. Return the exit code.

    The first signal stops taking work and waits `drain_grace_s`; the second ends at once. SIGUSR1 has the state and all stacks
    logged. Raises TaskpoolError if it cannot start.
    """
    settle_in()
    return Supervisor(settings, prepare, log=log).serve_all()


class Supervisor:
    """One supervisor, from start to end."""

    def __init__(
        self,
        settings: Settings,
        prepare: Prepare,
        *,
        log: Callable[[str], None],
        warn: Callable[[str], None] | None = None,
        zygote: Launched | None = None,
    ) -> None:
        """log: takes lines about the course of things; warn: those that tell why it stands still (None: log too).

        zygote: one that was launched already, so that it could begin early.
        """
        self.settings = settings
        self._zygote = zygote or launch(new_mark())
        self._log = log
        self._warn = warn or log
        self._started = time.monotonic()
        self._poller = Poller()
        self._clock = SystemClock()
        self._prepare = prepare
        self._hellos: list[Connection] = []
        self._failure: TaskpoolError | None = None
        self._signals = 0
        self._told_failure_at = -TELL_FAILURE_S  # monotonic seconds
        self._owner: Connection | None = None
        self.fails_unknown = True  # tasks of handlers that nobody has registered go to a worker, where they fail
        self.limits: Mapping[str, int] = {}  # queue → how many of its tasks may run at once, to be stored at the start
        self.ends_when_idle = False  # when nothing runs and nothing is due
        self.on_ready: Callable[[Prepared], None] = lambda prepared: None  # handlers are loaded, the socket listens

    # ---- the two ways to serve --------------------------------------------------------------------------------------

    def serve_owner(self, sock: socket.socket, owner_pid: int) -> int:
        """Serve a script's Pool: refuse in words what cannot start, and end with the script."""
        try:
            self._assemble()
        except TaskpoolError as error:
            _refuse(sock, error)
            return 5
        except Exception as error:
            _refuse(sock, InternalError(f"the supervisor could not start: {type(error).__name__}: {error}"))
            raise
        self._owner = self._server.adopt(sock, owner=True)
        self._watch_owner(owner_pid)
        try:
            return self._run()
        finally:
            if os.getppid() != owner_pid:  # it died: nobody else knows of its private store
                config.throw_away(self.settings)

    def serve_all(self) -> int:
        """Serve whoever connects."""
        dump = Dump(self._log)
        dump.listen()
        self._assemble()
        dump.watch(self._poller, self.stats)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_signal)
        return self._run()

    # ---- start ------------------------------------------------------------------------------------------------------

    def _assemble(self) -> None:
        """Own the store, make everything, and go on where the last owner left off. Raises TaskpoolError."""
        try:
            self._put_together()
        except OSError as error:
            raise StoreUnusable(f"no supervisor can start on {self.settings.store}: {error}") from error

    def _put_together(self) -> None:
        settings = self.settings
        mark = self._zygote.mark
        nursery = Nursery(self._prepare, mark, first=self._zygote)
        try:
            nursery.start(self._poller)  # the handlers are imported while the store is opened
            store = self._store = self._open()
        except BaseException:
            self._zygote.process.kill()
            self._zygote.process.wait()
            sweep.kill_owned([mark])  # what the import of the handlers has started
            raise
        self._node = Node(store.places.run, store.epoch, mark, prepare=self._prepare, nursery=nursery)
        scheduler = self._scheduler = Scheduler(
            settings.workers,
            depth_max=self._node.mailbox_limit,
            grace_s=settings.cancel_grace_s,
            size_max=settings.workers_max,
            idle_ns=round(settings.worker_idle_s * NS),
            room=Room(max(settings.workers, settings.workers_max, config.usable_cpus()), usable_memory()),
            next_after=self._next_after,
            labels=settings.labels,
        )
        desk = self._desk = Desk(store, scheduler, self.stats)
        self._server = desk.server = Server(self._poller, desk.on_request, self._on_gone)
        self._spawning = Spawning(scheduler, desk.on_request, self._node.answer)
        self._server.to_worker = self._spawning.answered
        desk.on_hello = self._on_hello
        desk.on_stop = self.stop
        desk.readings.printed = self._node.printed
        self._loop = Loop(
            inbox=self._watched_inbox(),
            store=store,
            engine=self._node,
            scheduler=scheduler,
            desk=desk,
            server=self._server,
            poller=self._poller,
            clock=self._clock,
            log=self._warn,
            memory_limit=settings.memory_limit,
            clock_look_s=settings.poll_interval_s or CLOCK_LOOK_S,
            pruning=Pruning(store, settings.retention, time.monotonic_ns()),
        )
        self._loop.after_turn = self._end_when_idle
        self._node.start(self._poller, self._deliver, self._on_prepared)
        for name, limit in self.limits.items():
            patiently(partial(store.limit_queue, name, limit))
        self._recover()
        self._server.listen(config.socket_path(settings.store))
        self._watch_files()
        self._check = store.start_check() if store.unclean else None
        if self._check is not None:
            self._poller.add(self._check.fileno(), self._on_checked)

    def _watched_inbox(self) -> Inbox:
        """Return the inbox, and have the kernel tell when the log of the store is written."""
        try:
            watch = FileWatch(str(self._store.places.wal))
        except OSError as error:
            every_s = self.settings.poll_interval_s or FALLBACK_S
            self._log(f"looking into the inbox every {every_s:g} s: {error}")
            inbox = Inbox(self._store, self._log)
            inbox.look_every(every_s, time.monotonic_ns())
            return inbox
        inbox = Inbox(self._store, self._log, watch=watch)
        inbox.quiet = lambda quiet: self._poller.modify(watch.fd, 0 if quiet else IN)
        self._poller.add(watch.fd, lambda events: inbox.stirred(time.monotonic_ns()))
        return inbox

    def _watch_files(self) -> None:
        """End in words when the store is taken away, rather than go on with what nobody will find again."""
        places = self._store.places
        try:
            watch_names(self._poller, (places.db, places.wal), self._on_vanished)
        except OSError as error:
            self._log(f"nobody would tell if the store were removed: {error}")

    def _open(self) -> Store:
        """Own the store, and prove dead what the owners before left behind."""
        store = open_store(self.settings, self._warn)
        alive = sweep.take_over(store.places.run, self._zygote.mark)
        if alive:
            store.close(clean=False)
            pids = ", ".join(map(str, sorted(alive)))
            raise StoreLocked(
                f"processes of the last owner live on and cannot be killed: {pids}", hint="end them, then start again"
            )
        store.tell = self._warn
        return store

    def _recover(self) -> None:
        """Go on where the last owner left off."""
        rules = self._store.queue_rules()
        self._desk.submits.know_queues(rules)
        left = recovery.left_behind(self._store, rules, self._clock, self._log)
        for event in left.events:
            self._loop.deliver(event)
        self._loop.run_until_stored(OPEN_WAIT_S)
        left.forget()

    def _next_after(self, spec: str, tz: str, after: int, anchor: int) -> int | None:
        """The calendar. What this machine cannot read any more, such as a zone that it does not have, never comes."""
        try:
            return next_after(spec, tz, after, anchor)
        except TaskpoolError as error:
            self._log(f"a schedule stands still until it is resumed: {error}")
            return None

    def _run(self) -> int:
        gc.disable()  # nothing of ours makes cycles; the soak shows that nothing leaks
        code = 0
        try:
            self._loop.run()
            reason = self._failure.message if self._failure else self._loop.reason or GOODBYE
            code = 1 if self._failure or self._loop.reason else 0
        except StoreError as error:
            # Not to be tried again on this connection. What is not stored lies in the pages of the workers, for the next owner.
            reason = f"the store cannot go on: {error}"
            self._log(reason)
            code = 1
        except BaseException as error:
            reason = f"the supervisor failed: {type(error).__name__}: {error}"
            self._log(reason)
            raise
        finally:
            self._end(reason)
        return code

    def _end(self, reason: str) -> None:
        """Leave nothing behind; what cannot be done any more is passed over."""
        self._node.stop()
        if self._check is not None:
            self._check.kill()
        self._server.close(reason)
        try:
            self._store.close(clean=True)
        except TaskpoolError as error:
            self._log(f"closing the store: {error}")

    # ---- what happens meanwhile -------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the pool's numbers."""
        return stats_of(
            self._scheduler,
            self._store.counts(),
            pid=os.getpid(),
            epoch=self._store.epoch,
            store=self.settings.store,
            uptime_s=time.monotonic() - self._started,
            turns=self._loop.turns,
            cpu_s=time.process_time(),
            notices=(*self._store.notices, *(self._node.prepared.notices if self._node.prepared else ())),
        )

    def stop(self, grace_s: float | None, *, why: str = "") -> None:
        """Begin no more; kill after the grace."""
        self._desk.refusal = wire.Refused(0, "pool_stopped", why or "the pool is stopping")
        self._store.announce_end()
        self._node.stopping()
        self._loop.deliver(ev.StopAsked(grace_s))
        if grace_s is not None:
            self._loop.give_up_after(grace_s + GIVE_UP_S)
        self._poller.wake()

    def _deliver(self, event: ev.Event | Wish) -> None:
        """Take an event of the engine. That no worker can be started is told at once: nothing else may ever happen.

        Not when the handlers' modules are the reason: that has been told, and ends the pool.
        """
        if isinstance(event, Wish):
            self._spawning.take(event)
            return
        told = self._failure is not None or time.monotonic() - self._told_failure_at <= TELL_FAILURE_S
        if type(event) is ev.WorkerFailed and not told:
            self._told_failure_at = time.monotonic()
            self._warn(f"a worker could not be started, and will be tried again: {event.error}")
        self._loop.deliver(event)

    def _end_when_idle(self) -> None:
        """After a turn: `serve --once` has done what was to be done."""
        if self.ends_when_idle and self._node.prepared is not None and not self._scheduler.stopping and self._loop.is_idle:
            self._log("nothing is due any more")
            self.stop(None, why="all that was due has been done")

    def _on_hello(self, connection: Connection) -> None:
        """Welcome a client once the handlers are loaded, so that their import errors are told at once."""
        if self._node.prepared is None:
            self._hellos.append(connection)
            return
        self._welcome(connection)

    def _welcome(self, connection: Connection) -> None:
        prepared = self._node.prepared
        assert prepared is not None
        if prepared.error:
            words = f"a module with handlers cannot be imported:\n{prepared.error.rstrip()}"
            self._server.send(connection.number, wire.Refused(0, prepared.error_code or "invalid_handler", words))
            return
        notices = [*self._store.notices, *prepared.notices]
        place = (self.settings.store, self._store.epoch, self.settings.workers)
        self._server.send(connection.number, wire.Welcome(wire.PROTOCOL, os.getpid(), *place, notices, prepared.said))

    def _on_prepared(self, prepared: Prepared) -> None:
        self._desk.directory.learn(prepared.infos)  # once more when the zygote had to be started anew
        if not self.fails_unknown and not prepared.late:
            known = {name for info in prepared.infos for name in (info.name, *info.aliases)}
            self._loop.deliver(ev.HandlersKnown(sorted(known)))
        hellos, self._hellos = self._hellos, []
        for connection in hellos:
            self._welcome(connection)
        if prepared.error:
            self._failure = TaskpoolError(f"a module with handlers cannot be imported:\n{prepared.error.rstrip()}")
            self._log(self._failure.message)
            self.stop(0.0, why="a module with handlers cannot be imported")
        else:
            self.on_ready(prepared)

    def _on_gone(self, connection: Connection) -> None:
        self._desk.forget(connection.number)
        if connection is self._owner:
            self._owner_gone()

    def _watch_owner(self, pid: int) -> None:
        """A child that the script forked may keep the socket open; the pidfd cannot be kept by anybody."""
        try:
            self._owner_fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._owner_gone()
            return
        self._poller.add(self._owner_fd, lambda events: self._owner_gone())

    def _owner_gone(self) -> None:
        if getattr(self, "_owner_fd", -1) >= 0:
            self._poller.remove(self._owner_fd)
            os.close(self._owner_fd)
            self._owner_fd = -1
        drain = self.settings.on_owner_death == "drain"
        self.stop(self.settings.owner_grace_s if drain else 0.0, why="the pool's owner has gone")

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1
        self._log("stopping: running tasks may end" if self._signals == 1 else "stopping now")
        self.stop(self.settings.drain_grace_s if self._signals == 1 else 0.0)

    def _on_checked(self, events: int) -> None:
        """The helper that checks the file after an unclean stop has closed its output: it is about to end."""
        assert self._check is not None
        self._poller.remove(self._check.fileno())
        problem = self._check.wait(5.0)
        if problem:
            self._fail(problem)

    def _on_vanished(self, path: Path) -> None:
        self._fail(f"{path} was removed, moved or replaced while it was in use: what is not in it any more is lost")

    def _fail(self, problem: str) -> None:
        """Stop at once, and tell everybody why."""
        self._failure = TaskpoolError(problem)
        self._log(problem)
        self.stop(0.0, why=problem)


def _receive_boot(sock: socket.socket) -> Boot:
    """Read exactly the first frame: what follows it belongs to the client that the script will be."""

    def exactly(size: int) -> bytes:
        data = sock.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            sys.exit(0)  # the script died before it had said what it wants
        return data

    return msgspec.msgpack.decode(exactly(int.from_bytes(exactly(4), "little")), type=Boot)


def _refuse(sock: socket.socket, error: TaskpoolError) -> None:
    FrameWriter(sock).send(wire.encoder.encode(refusal(0, error)))
    sock.close()
