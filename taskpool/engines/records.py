"""Reading what workers wrote into their rings, and what became too big for them."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from taskpool.wire.frames import FRAME_BYTES_MAX
from taskpool.wire.jobs import Checkpointed, ChildAsked, Report, Skipped, Spilled, record_decoder
from taskpool.wire.page import PageInvalid, RingReader, load_spill

Loaded = Report | Skipped | Checkpointed | ChildAsked
decode: Callable[[bytes], Loaded | Spilled] = record_decoder.decode


class RecordInvalid(Exception):
    """A worker wrote something that no worker writes."""


def read(ring: RingReader, run_dir: str, spills: list[str]) -> tuple[list[Loaded], str]:
    """Return the records that are new, in order, and why no more can be read ("" when all is well).

    The paths of spill files that were read are added to spills; they may be removed when the records are stored.
    """
    found: list[Loaded] = []
    try:
        for data in ring.read():
            record = decode(data)
            found.append(_load(record, run_dir, spills) if type(record) is Spilled else record)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, PageInvalid, RecordInvalid, RecursionError, OverflowError) as error:
        return found, str(error)
    return found, ring.damaged


def _load(spilled: Spilled, run_dir: str, spills: list[str]) -> Loaded:
    record = decode(load_spill(run_dir, spilled, FRAME_BYTES_MAX))
    if isinstance(record, Spilled):
        raise RecordInvalid("a spill file names another one")
    spills.append(os.path.join(run_dir, spilled.name))
    return record


def unlink(path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
