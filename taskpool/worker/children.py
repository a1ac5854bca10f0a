"""Tasks that a running one makes: gathered until its success, or stored at once.

What makes a task of a call, with all that may be said of it, is the doors' affair, and nothing down here imports a door. It is
loaded by its name when a body spawns for the first time, so that a worker whose bodies spawn nothing never pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final, Protocol, cast

from taskpool.errors import InvalidPayload, InvalidTask
from taskpool.model import Running, Spawned, TaskSpec
from taskpool.wire.limits import CHILDREN_BYTES_MAX, CHILDREN_MAX, MIB

RECORDER: Final = "taskpool.doors.spawning"
FIELDS_BYTES: Final = 64  # of a task beside its arguments, options and names


class Recorder(Protocol):
    """Makes tasks of the calls of one parent."""

    def spec(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskSpec:
        """Return the task that calls fn. Raises what keeps it from being sent."""

    def under(self, options: Mapping[str, Any]) -> Recorder:
        """Return one whose tasks have these options. InvalidTask, naming the option."""


@cache
def _make() -> Callable[[Running], Recorder]:
    return cast("Callable[[Running], Recorder]", import_module(RECORDER).Recorder)


class Brood:
    """What one attempt spawns. specs: what is to be stored with its success."""

    def __init__(self, task: Callable[[], Running], store: Callable[[TaskSpec], int]) -> None:
        """task: the one that runs; store: stores a task durably and returns its id, or raises why not."""
        self._task = task
        self._store = store
        self._recorder: Recorder | None = None
        self._bytes = 0
        self._count = 0
        self._is_over = False
        self.specs: list[TaskSpec] = []

    def recorder(self) -> Recorder:
        """Return what makes tasks of calls. RuntimeError once the attempt has ended."""
        if self._is_over:
            raise RuntimeError("the attempt of this controller has ended")
        if self._recorder is None:
            self._recorder = _make()(self._task())
        return self._recorder

    def close(self) -> None:
        """The attempt has ended: nothing is spawned any more."""
        self._is_over = True

    def spawn(self, recorder: Recorder, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Spawned:
        """Keep a task until the success."""
        spec = self._checked(recorder, fn, args, kwargs)
        size = FIELDS_BYTES + len(spec.payload) + len(spec.options) + len(spec.name) + len(spec.queue)
        if self._bytes + size > CHILDREN_BYTES_MAX:
            raise InvalidPayload(
                f"what an attempt spawns with its success may take {CHILDREN_BYTES_MAX // MIB} MiB",
                hint="pass the paths of files, or let a child of yours spawn the rest",
            )
        self._bytes += size
        self.specs.append(spec)
        return _spawned(spec, 0)

    def spawn_now(self, recorder: Recorder, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Spawned:
        """Store a task."""
        spec = self._checked(recorder, fn, args, kwargs)
        return _spawned(spec, self._store(spec))

    def _checked(self, recorder: Recorder, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskSpec:
        self.recorder()  # says so if the attempt has ended
        spec = recorder.spec(fn, args, kwargs)
        if self._count >= CHILDREN_MAX:
            raise InvalidTask(f"an attempt may spawn {CHILDREN_MAX:,} tasks", hint="let a child of yours spawn the rest")
        self._count += 1
        return spec


class View:
    """A controller's spawning under options."""

    def __init__(self, brood: Brood, recorder: Recorder) -> None:
        self._brood = brood
        self._recorder = recorder

    def spawn(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Spawn a task with the success of this attempt."""
        return self._brood.spawn(self._recorder, fn, args, kwargs)

    def spawn_now(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Spawn a task now."""
        return self._brood.spawn_now(self._recorder, fn, args, kwargs)

    def options(self, **options: Any) -> View:
        """Return a view under further options."""
        return View(self._brood, self._recorder.under(options))


def _spawned(spec: TaskSpec, task_id: int) -> Spawned:
    import uuid

    return Spawned(str(uuid.UUID(bytes=spec.uid)), spec.name, task_id)
