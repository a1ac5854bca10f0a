"""One attempt from its job to its report: decode, call, encode. This is what every engine calls.

Whatever a body does short of ending its process, a Report comes out: errors are data.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import msgspec

from taskpool import faults
from taskpool.core.registry import Registry
from taskpool.errors import ArgCountError, ArgTypeError, Cancelled, HandlerNotFound, InvalidPayload, Snooze, SoftTimeout
from taskpool.model import SECONDS_MAX, Codec, Controller, Options, TaskError
from taskpool.wire import references
from taskpool.wire.codec import DecodeError, decode_args, decode_by_value, decode_result, encode_result
from taskpool.wire.description import Description, describe
from taskpool.wire.jobs import CANCELLED, ERROR, OK, SNOOZED, SOFT_TIMEOUT, Checkpointed, Input, Job, Report
from taskpool.wire.page import Page
from taskpool.worker import controller
from taskpool.worker.failure import final_error, formatted, handler_error, message_of
from taskpool.worker.interrupt import call_body

LONG_NS = 1_000_000  # a body of this duration or longer is worth what it costs to measure and to check

_CALL = int(Codec.CALL)
_options_decoder = msgspec.msgpack.Decoder(Options)
_DEFAULTS = Options()
_REFUSALS: dict[type[BaseException], str] = {
    HandlerNotFound: "unknown_handler",
    ArgCountError: "arg_count",
    ArgTypeError: "arg_type",
}
_monotonic_ns = time.monotonic_ns
_getpid = os.getpid


class Around(Protocol):
    """What an attempt needs of the process that it runs in. pid: of that process, as the body may fork."""

    registry: Registry
    pid: int

    def begin(self, job: Job) -> None:
        """Make `controller.current` mean this job."""

    def end(self, report: Report) -> None:
        """Let no controller outlive its attempt, and put what it was told into the report."""

    def controller(self) -> Controller:
        """Return the controller of the running job."""

    def options(self, job: Job) -> Options:
        """Return a job's options."""

    def measure(self, report: Report) -> None:
        """Write what was used of the processor and of memory into the report."""

    def caught(self, error: BaseException) -> None:
        """Look at what ended the body, or kept it from beginning, before that becomes data."""


class Surroundings:
    """What attempts of one worker share.

    registry: where handlers are found; page: where a body's progress goes; save: stores a checkpoint; write: prints a line;
    ask: stores a task.
    """

    def __init__(
        self,
        registry: Registry,
        page: Page,
        save: Callable[[Checkpointed], None],
        write: Callable[[str], None] = print,
        ask: controller.Ask = controller.nobody,
    ) -> None:
        self.registry = registry
        self.page = page
        self.save = save
        self.write = write
        self.ask = ask
        self.pid = os.getpid()
        self._job: Job | None = None
        self._controller: controller.PageController | None = None
        self._options = (b"", _DEFAULTS)
        self._make = self.controller
        self._usage = resource.getrusage(resource.RUSAGE_SELF)

    def begin(self, job: Job) -> None:
        """Make `controller.current` mean this job."""
        self._job = job
        controller.set_current(self._make)

    def end(self, report: Report) -> None:
        """Let no controller outlive its attempt, and put its last progress into the report."""
        controller.set_current(None)
        self._job = None
        if self._controller is not None:
            report.progress = self._controller.close()
            if report.outcome == OK:
                report.effects = self._controller.effects or None
                report.children = self._controller.brood.specs or None
            self._controller = None

    def controller(self) -> Controller:
        """Return the controller of the running job, made on the first call."""
        if self._controller is None:
            assert self._job is not None
            mine = (self._job, self.options(self._job))
            self._controller = controller.PageController(self.page, *mine, self.save, self.write, self.ask)
        return self._controller

    def options(self, job: Job) -> Options:
        """Return a job's options; those of one submit are the same bytes, so the last are kept."""
        if not job.options:
            return _DEFAULTS
        if job.options != self._options[0]:
            self._options = (job.options, _options_decoder.decode(job.options))
        return self._options[1]

    def measure(self, report: Report) -> None:
        """Write what was used of the processor since the last measurement, and the peak memory of the process so far."""
        before, now = self._usage, resource.getrusage(resource.RUSAGE_SELF)
        self._usage = now
        report.cpu_user_us = round((now.ru_utime - before.ru_utime) * 1e6)
        report.cpu_system_us = round((now.ru_stime - before.ru_stime) * 1e6)
        report.peak_rss_kib = now.ru_maxrss

    def caught(self, error: BaseException) -> None:
        """A worker has nobody else to tell."""

    def rest(self) -> None:
        """Forget what was used of the processor until now: it belongs to no attempt."""
        self._usage = resource.getrusage(resource.RUSAGE_SELF)


Loaded = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any], Description | None]


def run_attempt(job: Job, around: Around, began_ns: int, body: Callable[[], Any] | None = None) -> Report:
    """Run one attempt and report on it. began_ns: monotonic begin of it; body: what to run in its place. Raises nothing."""
    report = Report(job.n, job.task_id, job.attempt, OK, began_ns, 0)
    around.begin(job)
    try:
        fn, args, kwargs, description = _load(job, around) if body is None else (body, (), {}, None)
    except BaseException as error:
        around.caught(error)
        _refuse(report, error, around)
    else:
        faults.point("body.before")
        try:
            value = call_body(fn, args, kwargs)
        except BaseException as error:
            report.duration_ns = _monotonic_ns() - began_ns
            if _getpid() != around.pid:
                _leave_fork(error)
            around.caught(error)
            _explain(report, error, around.options(job))
        else:
            report.duration_ns = _monotonic_ns() - began_ns
            if _getpid() != around.pid:
                _leave_fork(None)
            _keep(report, value, description)
        faults.point("result.before")
    if report.duration_ns >= LONG_NS:
        around.measure(report)
    around.end(report)
    return report


def _load(job: Job, around: Around) -> Loaded:
    """Return what to call, with a controller in front if it wants one, and the description unless it came by value."""
    if job.inputs is not None:
        references.give([partial(_input, one, around) for one in job.inputs])
    if job.codec == _CALL:
        fn, args, kwargs = decode_by_value(job.payload)
        if getattr(fn, "__annotations__", None) and describe(fn).wants_controller:
            args = (around.controller(), *args)
        return fn, args, kwargs, None
    description = around.registry.resolve(job.name)
    given, named = decode_args(description, job.codec, job.payload)
    if description.wants_controller:
        given = (around.controller(), *given)
    return description.fn, given, named, description


def _input(one: Input, around: Around) -> Any:
    """Return the result of a parent; None if it did not succeed, which its edge allows then. DecodeError."""
    if one.status not in ("succeeded", "failed", "cancelled", "interrupted"):
        raise DecodeError(f"task {one.id} ({one.name}), whose result is an argument, is {one.status} again")
    description = None
    if one.codec == Codec.MSGPACK:
        try:
            description = around.registry.resolve(one.name)
        except HandlerNotFound as error:
            raise DecodeError(f"the result of task {one.id} cannot be read: {error}") from error
    return decode_result(one.codec, one.value, description)


def _refuse(report: Report, error: BaseException, around: Around) -> None:
    """Report that the call could not be made; nothing of the handler ran, no retry can help."""
    if _getpid() != around.pid:
        _leave_fork(error)
    report.outcome = ERROR
    report.error = final_error(_REFUSALS.get(type(error), "decode"), error)
    report.duration_ns = _monotonic_ns() - report.began_ns


def _explain(report: Report, error: BaseException, options: Options) -> None:
    """Report how the body ended that did not return."""
    kind = type(error)  # not isinstance: a hostile exception answers that by itself
    seconds = _snoozed(error) if issubclass(kind, Snooze) else None
    if seconds is not None:
        report.outcome, report.snooze_s = SNOOZED, seconds
    elif issubclass(kind, Cancelled):
        report.outcome = CANCELLED
        report.error = TaskError("cancelled", message_of(error), retryable=False, traceback=formatted(error))
    elif issubclass(kind, SoftTimeout):
        report.outcome = SOFT_TIMEOUT
        report.error = TaskError("timeout", message_of(error), type_name="taskpool.errors.SoftTimeout", traceback=formatted(error))
    else:
        report.outcome = ERROR
        report.error = handler_error(error, options)


def _snoozed(error: BaseException) -> float | None:
    """Return for how long, if that is a time."""
    try:
        seconds = float(getattr(error, "seconds"))  # noqa: B009  # a subclass may have none
        return seconds if 0 <= seconds <= SECONDS_MAX else None
    except BaseException:
        return None


def _keep(report: Report, value: Any, description: Description | None) -> None:
    """Put the result into the report, or why it cannot be."""
    try:
        report.codec, report.value = encode_result(value, description)
    except InvalidPayload as error:
        report.outcome, report.error = ERROR, final_error("result", error)
    except BaseException as error:  # raised by the value's own methods while it was pickled
        name = type(value).__qualname__
        report.outcome = ERROR
        report.error = final_error("result", error, f"the result, a {name}, cannot be sent: {message_of(error)}")


def _leave_fork(error: BaseException | None) -> NoReturn:
    """End a process that a body forked and that came back from it: only the worker itself may report."""
    status = 0
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            status = 1
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)
