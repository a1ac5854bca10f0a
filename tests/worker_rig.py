"""Plays the engine for one real worker process: makes its page, socket, pipe and memfd, forks it, sends jobs, reads its ring."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from taskpool.model import Options
from taskpool.wire import barrier
from taskpool.wire.codec import decode_result, encode_call
from taskpool.wire.description import describe
from taskpool.wire.jobs import Checkpointed, Job, Record, Report, Skipped, Spilled, record_decoder
from taskpool.wire.page import CANCEL, CANCEL_KIND, CURRENT, LIMIT, NO_LIMIT, OUTPUT_BUSY, OUTPUT_READ, Page, RingReader, load_spill
from taskpool.worker.interrupt import INTERRUPT_SIGNAL
from taskpool.worker.main import main

PATIENCE_S = 30.0


class Rig:
    """One worker. jobs are numbered from 1; task ids are 100 + number."""

    def __init__(self, directory: Path, worker: int = 1, prepare: Callable[[], object] | None = None) -> None:
        self.page = Page.create(directory / f"w{worker}.page", worker=worker)
        self.ring = RingReader(self.page)
        self.conn, theirs = socket.socketpair()
        output, output_end = os.pipe()
        self.output_fd = output
        self.stacks = os.memfd_create("stacks")
        self.n = 0
        self.output = bytearray()
        self.records: list[Record] = []
        self.bells = 0
        self.draining = True
        me = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.conn.close()
                os.close(output)
                if prepare is not None:
                    prepare()
                main(worker, theirs.detach(), self.page.fd, self.stacks, output_end, me)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        theirs.close()
        os.close(output_end)
        self.poll = select.poll()
        self.poll.register(self.conn, select.POLLIN)
        self.poll.register(self.output_fd, select.POLLIN)

    # ---- sending ----------------------------------------------------------------------------------------------------

    def job(self, fn: Callable[..., Any], *args: Any, options: Options | None = None, **kwargs: Any) -> Job:
        name, codec, payload = encode_call(fn, args, kwargs)
        packed = b"" if options is None else msgspec.msgpack.encode(options)
        self.n += 1
        return Job(self.n, 100 + self.n, 1, name, codec, payload, packed)

    def send(self, *jobs: Job) -> None:
        body = msgspec.msgpack.encode(jobs)
        self.conn.sendall(struct.pack("<I", len(body)) + body)

    def run(self, fn: Callable[..., Any], *args: Any, options: Options | None = None, **kwargs: Any) -> Report:
        """Send one call and wait for its report."""
        job = self.job(fn, *args, options=options, **kwargs)
        self.send(job)
        return self.report(job.n)

    def value(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a call returns there."""
        report = self.run(fn, *args, **kwargs)
        assert report.error is None, report.error
        described = describe(fn)
        return decode_result(report.codec, report.value, described if described.registered else None)

    def interrupt(self, n: int, kind: int = 1, times: int = 1) -> None:
        words = self.page.words
        words[CANCEL_KIND] = kind
        words[CANCEL] = n
        for _ in range(times):
            os.kill(self.pid, INTERRUPT_SIGNAL)

    def take_back(self, above: int) -> int:
        """Forbid jobs above that number; return the number above which none will begin."""
        self.page.words[LIMIT] = above
        barrier.everywhere()
        return max(above, self.page.words[CURRENT])

    def allow(self) -> None:
        self.page.words[LIMIT] = NO_LIMIT

    # ---- receiving --------------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool]) -> None:
        """Receive whatever comes until `done`; fail when it takes too long."""
        give_up = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < give_up, f"waited in vain; last records {self.records[-3:]}, output {self.output[-500:]!r}"
            if self.pid and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self.pump()
                assert done(), f"the worker ended: {self.wait()}, output {self.output[-500:]!r}, stack {self.stack()}"
                return
            self.pump(0.05)

    def pump(self, seconds: float = 0.0) -> None:
        for fd, _ in self.poll.poll(seconds * 1000):
            if fd == self.output_fd:
                if self.draining:
                    self.drain()
                else:
                    self.poll.unregister(self.output_fd)
            else:
                data = self.conn.recv(4096)
                self.bells += len(data)
                if not data:
                    self.poll.unregister(self.conn)
        self.collect()

    def drain(self) -> None:
        words = self.page.words
        read = words[OUTPUT_READ]
        words[OUTPUT_READ] = read | OUTPUT_BUSY
        data = os.read(self.output_fd, 65536)
        words[OUTPUT_READ] = read + len(data)
        self.output += data
        if not data:
            self.poll.unregister(self.output_fd)

    def collect(self) -> None:
        for data in self.ring.read():
            record = record_decoder.decode(data)
            if isinstance(record, Spilled):
                path = Path(self.page.run_dir) / record.name
                record = record_decoder.decode(load_spill(self.page.run_dir, record, 32 << 20))
                path.unlink()
            self.records.append(record)
        assert not self.ring.damaged, self.ring.damaged
        self.ring.release()

    def report(self, n: int) -> Report:
        self.until(lambda: any(isinstance(r, Report) and r.n == n for r in self.records))
        return next(r for r in self.records if isinstance(r, Report) and r.n == n)

    def of(self, kind: type[Report] | type[Skipped] | type[Checkpointed]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    def printed(self, n: int) -> bytes:
        """Return what job n printed, by the offsets in the reports."""
        end = self.report(n).output_end
        start = max((r.output_end for r in self.of(Report) if r.n < n), default=0)
        self.until(lambda: len(self.output) >= end)
        return bytes(self.output[start:end])

    def begun(self, n: int) -> None:
        """Wait until the body of job n has begun."""
        self.until(lambda: self.page.current()[0] == n)

    # ---- ending -----------------------------------------------------------------------------------------------------

    def wait(self) -> int:
        """Wait for the process to end; return its exit code (negative: a signal)."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < give_up, "the worker does not end"
            self.pump(0.01)

    def stack(self) -> str:
        """Return what faulthandler wrote."""
        return os.pread(self.stacks, 1 << 20, 0).decode()

    def stop(self) -> None:
        """End the worker if it lives, and free all that was made for it."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self.conn.close()
        os.close(self.output_fd)
        os.close(self.stacks)
        self.page.close()
