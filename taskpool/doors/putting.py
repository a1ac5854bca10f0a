"""Records on their way into a store: what is submitted of them, once all that can be wrong with them has been looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskpool.errors import InvalidPayload, InvalidTask
from taskpool.model import TaskSpec
from taskpool.records import Record, spec_of
from taskpool.wire.limits import MIB, PAYLOAD_BYTES_MAX


def specs_of(records: Sequence[Any]) -> list[TaskSpec]:
    """Return what is submitted of records; gives a task_id to each that has none. InvalidTask, InvalidPayload: of none of them."""
    for record in records:
        if not isinstance(record, Record):
            raise InvalidTask(f"{record!r:.100} is no record", hint="Record(type=7, data=b'…')")
        record.validate()
    specs = [spec_of(record) for record in records]
    for spec in specs:
        if len(spec.payload) > PAYLOAD_BYTES_MAX:
            raise InvalidPayload(
                f"the data of a record take {len(spec.payload) / MIB:.1f} MiB, the limit is {PAYLOAD_BYTES_MAX // MIB} MiB",
                hint="store the path of a file",
            )
    return specs
