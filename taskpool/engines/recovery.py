"""What the workers of a dead owner had said: read from their pages, after they were proved dead and before anything runs again.

Each owner's pages lie in a directory named after its epoch, so that new workers never meet old files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from taskpool.engines import records
from taskpool.engines.records import Loaded
from taskpool.wire.jobs import Report
from taskpool.wire.page import BOOT, EPOCH, WORKER, Page, PageInvalid, RingReader, boot_word


class OldPage(NamedTuple):
    """One worker of a dead owner.

    current: (task id, attempt) of the body that had begun and not ended; records: what it had written and nobody had stored, in
    order; void: the page is of another boot of the machine, or damaged, so that nobody knows what had begun.
    """

    worker: int
    epoch: int
    current: tuple[int, int] | None
    records: list[Loaded]
    void: bool
    path: str


def recover(run_dir: str | os.PathLike[str], epoch: int) -> list[OldPage]:
    """Return the pages of all owners but that of `epoch`, oldest owner first."""
    boot = boot_word()
    found: list[OldPage] = []
    for _, directory in _old_directories(run_dir, epoch):
        for name in sorted(os.listdir(directory)):
            if name.endswith(".page"):
                found.append(_read(os.path.join(directory, name), boot))
        if not any(page.path.startswith(directory + os.sep) for page in found):
            _remove(directory)  # without a page nothing refers to what is there
    return found


def forget(pages: Iterable[OldPage]) -> None:
    """Remove these pages and the files that belong to them: what they told is stored."""
    for directory in {os.path.dirname(page.path) for page in pages}:
        _remove(directory)


def _remove(directory: str) -> None:
    from shutil import rmtree  # with its compressors 3 ms and 2 MB, which a new store does not need

    rmtree(directory, ignore_errors=True)


def _old_directories(run_dir: str | os.PathLike[str], epoch: int) -> list[tuple[int, str]]:
    found = []
    for name in os.listdir(run_dir):
        if name.startswith("e") and name[1:].isdigit() and int(name[1:]) != epoch:
            found.append((int(name[1:]), os.path.join(run_dir, name)))
    return sorted(found)


def _read(path: str, boot: int) -> OldPage:
    """Read one page. Its words are believed only if it is of this boot: files need not survive a power cut whole."""
    directory, name = os.path.split(path)
    worker = int(name[1 : -len(".page")])
    epoch = int(os.path.basename(directory)[1:])
    nothing = OldPage(worker, epoch, None, [], True, path)
    try:
        page = Page.open(path)
    except (OSError, PageInvalid):
        return nothing
    try:
        words = page.words
        if words[BOOT] != boot or words[WORKER] != worker or words[EPOCH] != epoch:
            return nothing
        found, problem = records.read(RingReader(page), directory, [])
        n, task_id, attempt = page.current()
        ended = {(record.task_id, record.attempt) for record in found if isinstance(record, Report)}
        current = (task_id, attempt) if n and (task_id, attempt) not in ended else None
        return OldPage(worker, epoch, current, found, bool(problem), path)
    finally:
        page.close()
