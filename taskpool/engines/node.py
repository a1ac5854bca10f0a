"""The node core: runs the workers of one machine.

It owns the zygote, the workers' sockets and pages, the killer's thread, and every process that descends from them. The poller's
callbacks only note who called; `collect` then reads, in the order of things: newborn workers, rings, output, deaths, orphans.
Whatever a worker reported before it died is delivered before its death.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from taskpool.clock import NS
from taskpool.core.events import TakenBack, WorkerFailed, WorkerReady
from taskpool.engines import burial, deaths, linux, sweep
from taskpool.engines.agenda import Agenda
from taskpool.engines.engine import Deliver, Limits
from taskpool.engines.intake import Intake
from taskpool.engines.killer import Killer
from taskpool.engines.link import Link
from taskpool.engines.listener import Listener
from taskpool.engines.marks import Marks
from taskpool.engines.nursery import Nursery
from taskpool.engines.orphans import Orphans
from taskpool.model import Progress
from taskpool.wire import barrier
from taskpool.wire.jobs import ChildAnswered, Job
from taskpool.wire.page import PROGRESS_SEQ, STOPPING, boot_word
from taskpool.wire.poller import GONE, IN, OUT, Poller
from taskpool.wire.zygote import Forked, Prepare, Prepared

MAILBOX_MAX = 256
BOOT_NS = 60 * NS  # from the fork to readiness
SWEEP_NS = NS  # from the end of an attempt to the look at what it left behind
STOP_S = 5.0  # how long `stop` waits for killed processes, which is longer than any but a broken disk or driver takes
SWITCH_S = 0.001  # how long the loop may keep the killer's thread from the interpreter


class Node:
    """An Engine on this machine. run_dir: where pages go; mark: names the owner in the environment of all that is started."""

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        epoch: int,
        mark: str,
        *,
        prepare: Prepare,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        """nursery: one with that mark and prepare that was started already, so that it could begin early."""
        self.mailbox_limit = MAILBOX_MAX if barrier.available() else 1
        self.prepared: Prepared | None = None
        self._run_dir = os.path.join(os.fspath(run_dir), f"e{epoch}")
        self._epoch = epoch
        self._boot = boot_word()
        self._nursery = nursery or Nursery(prepare, mark, python, env)
        self._killer = Killer(self._killer_failed)
        self._failure: BaseException | None = None
        self._links: dict[int, Link] = {}
        self._pids: dict[int, Link] = {}
        self._rang: list[Link] = []
        self._dying: list[Link] = []
        self._nudged: deque[Link] = deque()  # from the killer's thread
        self._marks = Marks()
        self._ended = False  # some attempt has ended since the last sweep
        self._is_stopping = 0
        self._started = False

    def start(self, poller: Poller, deliver: Deliver, on_prepared: Callable[[Prepared], None] | None = None) -> None:
        """Start zygote and killer. OSError if that cannot be."""
        self._poller = poller
        self._deliver = deliver
        self._on_prepared = on_prepared
        os.makedirs(self._run_dir, mode=0o700, exist_ok=True)
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._orphans = Orphans(poller)
        self._agenda = Agenda(poller)
        self._listener = Listener(poller, self._agenda)
        self._intake = Intake(self._run_dir, self._killer, self._marks, self._listener, deliver, self._attempts_ended)
        self._nursery.start(poller)
        self._killer.start()
        self._started = True

    # ---- orders -----------------------------------------------------------------------------------------------------

    def spawn(self, worker_id: int) -> None:
        """Start a worker: WorkerReady or WorkerFailed follows."""
        try:
            link = Link(worker_id, self._run_dir, self._epoch, self._boot, fenced=self.mailbox_limit > 1, nudge=self._nudge)
        except OSError as error:
            self._deliver(WorkerFailed(worker_id, f"no descriptors or no room for a worker: {error}"))
            return
        link.page.words[STOPPING] = self._is_stopping
        self._links[worker_id] = link
        self._poller.add(link.conn.fileno(), partial(self._on_conn, link))
        self._poller.add(link.output.fd, lambda events: self._listener.printed(link))
        refused = self._nursery.fork(worker_id, link.given)
        if refused is not None:
            self._on_forked(refused)
        self._close_given()
        self._agenda.after("boot", BOOT_NS)

    def send(self, worker_id: int, jobs: Sequence[Job], limits: Sequence[Limits] = ()) -> None:
        """Hand jobs to a worker, in order, and watch their limits."""
        link = self._links.get(worker_id)
        if link is None or not jobs:
            return
        if limits:
            self._killer.arm(link.watch, limits)
        if not link.send(jobs):
            self._poller.modify(link.conn.fileno(), IN | OUT)

    def answer(self, worker_id: int, answer: ChildAnswered) -> None:
        """Answer a Wish of a worker's."""
        link = self._links.get(worker_id)
        if link is not None and not link.answer(answer):
            self._poller.modify(link.conn.fileno(), IN | OUT)

    def take_back(self, worker_id: int, above: int, running_ns: int = 0) -> None:
        """Forbid the jobs above that number, and tell which will not begin; running_ns: unless the worker gets on by itself."""
        link = self._links.get(worker_id)
        if link is None or (running_ns and self._intake.gets_on(link, running_ns)):
            return
        if self.mailbox_limit == 1:
            self._deliver(TakenBack(worker_id, link.last_n))
        else:
            self._intake.take_back(link, above)

    def signal(self, worker_id: int, n: int, grace_s: float, why: str = "cancel") -> None:
        """Raise Cancelled in job n, again and again; kill after grace_s."""
        link = self._links.get(worker_id)
        if link is not None and n in link.sent:
            self._killer.cancel(link.watch, n, grace_s, why)

    def kill(self, worker_id: int, n: int, why: str) -> None:
        """Kill the worker and all it started, if it runs job n (0: whatever it does)."""
        link = self._links.get(worker_id)
        if link is None:
            return
        if n:
            if n in link.sent:
                self._killer.kill(link.watch, n, why)
            return
        with self._killer.lock:
            link.strike(0, why)

    def stopping(self) -> None:
        """Let every handler see that the pool is going to stop."""
        self._is_stopping = 1
        for link in self._links.values():
            link.page.words[STOPPING] = 1

    # ---- what the poller tells --------------------------------------------------------------------------------------

    def _on_conn(self, link: Link, events: int) -> None:
        if events & OUT and link.send_rest():
            self._poller.modify(link.conn.fileno(), IN)
        if events & (IN | GONE):
            try:
                data = link.conn.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._poller.remove(link.conn.fileno())  # its pidfd tells the rest
            link.woke = link.woke or bool(data)
            if not link.rang:
                link.rang = True
                self._rang.append(link)

    def _on_death(self, link: Link, events: int) -> None:
        self._poller.remove(link.pidfd)
        self._dying.append(link)

    def _nudge(self, link: Link) -> None:
        self._nudged.append(link)
        self._poller.wake()

    def _killer_failed(self, error: BaseException) -> None:
        self._failure = error
        self._poller.wake()

    # ---- one turn ---------------------------------------------------------------------------------------------------

    def collect(self) -> int:
        """Deliver what has come. Return a mark for `committed`."""
        if self._failure is not None:
            raise RuntimeError("the killer's thread failed") from self._failure
        due = self._agenda.take()
        dying, self._dying = self._dying, []
        # Children are listed before the newborn are learned of, so that none of these is taken for an orphan.
        candidates = self._orphans.candidates() if dying or "sweep" in due or self._orphans.reaped else None
        if self._nursery.spoke or candidates is not None:
            self._hear_nursery()
        if self._rang:
            rang, self._rang = self._rang, []
            for link in rang:
                link.rang = False
                self._attend(link)
            for link in tuple(self._links.values()):  # one turn for all: those that have not rung yet need not any more
                if link.ready and not link.reaped:
                    self._intake.read(link)
        self._listener.drain(resume=Listener.DUE in due)
        while self._nudged:
            self._intake.give_back(self._nudged.popleft())
        for link in dying:
            self._bury(link)
        if candidates is not None:
            self._sweep(candidates, workers="sweep" in due)
        if "boot" in due:
            self._check_boots()
        return self._marks.set()

    def _hear_nursery(self) -> None:
        for message in self._nursery.messages():
            if isinstance(message, Forked):
                self._on_forked(message)
            else:
                self.prepared = message
                if self._on_prepared is not None:
                    self._on_prepared(message)
        self._close_given()
        for worker_id in self._nursery.lost():
            self._drop(self._links[worker_id])
            self.spawn(worker_id)

    def _close_given(self) -> None:
        for worker_id in self._nursery.handed_over():
            link = self._links.get(worker_id)
            if link is not None:
                link.handed_over()

    def _on_forked(self, forked: Forked) -> None:
        link = self._links.get(forked.worker_id)
        if link is None:
            return
        if not forked.pid:
            self._drop(link)
            self._deliver(WorkerFailed(forked.worker_id, forked.error))
            return
        link.handed_over()
        try:
            with self._killer.lock:
                link.born(forked.pid)
        except OSError as error:  # the end of its link ends it; it is reaped as an orphan
            self._drop(link)
            self._orphans.again = True
            self._agenda.after("sweep", 0)
            self._deliver(WorkerFailed(forked.worker_id, f"no descriptor for a worker: {error}"))
            return
        self._pids[forked.pid] = link
        self._poller.add(link.pidfd, partial(self._on_death, link))
        self._attend(link)

    def _drop(self, link: Link) -> None:
        """Forget a worker that never lived."""
        link.reaped = True
        del self._links[link.worker_id]
        self._poller.remove(link.conn.fileno())
        self._poller.remove(link.output.fd)
        link.close()
        link.remove_page()

    def _attend(self, link: Link) -> None:
        if link.reaped:
            return
        if link.woke and not link.ready and link.pid:
            link.became_ready()
            self._deliver(WorkerReady(link.worker_id, link.pid))
        self._intake.read(link)

    # ---- deaths -----------------------------------------------------------------------------------------------------

    def _bury(self, link: Link) -> None:
        """Reap it, read all it left, and tell of its death."""
        usage: deaths.Usage | None
        with self._killer.lock:
            try:
                pid, status, usage = os.wait4(link.pid, os.WNOHANG)
                link.reaped = pid != 0
            except ChildProcessError:
                status, usage = 0, None  # the process between it and us has not ended yet
        if usage is None or not link.reaped:
            self._dying.append(link)
            self._agenda.after("reap", NS // 1000)
            return
        self._killer.forget(link.watch)
        self._intake.read(link)
        link.output.drain()
        begun, task_id, _ = link.page.current()
        output = self._listener.claim(link, task_id, None)
        self._deliver(burial.death(link, status, usage, begun if begun in link.sent else 0, output))
        del self._links[link.worker_id], self._pids[link.pid]
        self._poller.remove(link.conn.fileno())
        self._poller.remove(link.output.fd)
        link.close()
        self._marks.buried(link)

    def _check_boots(self) -> None:
        """A worker that does not become ready dies."""
        now = time.monotonic_ns()
        for link in self._links.values():
            if not link.ready and now - link.asked_mono >= BOOT_NS:
                with self._killer.lock:
                    link.fault = "it did not become ready in time"
                    link.strike(0, "")
            elif not link.ready:
                self._agenda.after("boot", link.asked_mono + BOOT_NS - now)

    def _attempts_ended(self) -> None:
        if not self._ended:
            self._ended = True
            self._agenda.after("sweep", SWEEP_NS)

    def _sweep(self, candidates: list[int], *, workers: bool) -> None:
        self._orphans.sweep(candidates, lambda pid: pid in self._pids or pid == self._nursery.pid)
        if workers:
            self._ended = False
            for link in self._links.values():
                if link.ready:
                    self._orphans.sweep_worker(link)
        if self._orphans.again:
            self._orphans.again = False
            self._agenda.after("sweep", SWEEP_NS // 2)
        if self._orphans.reaped:
            self._agenda.after("orphans", 0)

    def committed(self, mark: int | None = None) -> None:
        """All delivered up to that mark (None: the latest) is stored: forget the records that it came from."""
        self._marks.committed(mark)

    # ---- questions --------------------------------------------------------------------------------------------------

    def progress(self) -> list[tuple[int, Progress]]:
        """Return (task id, progress) where it changed since the last call."""
        found = []
        for link in self._links.values():
            seq = link.page.words[PROGRESS_SEQ]
            if seq == link.progress_seq:
                continue
            told = link.page.progress()
            if told is None:
                continue
            link.progress_seq = seq
            n, progress = told
            if n in link.sent:
                found.append((link.sent[n], Progress(progress.done, progress.total, progress.text, time.time_ns() // 1000)))
        return found

    def output_news(self) -> list[tuple[int, bytes]]:
        """Return (task id, bytes printed) since the last call, in order per task."""
        return self._listener.news(self._links.values())

    def printed(self, task_id: int) -> str:
        """Return the end of what a task that runs has printed so far; "" if it does not run."""
        for link in self._links.values():
            if link.page.current()[1] == task_id:
                return link.output.unclaimed()
        return ""

    def pids(self) -> dict[int, int]:
        """Return worker id → pid of all that live."""
        return {link.worker_id: link.pid for link in self._links.values() if link.pid}

    def current(self, worker_id: int) -> tuple[int, int]:
        """Return (n, task id) of the body that runs, or (0, 0)."""
        link = self._links.get(worker_id)
        return link.page.current()[:2] if link is not None else (0, 0)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float = 0.0) -> None:
        """End all workers, giving idle ones grace_s to leave by themselves. Blocks; leaves no process, descriptor or thread.

        What was reported and not committed stays in the pages, where the next owner finds it. Safe to call twice.
        """
        if not self._started:
            return
        self._started = False
        self._hear_nursery()
        if grace_s > 0:
            self._let_leave(grace_s)
        self._end_workers()
        if not self._nursery.stop():
            sweep.kill_owned([self._nursery.mark])
        self._end_orphans()
        self._killer.stop()
        self._agenda.close()
        self._marks.leave()
        try:
            os.rmdir(self._run_dir)
        except OSError:
            pass  # it holds what the next owner will read

    def _let_leave(self, grace_s: float) -> None:
        idle = [link for link in self._links.values() if link.pid and not link.sent]
        for link in idle:
            link.conn.shutdown(socket.SHUT_WR)
        linux.wait_ended([link.pidfd for link in idle], grace_s)

    def _end_workers(self) -> None:
        """Kill and bury all workers; those that are only asked for end with their zygote."""
        with self._killer.lock:
            for link in self._links.values():
                link.strike(0, "stop")
        alive = [link for link in self._links.values() if link.pid]
        linux.wait_ended([link.pidfd for link in alive], STOP_S)
        until = time.monotonic() + STOP_S
        while self._pids and time.monotonic() < until:
            for link in list(self._pids.values()):
                self._bury(link)
        for link in list(self._links.values()):
            self._drop(link)

    def _end_orphans(self) -> None:
        until = time.monotonic() + STOP_S
        while time.monotonic() < until:
            self._orphans.again = False
            self._orphans.sweep(self._orphans.candidates(), lambda pid: False)
            if self._orphans.wait(0.1) and not self._orphans.reaped and not self._orphans.again:
                break
            if self._orphans.again:
                time.sleep(0.01)
        self._orphans.close()
