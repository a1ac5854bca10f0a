"""`taskpool serve [APP]`: own a store in this process, and run its tasks until told to stop."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from taskpool.cli.escape import many_lines, one_line
from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import to_json
from taskpool.cli.quantity import duration, rfc3339
from taskpool.cli.session import Session
from taskpool.cli.verb import verb
from taskpool.retention import FOREVER, Retention, retention_of

if TYPE_CHECKING:
    from taskpool.wire.zygote import Prepared

JOURNAL_LEVELS = {"info": 6, "warning": 4, "error": 3}


@verb(
    "serve",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.REFUSED],
    examples=[
        ("taskpool serve", "the default store, one worker per CPU"),
        ("taskpool -C jobs.db serve jobs.py --workers 4", "with the handlers that jobs.py registers"),
        ("taskpool serve --log-format json", "for a log collector"),
    ],
)
@click.argument("app", required=False)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="How many processes run tasks (default: usable CPUs).")
@click.option("--max-workers", type=click.IntRange(1, 1024), metavar="N", help="To so many it grows while work waits.")
@click.option(
    "--drain-grace", type=duration, default="30s", show_default=True, metavar="DURATION", help="What SIGTERM gives running tasks."
)
@click.option(
    "--cancel-grace", type=duration, default="5s", show_default=True, metavar="DURATION", help="From a cancel to the kill."
)
@click.option(
    "--poll-interval",
    type=duration,
    metavar="DURATION",
    help="Between looks at what nothing tells of (default: 30s at a clock that was set, 1s at a log that the kernel cannot watch).",
)
@click.option(
    "--durability",
    type=click.Choice(["power", "process"]),
    default="power",
    show_default=True,
    help="What an acknowledged task survives: the loss of power, or the death of any process (faster).",
)
@click.option("--memory-limit", metavar="SIZE", help="Kill tasks that use more, if they say nothing of their own: 512M, 2G.")
@click.option(
    "--retention",
    multiple=True,
    metavar="[STATUS=]DURATION",
    help="How long ended tasks are kept: 12h, failed=90d, interrupted=forever (default: 7d, failed 30d, interrupted forever).",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME[:N]",
    help="What tasks may name as their target; N: so many workers have it (default: all).",
)
@click.option("--queues", metavar="NAME:N,…", help="How many tasks of each of these queues may run at once; it is stored.")
@click.option(
    "--once", is_flag=True, help="End when nothing runs and nothing is due: what waits for a time stays for the next run."
)
@click.option("--reload", is_flag=True, help="Start anew when a Python file beside APP changes. For development.")
@click.option("--fail-unknown", is_flag=True, help="Fail tasks whose handler APP does not register, instead of letting them wait.")
@click.option(
    "--log-format", type=click.Choice(["text", "json", "journal"]), help="Of the log lines (default: text; journal under systemd)."
)
@click.pass_obj
def command(
    session: Session,
    app: str | None,
    workers: int | None,
    max_workers: int | None,
    drain_grace: float,
    poll_interval: float | None,
    cancel_grace: float,
    durability: str,
    memory_limit: str | None,
    retention: tuple[str, ...],
    labels: tuple[str, ...],
    queues: str | None,
    once: bool,
    reload: bool,
    fail_unknown: bool,
    log_format: str | None,
) -> int:
    """Own a store and run its tasks until SIGTERM or SIGINT: then stop taking work, wait --drain-grace, put back what still runs.

    A second signal ends at once. APP is a module or a file whose import registers handlers; without it functions are found by name.
    """
    from taskpool.config import settings
    from taskpool.engines.preparation import describe_main
    from taskpool.supervisor.process import Supervisor
    from taskpool.wire.zygote import Prepare

    if session.meant.startswith("unix:"):
        raise click.UsageError("serve owns a store's file: give -C a path or a name")
    log = Log("json" if session.json else log_format or ("journal" if "JOURNAL_STREAM" in os.environ else "text"))
    limits = limits_of(queues or "")
    preload = (enter_app(app),) if app else ()
    if reload:
        return serve_anew(app, log)
    chosen = settings(
        session.store_path(),
        workers=workers,
        max_workers=max_workers,
        durability="process" if durability == "process" else "power",
        cancel_grace=cancel_grace,
        drain_grace=drain_grace,
        poll_interval=poll_interval,
        memory_limit=memory_limit,
        retention=parse_retention(retention),
        labels=counted(labels),
    )
    supervisor = Supervisor(chosen, Prepare(main=describe_main(), preload=preload), log=log.info)
    supervisor.fails_unknown = fail_unknown
    supervisor.limits, supervisor.ends_when_idle = limits, once
    supervisor.on_ready = lambda prepared: announce(log, chosen.store, chosen.workers, prepared)
    code = supervisor.serve_all()
    notify("STOPPING=1")
    return Exit.OK if code == 0 else Exit.FAILED


def parse_retention(words: Sequence[str]) -> Retention | None:
    """Return what `--retention` says: a duration for all but the interrupted, then those of single statuses; None: nothing."""
    kept: dict[str, float | str] = {}
    for word in sorted(words, key=lambda word: "=" in word):
        status, named, text = word.rpartition("=")
        seconds = text if text == FOREVER else duration(text)
        kept |= {status: seconds} if named else dict.fromkeys(("succeeded", "cancelled", "failed"), seconds)
    return retention_of(kept) if kept else None


def counted(labels: Iterable[str]) -> dict[str, int]:
    """Return name → number of what was said as NAME or NAME:N."""
    from taskpool.config import ALL_WORKERS

    found = {}
    for label in labels:
        name, colon, number = label.partition(":")
        if colon and not number.isdigit():
            raise click.BadParameter(f"{label!r} is neither NAME nor NAME:N")
        found[name] = int(number) if colon else ALL_WORKERS
    return found


def limits_of(text: str) -> dict[str, int]:
    """Return queue → how many of its tasks may run at once, of what was said as NAME:N,NAME:N."""
    found = {}
    for word in filter(None, text.split(",")):
        name, _, number = word.rpartition(":")
        if not name or not number.isdigit() or not int(number):
            raise click.BadParameter(f"{word!r} is no NAME:N, such as cpu:4", param_hint="--queues")
        found[name] = int(number)
    return found


def serve_anew(app: str | None, log: Log) -> int:
    """Serve as was asked for, without --reload, in a child that is started anew when APP changes."""
    if app is None:
        raise click.UsageError("--reload looks at the files beside APP: name it")
    from importlib.util import find_spec

    from taskpool.cli.reloading import serve_again

    found = find_spec(app.partition(".")[0]) if not app.endswith(".py") else None
    path = os.path.realpath(app if found is None or found.origin is None else found.origin)
    log.info(f"reload   Python files in {os.path.dirname(path)}")
    return serve_again([word for word in sys.argv[1:] if word != "--reload"], os.path.dirname(path), log.info)


def enter_app(app: str) -> str:
    """Return the module's name of an APP, a module or a file, with its directory first on the search path. It is not imported."""
    directory, name = os.getcwd(), app
    if app.endswith(".py"):
        path = os.path.realpath(app)
        if not os.path.isfile(path):
            raise CliError(f"there is no file {app}", Exit.NOT_FOUND, "not_found")
        directory, name = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return name


class Log:
    """Writes log lines: on stderr for people or for systemd's journal (which knows the time by itself), as documents on stdout.

    A line goes out by one system call and no buffer: a signal's line may come while another is written, which a stream refuses.
    Nobody has to read them.
    """

    def __init__(self, form: str) -> None:
        self._fd = 1 if form == "json" else 2
        self._line = {"json": _as_json, "journal": _as_journal}.get(form, _as_text)

    def info(self, text: str) -> None:
        """Write a line about the ordinary course of things."""
        try:
            os.write(self._fd, f"{self._line('info', text)}\n".encode())
        except OSError:
            pass  # the reader has left; the tasks go on


def _as_text(level: str, text: str) -> str:
    return f"{rfc3339(time.time_ns() // 1000)} {many_lines(text)}"


def _as_json(level: str, text: str) -> str:
    return to_json({"schema": "taskpool.log-line/1", "at": rfc3339(time.time_ns() // 1000), "level": level, "message": text})


def _as_journal(level: str, text: str) -> str:
    return f"<{JOURNAL_LEVELS[level]}>{one_line(text)}"


def announce(log: Log, store: str, workers: int, prepared: Prepared) -> None:
    """Say where everything is, now that clients can connect."""
    from taskpool.config import socket_path

    log.info(f"store    {store}")
    log.info(f"socket   {socket_path(store)}")
    log.info(f"workers  {workers}")
    log.info(f"handlers {', '.join(prepared.handlers) or 'none registered: functions are found by name'}")
    for notice in prepared.notices:
        log.info(f"note: {notice}")
    log.info(f"ready    pid {os.getpid()}; Ctrl-C stops it")
    notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving {store}")


def notify(message: str) -> None:
    """Tell systemd (sd_notify), if it started us so."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            pass  # it listens no more; nothing depends on it
