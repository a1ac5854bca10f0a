"""Who is measured: taskpool in its two durabilities, and three process pools of the same interface."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench import facts
from bench.tasks import noop

POWER, PROCESS = "taskpool power", "taskpool process"
EXECUTOR = "taskpool Executor"  # at power, through the drop-in for ProcessPoolExecutor
PPE, MPP, PEBBLE = "PPE", "MPP", "pebble"

LONG_NAMES = {
    POWER: "taskpool, durable through power loss (the default)",
    PROCESS: "taskpool, durable through death of processes",
    EXECUTOR: "taskpool.Executor, durable through power loss",
    PPE: "concurrent.futures.ProcessPoolExecutor",
    MPP: "multiprocessing.Pool.apply_async",
    PEBBLE: "pebble.ProcessPool",
}


@dataclass
class Opened:
    """A pool that is ready. submit(fn, *args) returns a handle; result(handle) waits for its value, or raises."""

    submit: Callable[..., Any]
    result: Callable[[Any], Any]
    pool: Any
    facts: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None


@contextmanager
def opened(name: str, *, workers: int | None = None, warm: bool = True) -> Iterator[Opened]:
    """Open a contender's pool. warm: its workers have run something when this returns. Stores lie in the scratch directory."""
    count = workers or facts.workers()
    if name.startswith("taskpool"):
        with scratch_directory() as directory, _taskpool(name, count, directory) as found:
            yield _warmed(found, count) if warm else found
        return
    openers = {PPE: _ppe, MPP: _mpp, PEBBLE: _pebble}
    with openers[name](count) as found:
        yield _warmed(found, count) if warm else found


@contextmanager
def opened_on(directory: Path, name: str) -> Iterator[Opened]:
    """Open a pool of ours, warm, on the store `bench.db` of a directory, whatever is in it."""
    with _taskpool(name, facts.workers(), directory) as found:
        yield _warmed(found, facts.workers())


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory for stores, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="taskpool-bench-", dir=facts.scratch()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _warmed(found: Opened, workers: int) -> Opened:
    for handle in [found.submit(noop) for _ in range(50 * workers)]:
        found.result(handle)
    return found


def durability_of(name: str) -> Literal["power", "process"]:
    """Return the durability under which a contender of ours runs."""
    return "process" if name == PROCESS else "power"


def pragmas_in_force(directory: Path, durability: str) -> dict[str, Any]:
    """Return SQLite's settings in a store that is opened as the supervisor opens its own."""
    from taskpool.store.store import Store

    store = Store.open(directory / "pragmas.db", durability=durability)
    try:
        return dict(store.pragmas())
    finally:
        store.close()


@contextmanager
def _taskpool(name: str, workers: int, directory: Path) -> Iterator[Opened]:
    from taskpool import Pool

    with Pool(directory / "bench.db", workers=workers, durability=durability_of(name)) as pool:
        about = {
            "durability": durability_of(name),
            "versions": facts.versions("taskpool", "msgspec"),
            "pragmas": pragmas_in_force(directory, durability_of(name)),
        }
        if name == EXECUTOR:
            from taskpool import Executor

            with Executor(pool=pool) as executor:
                yield Opened(executor.submit, lambda future: future.result(), pool, about, directory)
        else:
            yield Opened(pool.submit_nowait, lambda future: future.result(), pool, about, directory)


@contextmanager
def _ppe(workers: int) -> Iterator[Opened]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield Opened(pool.submit, lambda future: future.result(), pool, _peer_facts())


@contextmanager
def _mpp(workers: int) -> Iterator[Opened]:
    import multiprocessing

    with multiprocessing.Pool(workers) as pool:
        yield Opened(lambda fn, *args: pool.apply_async(fn, args), lambda handle: handle.get(), pool, _peer_facts())


@contextmanager
def _pebble(workers: int) -> Iterator[Opened]:
    from pebble import ProcessPool

    pool: Any
    with ProcessPool(max_workers=workers) as pool:
        submit = lambda fn, *args: pool.schedule(fn, args=args)  # noqa: E731
        yield Opened(submit, lambda future: future.result(), pool, _peer_facts("pebble"))
        pool.close()
        pool.join()


def _peer_facts(*packages: str) -> dict[str, Any]:
    return {"durability": "none", "versions": facts.versions(*packages)}
