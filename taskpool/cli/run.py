"""`taskpool run TARGET`: a function or a command once per input, as a batch that can be taken up again."""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli import values
from taskpool.cli.documents import error_doc
from taskpool.cli.escape import many_lines, one_line
from taskpool.cli.exits import CliError, Exit, exit_of_task, exit_of_tasks
from taskpool.cli.inputs import Input, Inputs, default_batch, read_inputs
from taskpool.cli.output import console, stream_is_terminal, write
from taskpool.cli.quantity import US, deadline, duration, show_duration
from taskpool.cli.session import Session
from taskpool.cli.shapes import RunLine, RunSummary
from taskpool.cli.verb import Verb, verb
from taskpool.errors import BatchConflict, NoServer, PoolStopped
from taskpool.model import Filter, TaskError

if TYPE_CHECKING:
    from taskpool.cli.joblog import JobLog
    from taskpool.cli.target import Target
    from taskpool.doors.client import Client
    from taskpool.doors.future import TaskFuture

FAILURES_SHOWN = 20
COUNT_MAX = 100  # of --exit-count; more are 101
LABEL_CHARACTERS_MAX = 200
LIVE = ("pending", "queued", "running", "retrying")


class RunVerb(Verb):
    """Takes what follows `--` as the command, before options are looked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the command off."""
        if "--" in args:
            place = args.index("--")
            args, ctx.meta["taskpool.command"] = args[:place], tuple(args[place + 1 :])
        return super().parse_args(ctx, args)


@verb(
    "run",
    cls=RunVerb,
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED],
    examples=[
        ("taskpool run math:factorial 5 6 7", "a function of a module, once per word"),
        ("taskpool run jobs.py:price --csv seeds.csv", "a function of a file; columns are its parameters"),
        (
            "taskpool run --each-line files.txt -- gzip -k {}",
            "a command, as GNU parallel does it; killed, it goes on when run again",
        ),
        ("find . -name '*.png' | taskpool run --stdin -- 'convert {} {.}.webp'", "one word after -- is a line for the shell"),
    ],
)
@click.argument("words", nargs=-1, metavar="TARGET [ARGS]... | [ARGS]... -- CMD {}")
@click.option("--each-line", metavar="FILE", help="One input per line of FILE (-: stdin).")
@click.option("--csv", "csv_file", metavar="FILE", help="One input per row; the header names parameters, or placeholders.")
@click.option("--stdin", is_flag=True, help="One input per line of stdin.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), metavar="N", help="Processes, when no server is there (default: usable CPUs)."
)
@click.option("--batch", metavar="NAME", help="The name under which it can be taken up again (default: made of target and source).")
@click.option("--fresh", is_flag=True, help="Begin the batch anew.")
@click.option("--timeout", type=duration, metavar="DURATION", help="Kill an attempt that takes longer.")
@click.option("--deadline", type=deadline, metavar="WHEN", help="When all must be over: 2h from now, or a time.")
@click.option("--max-attempts", type=click.IntRange(1), metavar="N", help="How often an input may be tried.")
@click.option("--keep-order", is_flag=True, help="Print results in the order of inputs.")
@click.option("--max-fails", type=click.IntRange(1), metavar="N", help="Stop after N failures.")
@click.option("--joblog", metavar="FILE", help="Write a line per input, with GNU parallel's columns.")
@click.option("--exit-count", is_flag=True, help="Exit status: the number of failures (101: more than 100).")
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    each_line: str | None,
    csv_file: str | None,
    stdin: bool,
    workers: int | None,
    batch: str | None,
    fresh: bool,
    timeout: float | None,
    deadline: int | None,
    max_attempts: int | None,
    keep_order: bool,
    max_fails: int | None,
    joblog: str | None,
    exit_count: bool,
) -> int:
    """Run a function or a command once per input, and print what each returns, or prints.

    Whatever dies on the way, the same command again does what is missing: a finished input is never run twice in a batch. A server
    on the pool does the work; without one this program does.

    TARGET is pkg.mod:func or path/to/file.py:func. In a CMD after -- {} is the input, {.} without extension, {/} its last part,
    {//} its directory, {/.} the last part without extension, {#} its number, {1} and {name} columns of a CSV.
    """
    from taskpool.cli.joblog import JobLog
    from taskpool.cli.target import command_target, function_target
    from taskpool.doors.client import Client

    session: Session = ctx.obj
    command_words = ctx.meta.get("taskpool.command")
    if command_words is None and not words:
        raise click.UsageError("name a TARGET (pkg.mod:func, file.py:func), or a command after --", ctx)
    if command_words == ():
        raise click.UsageError("there is no command after --", ctx)
    target = command_target(command_words) if command_words else function_target(words[0])
    inputs = read_inputs(words if command_words else words[1:], each_line=each_line, csv_file=csv_file, stdin=stdin)
    if batch is not None:
        from taskpool.doors.mapping import check_batch

        check_batch(batch, fresh)
    name = batch or default_batch(target.name, inputs.source).encode(errors="backslashreplace").decode()
    options = {"timeout": timeout, "deadline": None if deadline is None else max(0.001, deadline / US - time.time())}
    options["max_attempts"] = max_attempts
    said = {key: value for key, value in options.items() if value is not None}
    again = "the same command without --fresh goes on" if fresh else "the same command goes on"
    with JobLog(joblog) as log, _pool(session, workers) as pool:
        run = Run(session, pool, target, inputs, name, log, keep_order=keep_order, max_fails=max_fails)
        try:
            run.submit(said, fresh=fresh)
            run.collect()
        except KeyboardInterrupt:
            if type(pool) is Client:  # a pool of our own stops with us, and keeps what waits
                run.stop()
            session.note(f"\nstopped: {run.finished:,} of {len(inputs.items):,} are finished; {again}")
            raise
        except PoolStopped as error:
            message = f"{error.message}: {run.finished:,} of {len(inputs.items):,} are finished"
            raise CliError(message, Exit.NO_SERVER, error.code, again) from error
        finally:
            run.close()
        run.summarise()
    return min(run.failed, COUNT_MAX + 1) if exit_count else exit_of_tasks(run.codes)


@contextmanager
def _pool(session: Session, workers: int | None) -> Iterator[Client]:
    """Yield the server that owns the pool, else a pool of our own on the same store."""
    from taskpool.doors.client import connect
    from taskpool.doors.pool import Pool

    try:
        pool = connect(session.meant)
    except NoServer:
        if session.meant.startswith("unix:"):
            raise
        pool = Pool(session.store_path(), workers=workers)
    with pool:
        yield pool


class Run:
    """One run: hands in the inputs, takes the outcomes as they come, and says what came of them."""

    def __init__(
        self,
        session: Session,
        pool: Client,
        target: Target,
        inputs: Inputs,
        batch: str,
        log: JobLog,
        *,
        keep_order: bool,
        max_fails: int | None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._target = target
        self._inputs = inputs.items
        self._batch = batch
        self._log = log
        self._keep_order = keep_order
        self._max_fails = max_fails
        self._began = time.time_ns() // 1000
        self._futures: list[TaskFuture[Any]] = []
        self._lines: list[RunLine | None] = [None] * len(inputs.items)
        self._printed = 0  # in order of inputs
        self._counts = {"succeeded": 0, "failed": 0, "cancelled": 0}
        self._reused = 0
        self._failures: list[RunLine] = []
        self._progress = ProgressLine(session, len(inputs.items))
        self.codes: set[Exit] = set()

    @property
    def finished(self) -> int:
        """How many inputs have come to an end."""
        return sum(self._counts.values())

    @property
    def failed(self) -> int:
        """How many of them not well."""
        return self._counts["failed"] + self._counts["cancelled"]

    # ---- in -----------------------------------------------------------------------------------------------------------

    def submit(self, options: dict[str, Any], *, fresh: bool) -> None:
        """Hand in all inputs as items of the batch; what an earlier run has finished comes back at once."""
        from taskpool.cli.handing_in import Handed, hand_in
        from taskpool.doors.options import NOTHING_SAID
        from taskpool.wire.codec import CallEncoder

        encoder = CallEncoder(self._target.fn)
        description = encoder.description if encoder.description.msgpack else None
        said = NOTHING_SAID.plus(options).over(getattr(self._target.fn, "_said", NOTHING_SAID))
        tasks = []
        for item, given in enumerate(self._inputs):
            call = self._target.arguments(given, item + 1)
            codec, payload = encoder.encode(call.args, call.kwargs)
            labelled = said.plus({"label": _shortened(call.label)})
            tasks.append(
                Handed(encoder.name, codec, payload, labelled, description, self._batch, item, call=(call.args, call.kwargs))
            )
        try:
            self._futures = hand_in(self._pool, tasks, fresh=fresh)
        except BatchConflict as error:
            hint = "--fresh begins the batch anew, --batch gives it another name"
            raise CliError(error.message, Exit.REFUSED, error.code, hint) from None

    # ---- out ----------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take the outcomes as they come, until all are there or --max-fails is reached."""
        ended: queue.SimpleQueue[tuple[int, TaskFuture[Any]]] = queue.SimpleQueue()
        for place, future in enumerate(self._futures):
            future.add_done_callback(_putter(ended, place))
        self._progress.start()
        for _ in self._futures:
            place, future = ended.get()
            self._take(place, future)
            if self._max_fails is not None and self.failed >= self._max_fails:
                self.stop()
                break
        self._print_ready(everything=True)

    def _take(self, place: int, future: TaskFuture[Any]) -> None:
        line, error = self._line(place, future)
        self._lines[place] = line
        self._counts[line.status if line.status in self._counts else "failed"] += 1
        self.codes.add(exit_of_task(line.status, error.kind if error else None))
        if future._outcome is not None and future._outcome.finished_at < self._began:
            self._reused += 1
        if line.status != "succeeded":
            self._failures.append(line)
        self._log.write(place + 1, future, line, self._target.arguments(self._inputs[place], place + 1).label)
        if self._keep_order:
            self._print_ready()
        else:
            self._print(line, future)
        self._progress.update(self.finished, self.failed)

    def _line(self, place: int, future: TaskFuture[Any]) -> tuple[RunLine, TaskError | None]:
        """Return what became of an input. Raises PoolStopped when the pool ended first."""
        outcome = future._outcome
        if outcome is None:
            raise future._exception or PoolStopped("the pool ended before its tasks")
        shown = None
        error = outcome.error
        if outcome.status == "succeeded":
            try:
                shown = values.shown(future.result())
            except Exception as broken:
                raise CliError(f"the result of task {future.id} cannot be rebuilt here: {broken}", Exit.REFUSED, "decode") from None
        line = RunLine(
            seq=place + 1,
            id=future.id,
            input=_input_document(self._inputs[place]),
            status=outcome.status,
            attempts=outcome.attempts,
            value=shown.json if shown else None,
            repr=shown.repr if shown else None,
            error=error_doc(error),
            text=shown.text if shown else None,
        )
        return line, error

    def _print_ready(self, *, everything: bool = False) -> None:
        """Print, in the order of inputs, what no earlier one is missing for; everything: whatever there is."""
        if not self._keep_order:
            return
        while self._printed < len(self._lines):
            line = self._lines[self._printed]
            if line is not None:
                self._print(line, self._futures[self._printed])
            elif not everything:
                return
            self._printed += 1

    def _print(self, line: RunLine, future: TaskFuture[Any]) -> None:
        if self._session.json:
            self._session.show(line)
        elif line.status == "succeeded":
            self._progress.above(lambda: print_value(future.result()))

    # ---- the end ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel what has not ended; the next run of the batch gives it a new round."""
        rest = tuple(future._id for future in self._futures if future._id and not future.done())
        try:
            for place in range(0, len(rest), 10_000):
                self._pool.cancel(Filter(ids=rest[place : place + 10_000], statuses=LIVE), reason="its run was stopped")
        except (PoolStopped, NoServer):
            pass  # then nothing runs any more

    def close(self) -> None:
        """Take the progress line away."""
        self._progress.stop()

    def summarise(self) -> None:
        """Say what came of it all: a last document, or words and a table of failures on stderr."""
        total, took = len(self._inputs), (time.time_ns() // 1000 - self._began) / US
        if self._session.json:
            counts = self._counts
            rest = total - self.finished
            summary = (self._batch, total, counts["succeeded"], counts["failed"], counts["cancelled"], rest, self._reused, took)
            self._session.show(RunSummary(*summary))
            return
        parts = [f"{self._counts['succeeded']:,} of {total:,} succeeded in {show_duration(took)}"]
        parts += [f"{count:,} {status}" for status, count in self._counts.items() if count and status != "succeeded"]
        if self.finished < total:
            parts.append(f"{total - self.finished:,} not finished")
        if self._reused:
            parts.append(f"{self._reused:,} were done by an earlier run (--fresh does them anew)")
        self._session.note(", ".join(parts))
        if self._failures:
            self._print_failures()

    def _print_failures(self) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("ID", "STATUS", "ATT", "INPUT", "ERROR"):
            table.add_column(name, justify="right" if name in ("ID", "ATT") else "left", no_wrap=name != "ERROR")
        for line in sorted(self._failures, key=lambda line: line.seq)[:FAILURES_SHOWN]:
            error = "" if line.error is None else f"[{line.error.kind}] {line.error.message or line.error.type_name}"
            shown = one_line(self._inputs[line.seq - 1].shown, 50)
            table.add_row(str(line.id), line.status, str(line.attempts), Text(shown), Text(one_line(error, 300)))
        console(self._session.color, sys.stderr).print(table)
        if len(self._failures) > FAILURES_SHOWN:
            write(
                f"and {len(self._failures) - FAILURES_SHOWN:,} more: taskpool ls --batch {self._batch!r} --status failed",
                sys.stderr,
            )


def _putter(ended: queue.SimpleQueue[tuple[int, TaskFuture[Any]]], place: int) -> Callable[[Any], None]:
    return lambda future: ended.put((place, future))


def _shortened(label: str) -> str:
    label = label.encode(errors="backslashreplace").decode()  # the name of a file need not be UTF-8
    return label if len(label) <= LABEL_CHARACTERS_MAX else label[: LABEL_CHARACTERS_MAX - 1] + "…"


def _input_document(given: Input) -> Any:
    if given.names:
        return given.names
    return given.values[0] if len(given.values) == 1 else list(given.values)


def print_value(value: object) -> None:
    """Print a result: the bytes of a command's stdout as they are, None not at all, anything else as Python shows it."""
    if isinstance(value, bytes):
        if stream_is_terminal(sys.stdout):
            sys.stdout.write(many_lines(value.decode("utf-8", "backslashreplace")))
            sys.stdout.flush()
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
    elif value is not None:
        write(many_lines(values.shown(value).repr))


class ProgressLine:
    """One line on a terminal's stderr: how many of how many, how many failed, how long still."""

    EVERY_S = 0.1

    def __init__(self, session: Session, total: int) -> None:
        self._active = not (session.json or session.quiet) and stream_is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._total = total
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._drawn = False

    def start(self) -> None:
        """Draw it for the first time."""
        self._started = time.monotonic()
        self.update(0, 0)

    def update(self, done: int, failed: int) -> None:
        """Draw it anew, if the last time is long enough ago."""
        now = time.monotonic()
        if not self._active or (now - self._drawn_at < self.EVERY_S and done < self._total):
            return
        took = now - self._started
        left = f", {show_duration(took / done * (self._total - done))} left" if 0 < done < self._total else ""
        bad = f", {failed:,} failed" if failed else ""
        sys.stderr.write(f"\r\x1b[K{done:,}/{self._total:,} done{bad}, {show_duration(took)}{left}")
        sys.stderr.flush()
        self._drawn_at, self._drawn = now, True

    def above(self, print_something: Callable[[], None]) -> None:
        """Print something above the line."""
        self.stop()
        print_something()

    def stop(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn, self._drawn_at = False, 0.0
