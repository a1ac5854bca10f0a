"""`taskpool submit HANDLER [ARG…]`: store one task."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import click

from taskpool.cli.documents import task_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import Exit, exit_of_task
from taskpool.cli.follow import say_end
from taskpool.cli.labels import label
from taskpool.cli.output import write
from taskpool.cli.quantity import US, deadline, duration, parse_moment
from taskpool.cli.select import parse_tasks
from taskpool.cli.session import Session
from taskpool.cli.verb import verb
from taskpool.model import Codec, StepSpec

LABEL_CHARACTERS_MAX = 200
_NAMED = re.compile(r"([A-Za-z_]\w*)?(:=|=)")


@verb(
    "submit",
    exits=[Exit.FAILED, Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED, Exit.CANCELLED, Exit.PANICKED],
    examples=[
        ("taskpool submit jobs:price 7", "price(7)"),
        ("taskpool submit jobs:price seed=7 paths:=1000000", "by name; := takes JSON as it is"),
        ("taskpool submit jobs:price 7 --delay 10m --max-attempts 3", "later, and up to three times"),
        ("taskpool submit jobs:report --after 40-57", "once those have succeeded"),
        ("taskpool submit jobs:bill 7 --key customer-7 --unique bill-7", "after others of the customer; once"),
        ("taskpool submit jobs:price 7 --wait", "the exit status is the task's"),
    ],
)
@click.argument("handler")
@click.argument("arguments", nargs=-1, metavar="[ARG|k=v|k:=json]...")
@click.option("--queue", metavar="QUEUE", help="Its line.")
@click.option("--priority", type=int, metavar="N", help="Higher runs first.")
@click.option("--delay", type=duration, metavar="DURATION", help="Not before that long from now.")
@click.option("--at", metavar="WHEN", help="Not before: a time, or 'in 10m'.")
@click.option("--after", multiple=True, metavar="TASKS", help="Not before these have succeeded; without them it is cancelled.")
@click.option("--max-attempts", type=click.IntRange(1), metavar="N", help="How often it may be tried.")
@click.option("--timeout", type=duration, metavar="DURATION", help="Kill an attempt that takes longer.")
@click.option(
    "--deadline", type=deadline, metavar="WHEN", help="When it must be over, all attempts and waits: 2h from now, or a time."
)
@click.option("--cpus", type=float, metavar="N", help="How many processors it keeps busy (default: 1).")
@click.option("--memory", metavar="SIZE", help="What it needs and may use: 512M, 2G. Over it, it is killed.")
@click.option("--reply-to", metavar="MAILBOX", help="Leave its response there, until `taskpool replies MAILBOX --ack`.")
@click.option("--target", metavar="LABEL", help="Only a worker with that label (serve --label) or number runs it.")
@click.option("--key", metavar="KEY", help="Of the tasks with this key one runs at a time, in their order.")
@click.option("--unique", metavar="KEY", help="At most one task that has not ended has it; if another has, that is the task.")
@click.option(
    "--on-conflict",
    type=click.Choice(["existing", "raise", "replace"]),
    help="When another has the unique key (default: existing).",
)
@click.option("--unique-period", type=duration, metavar="DURATION", help="Keep the unique key so long, though the task has ended.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="For filters; several may be given.")
@click.option("--wait", is_flag=True, help="Wait for its end; the exit status is the task's.")
@click.option("--print-id", is_flag=True, help="Print its id and nothing else.")
@click.pass_obj
def command(
    session: Session,
    /,
    handler: str,
    arguments: tuple[str, ...],
    at: str | None,
    delay: float | None,
    after: tuple[str, ...],
    deadline: int | None,
    wait: bool,
    print_id: bool,
    **options: Any,
) -> int:
    """Store one task for the server to run.

    An ARG or k=v is text, which the handler's annotations turn into what they say (7 for int, true for bool); := before it is JSON.
    What is not said here is as the handler's decorator has it, if the server has imported it (serve APP).
    """
    args, kwargs, shown_as = read_arguments(arguments)
    said: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, ())} | {"label": shown_as}
    if at is not None:
        try:
            said["at"] = _moment(parse_moment(at, time.time_ns() // 1000))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--at") from None
    if delay is not None:
        said["delay"] = delay
    if deadline is not None:
        said["deadline"] = _moment(deadline)
    parents: list[int] = []
    if after:
        parents = _parents(session, after)
    from taskpool.cli.handing_in import Handed, hand_in
    from taskpool.core.graph import ON_SUCCESS
    from taskpool.doors.named import plan_by_name
    from taskpool.doors.options import NOTHING_SAID

    with session.client() as client:
        plan = plan_by_name(client._link, handler, NOTHING_SAID)
        plan.check_count(args, kwargs)
        payload = json.dumps({"args": args, "kwargs": kwargs}).encode()
        step = StepSpec("", [(parent, ON_SUCCESS, False) for parent in parents]) if parents else None
        (future,) = hand_in(client, [Handed(plan.name, int(Codec.JSON), payload, plan.said.plus(said), step=step)])
        task = client.get(future.id)
        if print_id:
            write(str(task.id))
        elif session.json and not wait:
            session.show(task_doc(task))
        elif not session.json and not (wait and session.quiet):
            session.say(f"{task.status.value} {task.id} {one_line(label(task), 200)} on {one_line(task.queue)}")
        if not wait:
            return Exit.OK
        task = client.wait(task.id)
    if session.json and not print_id:
        session.show(task_doc(task))
    elif not print_id:
        say_end(session, task)
    return exit_of_task(task.status, task.error.kind if task.error else None)


def _parents(session: Session, words: tuple[str, ...]) -> list[int]:
    """Return the ids of the tasks that are to succeed first. Raises click.UsageError, CliError for one that is not there."""
    named = parse_tasks(words)
    if not named.named:  # such as --after "$ID" with nothing in it
        raise click.BadParameter("name the tasks: 42, 40-57, last, a uuid", param_hint="--after")
    with session.reader() as reader:
        return named.resolve_ids(reader)


def read_arguments(words: tuple[str, ...]) -> tuple[list[Any], dict[str, Any], str]:
    """Return (args, kwargs, label). Raises click.UsageError."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        match = _NAMED.match(word)
        name, value = (match[1], word[match.end() :]) if match else (None, word)
        if match and match[2] == ":=":
            value = _json(word, value)
        elif match and name is None:
            name, value = None, word  # "=x" is just text
        if name is None:
            if kwargs:
                raise click.UsageError(f"{word!r}: arguments by place come before those by name")
            args.append(value)
        elif name in kwargs:
            raise click.UsageError(f"{name!r} is given twice")
        else:
            kwargs[name] = value
    label = ", ".join(words).encode(errors="backslashreplace").decode()  # the name of a file need not be UTF-8
    if len(label) > LABEL_CHARACTERS_MAX:
        label = label[: LABEL_CHARACTERS_MAX - 1] + "…"
    return args, kwargs, label


def _json(word: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{word!r:.200} is no JSON after := ({error})") from None


def _moment(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us / US, UTC)
