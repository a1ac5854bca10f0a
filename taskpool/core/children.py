"""Tasks that a body has spawned, to be stored with its success: read from its report. Pure.

They are inserted in the transaction of the End, so there is no success without them, and without a success none of them. A worker
checks each where it is spawned; what one that is no worker of ours may send is looked at here once more.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from taskpool.errors import TaskpoolError
from taskpool.model import Options, TaskError, TaskSpec, check_queue_name
from taskpool.wire.jobs import ERROR, OK, Report
from taskpool.wire.limits import CHILDREN_MAX, PAYLOAD_BYTES_MAX

_decoder: Final = msgspec.msgpack.Decoder(Options)


class Child(NamedTuple):
    """A task to be stored with the success of its parent."""

    parent: int
    spec: TaskSpec
    options: Options


def read(report: Report) -> list[Child]:
    """Return the children of a success, none of another end. A success whose children nobody can store becomes a failure."""
    if report.outcome != OK or not report.children:
        return []
    known: dict[bytes, Options] = {b"": Options()}
    try:
        if len(report.children) > CHILDREN_MAX:
            raise ValueError(f"they are more than {CHILDREN_MAX}")
        return [Child(report.task_id, spec, _checked(spec, known)) for spec in report.children]
    except (msgspec.MsgspecError, ValueError, RecursionError, TaskpoolError) as error:
        report.outcome, report.value, report.effects, report.children = ERROR, None, None, None
        report.error = TaskError("result", f"what this attempt has spawned cannot be stored: {error}", retryable=False)
        return []


def _checked(spec: TaskSpec, known: dict[bytes, Options]) -> Options:
    """Return the options of a child. known: packed → decoded; those of one handler are the same bytes."""
    options = known.get(spec.options)
    if options is None:
        options = known[spec.options] = _decoder.decode(spec.options)
    check_queue_name(spec.queue)
    if spec.step is not None or spec.batch is not None or spec.item is not None or options.recurrence:
        raise ValueError("a child is no step, no item of a batch and of no schedule")
    if len(spec.payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"the arguments of one take {len(spec.payload)} bytes, the limit is {PAYLOAD_BYTES_MAX}")
    return options
