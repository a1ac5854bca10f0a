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

from taskpool import faults
from taskpool.clock import NS
from taskpool.core.events import Passed, Reported, Saved, TakenBack, WorkerDied, WorkerFailed, WorkerReady
from taskpool.engines import deaths, linux, records, sweep
from taskpool.engines.engine import Deliver, Limits
from taskpool.engines.killer import Killer
from taskpool.engines.launch import Launched
from taskpool.engines.link import Link
from taskpool.engines.nursery import Nursery
from taskpool.engines.orphans import Orphans
from taskpool.model import Progress
from taskpool.wire import barrier
from taskpool.wire.frames import Closed
from taskpool.wire.messages import Checkpointed, Forked, Job, Prepare, Prepared, Report, encoder
from taskpool.wire.page import CURRENT, HEAD, LIMIT, NO_LIMIT, PROGRESS_SEQ, SEEN_AT, STARTED, STOPPING, TAIL, boot_word
from taskpool.wire.poller import GONE, IN, OUT, Poller

MAILBOX_MAX = 256
FRAME_PAYLOAD_BYTES = 16 << 20  # jobs of one frame, beyond the first
BOOT_NS = 60 * NS  # from the fork to readiness
SWEEP_NS = NS  # from the end of an attempt to the look at what it left behind
OUTPUT_PAUSE_NS = NS // 50  # between two looks at a worker that prints little and often
OUTPUT_FLOOD_BYTES = 32 * 1024  # more than that in one look: no pause
NEWS_BYTES_MAX = 4 << 20  # of output that nobody has asked for yet
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
        zygote: Launched | None = None,
    ) -> None:
        """zygote: one with that mark that was launched already, so that it could begin early."""
        self.mailbox_limit = MAILBOX_MAX if barrier.available() else 1
        self.prepared: Prepared | None = None
        self._run_dir = os.path.join(os.fspath(run_dir), f"e{epoch}")
        self._epoch = epoch
        self._boot = boot_word()
        self._nursery = Nursery(prepare, mark, python, dict(os.environ) if env is None else env, zygote)
        self._killer = Killer(self._killer_failed)
        self._failure: BaseException | None = None
        self._links: dict[int, Link] = {}
        self._pids: dict[int, Link] = {}
        self._rang: list[Link] = []
        self._printed: list[Link] = []
        self._paused: list[Link] = []
        self._dying: list[Link] = []
        self._nudged: deque[Link] = deque()  # from the killer's thread
        self._read: dict[Link, None] = {}  # links whose ring was read since the last mark
        self._spills: list[str] = []
        self._buried: list[Link] = []
        self._at_mark: deque[tuple[int, list[tuple[Link, int]], list[str], list[Link]]] = deque()
        self._mark_count = 0
        self._news: deque[tuple[int, bytes]] = deque()
        self._news_bytes = 0
        self._ended = False  # some attempt has ended since the last sweep
        self._due: dict[str, int] = {}  # what the timer is set for
        self._is_stopping = 0
        self._started = False

    def start(self, poller: Poller, deliver: Deliver, on_prepared: Callable[[Prepared], None] | None = None) -> None:
        """Start zygote and killer. OSError if that cannot be."""
        self._poller = poller
        self._deliver = deliver
        self._on_prepared = on_prepared
        os.makedirs(self._run_dir, mode=0o700, exist_ok=True)
        linux.become_subreaper()
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._orphans = Orphans(poller)
        self._timer = linux.Timer(time.CLOCK_MONOTONIC)
        poller.add(self._timer.fd, lambda events: None)  # `collect` looks at what is due
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
        self._poller.add(link.output.fd, partial(self._on_output, link))
        refused = self._nursery.fork(worker_id, link.given)
        if refused is not None:
            self._on_forked(refused)
        self._close_given()
        self._after("boot", BOOT_NS)

    def send(self, worker_id: int, jobs: Sequence[Job], limits: Sequence[Limits] = ()) -> None:
        """Hand jobs to a worker, in order, and watch their limits."""
        link = self._links.get(worker_id)
        if link is None or not jobs:
            return
        sent = link.sent
        for job in jobs:
            sent[job.n] = job.task_id
        link.last_n = jobs[-1].n
        if limits:
            self._killer.arm(link.watch, limits)
        try:
            all_sent = True
            for batch in _batches(jobs):
                all_sent = link.writer.send(encoder.encode(batch))
        except Closed:
            return  # its death is on the way
        if not all_sent:
            self._poller.modify(link.conn.fileno(), IN | OUT)

    def take_back(self, worker_id: int, above: int, running_ns: int = 0) -> None:
        """Forbid the jobs above that number, and tell which will not begin; running_ns: unless the worker gets on by itself."""
        link = self._links.get(worker_id)
        if link is None or (running_ns and self._gets_on(link, running_ns)):
            return
        if self.mailbox_limit == 1:
            self._deliver(TakenBack(worker_id, link.last_n))
            return
        with self._killer.lock:
            link.limit(above)
        barrier.everywhere()
        current = link.page.words[CURRENT]
        barrier.everywhere()  # if a body has ended by now, its record is in the ring, for this to see:
        self._read_ring(link)
        if link.page.words[LIMIT] == NO_LIMIT:
            return  # that was quick: all was passed over, told, and allowed again
        above = max(above, current, link.done_n)
        if link.taken_above is not None:
            above = min(above, link.taken_above)  # what was given back once is never begun
        self._deliver(TakenBack(worker_id, above))
        if above < link.last_n:
            link.taken_above = above
        else:
            self._allow(link)

    def _gets_on(self, link: Link, running_ns: int) -> bool:
        """Whether a worker has ended a body that was not heard of yet, or has not been in this one for so long."""
        heard = link.done_n
        self._read_ring(link)
        words = link.page.words
        return link.done_n != heard or (words[CURRENT] != 0 and time.monotonic_ns() - words[STARTED] < running_ns)

    def _allow(self, link: Link) -> None:
        """All that was forbidden is passed over, or there was none of it: the worker takes work again."""
        link.taken_above = None
        with self._killer.lock:
            link.unlimit()
        self._deliver(Passed(link.worker_id, link.last_n))

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
        if events & OUT:
            try:
                if link.writer.flush():
                    self._poller.modify(link.conn.fileno(), IN)
            except Closed:
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

    def _on_output(self, link: Link, events: int) -> None:
        self._printed.append(link)

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
        due = self._take_due()
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
                    self._read_ring(link)
        if self._printed or "output" in due:
            self._drain("output" in due)
        while self._nudged:
            self._give_back(self._nudged.popleft())
        for link in dying:
            self._bury(link)
        if candidates is not None:
            self._sweep(candidates, workers="sweep" in due)
        if "boot" in due:
            self._check_boots()
        return self._set_mark()

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
            self._after("sweep", 0)
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
        self._read_ring(link)

    # ---- rings ------------------------------------------------------------------------------------------------------

    def _read_ring(self, link: Link) -> None:
        words = link.page.words
        if words[HEAD] == link.ring.position:
            return
        words[SEEN_AT] = time.monotonic_ns()
        found, problem = records.read(link.ring, self._run_dir, self._spills)
        faults.point("result.read")
        self._read[link] = None
        reports: list[Report] = []
        outputs: dict[int, str] = {}
        passed = False
        for record in found:
            if type(record) is Report:
                if record.n not in link.sent:
                    problem = problem or f"it reported job {record.n}, which it does not have"
                    break
                reports.append(record)
                if record.output_end > link.output.claimed:
                    outputs[record.n] = self._claim(link, record)
                del link.sent[record.n]
                link.done_n = record.n
                link.cpu_us[0] += record.cpu_user_us
                link.cpu_us[1] += record.cpu_system_us
            elif type(record) is Checkpointed:
                self._deliver_reports(link, reports, outputs)
                reports, outputs = [], {}
                self._deliver(Saved(link.worker_id, record))
            else:
                self._deliver_reports(link, reports, outputs)
                reports, outputs = [], {}
                passed = self._pass(link, record.n)
        self._deliver_reports(link, reports, outputs)
        if passed:
            self._allow(link)
        if problem:
            self._distrust(link, problem)

    def _pass(self, link: Link, n: int) -> bool:
        """The worker passed over a job; return whether it was the last."""
        link.sent.pop(n, None)
        if link.watch.busy:
            self._killer.disarm(link.watch, [n])
        if link.taken_above is None or n <= link.taken_above:  # the killer forbade it, and nobody has given it back yet
            link.taken_above = n - 1
            self._deliver(TakenBack(link.worker_id, n - 1))
        return n == link.last_n

    def _deliver_reports(self, link: Link, reports: list[Report], outputs: dict[int, str]) -> None:
        if not reports:
            return
        if link.watch.busy:
            self._killer.disarm(link.watch, [report.n for report in reports])
        self._deliver(Reported(link.worker_id, link.pid, reports, outputs))
        if not self._ended:
            self._ended = True
            self._after("sweep", SWEEP_NS)

    def _claim(self, link: Link, report: Report) -> str:
        text, untold = link.output.take(report.output_end)
        self._tell(report.task_id, untold)
        return text

    def _distrust(self, link: Link, problem: str) -> None:
        """A worker whose words cannot be read is of no further use; it dies like one that crashed."""
        link.fault = link.fault or problem
        with self._killer.lock:
            link.strike(0, "")

    def _give_back(self, link: Link) -> None:
        """The killer forbade what comes after a job that ended just then by itself."""
        link.limit_left = False
        if link.reaped or link.taken_above is not None:
            return
        limit = link.page.words[LIMIT]
        if limit != NO_LIMIT:
            self.take_back(link.worker_id, limit)

    # ---- output -----------------------------------------------------------------------------------------------------

    def _drain(self, resume: bool) -> None:
        if resume:
            for link in self._paused:
                if link.output.fd >= 0 and not link.output.has_ended():
                    self._printed.append(link)
                    self._poller.modify(link.output.fd, IN)
            self._paused = []
        printed, self._printed = self._printed, []
        for link in printed:
            if link.output.fd < 0 or link.output.has_ended():
                continue
            size = link.output.drain()
            if link.output.has_ended():
                self._poller.remove(link.output.fd)
            elif 0 < size < OUTPUT_FLOOD_BYTES:
                # It prints little and perhaps often: let some gather, instead of waking at each line.
                self._poller.modify(link.output.fd, 0)
                self._paused.append(link)
                self._after("output", OUTPUT_PAUSE_NS)

    def _tell(self, task_id: int, data: bytes) -> None:
        if data:
            self._news.append((task_id, data))
            self._news_bytes += len(data)
            while self._news_bytes > NEWS_BYTES_MAX:
                self._news_bytes -= len(self._news.popleft()[1])

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
            self._after("reap", NS // 1000)
            return
        self._killer.forget(link.watch)
        self._read_ring(link)
        link.output.drain()
        begun, task_id, _ = link.page.current()
        if begun not in link.sent:
            begun = 0
        output, untold = link.output.take()
        self._tell(task_id, untold)
        self._deliver(self._death(link, status, usage, begun, output))
        del self._links[link.worker_id], self._pids[link.pid]
        self._poller.remove(link.conn.fileno())
        self._poller.remove(link.output.fd)
        link.close()
        self._buried.append(link)

    def _death(self, link: Link, status: int, usage: deaths.Usage, begun: int, output: str) -> WorkerDied:
        if not link.ready and not link.why and not link.fault:
            link.fault = f"it died before it was ready: {(output.strip() or 'it said nothing').splitlines()[-1]}"
        began_ns = link.page.words[STARTED] if begun else 0
        lasted_s = (time.monotonic_ns() - began_ns) / NS if begun else 0.0
        stack = deaths.without_ours(link.stack()) if begun or not link.why else ""
        error = deaths.error_of(
            status,
            usage,
            why=link.why,
            fault=link.fault,
            lasted_s=lasted_s,
            limits=link.watch.limits(begun),
            stack=stack,
            output=output,
        )
        user, system = round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6)
        return WorkerDied(
            link.worker_id,
            link.pid,
            begun,
            began_ns,
            link.why,
            error,
            stack,
            output,
            max(0, user - link.cpu_us[0]) if begun else 0,
            max(0, system - link.cpu_us[1]) if begun else 0,
        )

    def _check_boots(self) -> None:
        """A worker that does not become ready dies."""
        now = time.monotonic_ns()
        for link in self._links.values():
            if not link.ready and now - link.asked_mono >= BOOT_NS:
                with self._killer.lock:
                    link.fault = "it did not become ready in time"
                    link.strike(0, "")
            elif not link.ready:
                self._after("boot", link.asked_mono + BOOT_NS - now)

    def _sweep(self, candidates: list[int], *, workers: bool) -> None:
        self._orphans.sweep(candidates, lambda pid: pid in self._pids or pid == self._nursery.pid)
        if workers:
            self._ended = False
            for link in self._links.values():
                if link.ready:
                    self._orphans.sweep_worker(link)
        if self._orphans.again:
            self._orphans.again = False
            self._after("sweep", SWEEP_NS // 2)
        if self._orphans.reaped:
            self._after("orphans", 0)

    # ---- marks ------------------------------------------------------------------------------------------------------

    def _set_mark(self) -> int:
        """Note how far the rings were read: what is read later, within the turn, belongs to the next mark."""
        self._mark_count += 1
        if self._read or self._buried or self._spills:
            positions = [(link, link.ring.position) for link in self._read]
            self._at_mark.append((self._mark_count, positions, self._spills, self._buried))
            self._read, self._spills, self._buried = {}, [], []
        return self._mark_count

    def committed(self, mark: int | None = None) -> None:
        """All delivered up to that mark (None: the latest) is stored: forget the records that it came from."""
        while self._at_mark and (mark is None or self._at_mark[0][0] <= mark):
            _, positions, spills, buried = self._at_mark.popleft()
            for link, position in positions:
                if not link.page.map.closed:
                    link.page.words[TAIL] = position
            for path in spills:
                records.unlink(path)
            for link in buried:
                link.remove_page()

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
        found = list(self._news)
        self._news.clear()
        self._news_bytes = 0
        for link in self._links.values():
            _, task_id, _ = link.page.current()
            if task_id:
                data = link.output.news()
                if data:
                    found.append((task_id, data))
        return found

    def pids(self) -> dict[int, int]:
        """Return worker id → pid of all that live."""
        return {link.worker_id: link.pid for link in self._links.values() if link.pid}

    def current(self, worker_id: int) -> tuple[int, int]:
        """Return (n, task id) of the body that runs, or (0, 0)."""
        link = self._links.get(worker_id)
        return link.page.current()[:2] if link is not None else (0, 0)

    # ---- time -------------------------------------------------------------------------------------------------------

    def _after(self, what: str, ns: int) -> None:
        """Have `collect` find that due after so many ns, unless it is due before."""
        at = time.monotonic_ns() + ns
        if what not in self._due or at < self._due[what]:
            self._due[what] = at
            self._timer.sooner(at)

    def _take_due(self) -> set[str]:
        """Return what is due, and set the timer for the rest."""
        now = time.monotonic_ns()
        if self._timer.at is None or self._timer.at > now:
            return set()
        self._timer.clear()
        due = {what for what, at in self._due.items() if at <= now}
        for what in due:
            del self._due[what]
        if self._due:
            self._timer.set(min(self._due.values()))
        return due

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
        self._poller.remove(self._timer.fd)
        self._timer.close()
        self._leave_run_dir()

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

    def _leave_run_dir(self) -> None:
        """Remove the pages that hold nothing which is not stored, and the directory if nothing is left in it."""
        buried = [*self._buried, *(link for _, _, _, links in self._at_mark for link in links)]
        for link in buried:
            words = link.page.words
            if words[CURRENT] or words[TAIL] != words[HEAD]:
                link.page.close()
            else:
                link.remove_page()
        self._buried, self._at_mark = [], deque()
        try:
            os.rmdir(self._run_dir)
        except OSError:
            pass


def _batches(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Cut jobs into frames of a limited size; nearly always one."""
    size = 0
    batches: list[Sequence[Job]] = []
    start = 0
    for index, job in enumerate(jobs):
        size += len(job.payload)
        if size > FRAME_PAYLOAD_BYTES and index > start:
            batches.append(jobs[start:index])
            start, size = index, len(job.payload)
    batches.append(jobs[start:])
    return batches
