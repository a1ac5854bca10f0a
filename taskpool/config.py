"""One frozen Settings, validated once at start, and the places that follow from it.

Nothing here knows what a store or a supervisor is: the door that starts a pool, the supervisor that serves it and the
verbs that look for it agree on names and numbers through this page.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from taskpool.errors import InvalidSettings
from taskpool.memory import size_of
from taskpool.retention import Retention, retention_of

if TYPE_CHECKING:
    from pathlib import Path  # imported where one is made: it costs a third of a pool's imports

Durability = Literal["power", "process"]
OnOwnerDeath = Literal["stop", "drain"]

WORKERS_MAX = 1024
ALL_WORKERS = WORKERS_MAX  # as the number of those that have a label
SOCKET_PATH_BYTES_MAX = 107  # sun_path less its terminating zero

_NAME_LENGTH_MAX = 100
INTERVAL_MIN_S = 0.001
_FILE_SUFFIXES = (".db", ".sqlite", ".sqlite3")


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one pool is told at its start; travels to the supervisor. Build it with `settings`, which explains bad values.

    store: absolute path of the database file; private: a temporary store that is thrown away with the pool; workers: how many
    processes run tasks; durability: an acknowledged submit survives a power cut ("power") or only the death of processes
    ("process"); on_owner_death: what becomes of running tasks when the script dies ("stop" puts them back, "drain" lets them
    end for owner_grace_s); cancel_grace_s: from the request to the kill; drain_grace_s: how long a served pool waits at SIGTERM;
    workers_max: to so many it grows under load; worker_idle_s: until those that are not needed leave;
    memory_limit: bytes that a task may use which says nothing of its own (None: all there are); retention: how long ended tasks
    are kept; labels: how many workers have each; poll_interval_s: between looks at
    what nothing tells of (None: 30 s at the wall clock, 1 s at the log of a store that the kernel cannot watch).
    """

    store: str
    private: bool = False
    workers: int = 1
    durability: Durability = "power"
    on_owner_death: OnOwnerDeath = "stop"
    owner_grace_s: float = 60.0
    cancel_grace_s: float = 5.0
    drain_grace_s: float = 30.0
    workers_max: int = 0
    worker_idle_s: float = 10.0
    memory_limit: int | None = None
    retention: Retention = Retention()
    labels: dict[str, int] = {}
    poll_interval_s: float | None = None


def settings(
    store: str | os.PathLike[str],
    *,
    private: bool = False,
    workers: int | None = None,
    durability: Durability | None = None,
    on_owner_death: OnOwnerDeath = "stop",
    owner_grace: float | timedelta = 60.0,
    cancel_grace: float | timedelta = 5.0,
    drain_grace: float | timedelta = 30.0,
    max_workers: int | None = None,
    worker_idle: float | timedelta = 10.0,
    memory_limit: int | str | None = None,
    retention: float | timedelta | str | Mapping[str, float | timedelta | str] | Retention | None = None,
    labels: str | Iterable[str] | Mapping[str, int] = (),
    poll_interval: float | timedelta | None = None,
) -> Settings:
    """Return checked Settings for a store's file (a path). Graces in seconds. Raises InvalidSettings, which names the value.

    workers None: as many as there are usable CPUs (max_workers at most); durability None: power, for a private store process.
    """
    count = usable_cpus() if workers is None else _whole("workers", workers, 1, WORKERS_MAX)
    most = count if max_workers is None else _whole("max_workers", max_workers, 1, WORKERS_MAX)
    if workers is not None and most < count:
        raise InvalidSettings(f"max_workers ({most}) is less than workers ({count})", hint="workers is how many there are at least")
    return Settings(
        store=os.path.realpath(os.fspath(store)),
        private=private,
        workers=min(count, most),
        workers_max=most,
        worker_idle_s=seconds("worker_idle", worker_idle),
        durability=_one_of("durability", durability or ("process" if private else "power"), ("power", "process")),
        on_owner_death=_one_of("on_owner_death", on_owner_death, ("stop", "drain")),
        owner_grace_s=seconds("owner_grace", owner_grace),
        cancel_grace_s=seconds("cancel_grace", cancel_grace),
        drain_grace_s=seconds("drain_grace", drain_grace),
        memory_limit=None if memory_limit is None else _size("memory_limit", memory_limit),
        retention=retention_of(retention),
        labels=_labels(labels, most),
        poll_interval_s=None if poll_interval is None else interval("poll_interval", poll_interval),
    )


# ---- values ---------------------------------------------------------------------------------------------------------


def seconds(name: str, value: object) -> float:
    """Return a duration in seconds from a number or a timedelta. Raises InvalidSettings unless it is finite and not negative."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidSettings(f"{name} must be a number of seconds (or a timedelta), not negative: {value!r}")
    return float(value)


def interval(name: str, value: object) -> float:
    """Return the seconds between two looks, given as a number or a timedelta. Raises InvalidSettings."""
    found = seconds(name, value)
    if found < INTERVAL_MIN_S:
        raise InvalidSettings(f"{name} must be {INTERVAL_MIN_S} seconds at least: {value!r}")
    return found


def _size(name: str, value: object) -> int:
    try:
        return size_of(value)
    except ValueError as error:
        raise InvalidSettings(f"{name}: {error}") from None


def _labels(value: str | Iterable[str] | Mapping[str, int], workers: int) -> dict[str, int]:
    """Return label → number of workers that have it; of names alone, all have them. workers: how many there may be."""
    names = [value] if isinstance(value, str) else value
    counts = names if isinstance(names, Mapping) else dict.fromkeys(names, ALL_WORKERS)
    for name in counts:
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH_MAX or not name.isprintable() or name.isdigit():
            raise InvalidSettings(f"labels are names of workers, and no numbers: {name!r:.120}")
        if workers < _whole(f"the label {name!r}", counts[name], 1, WORKERS_MAX) != ALL_WORKERS:
            raise InvalidSettings(
                f"{counts[name]} workers are to have the label {name!r}, and there are at most {workers}",
                hint="raise workers or max_workers, or leave the number out: then all have it",
            )
    return dict(counts)


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidSettings(f"{name} must be a whole number from {least} to {most}: {value!r}")
    return value


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise InvalidSettings(f"{name} must be {' or '.join(map(repr, choices))}: {value!r}")
    return value


# ---- places ---------------------------------------------------------------------------------------------------------

PRIVATE_PREFIX = "taskpool-"  # of the directory that a private store has for itself


def throw_away(settings: Settings) -> None:
    """Delete a private store, with the directory that was made for it; any other stays."""
    directory = os.path.dirname(settings.store)
    if settings.private and os.path.basename(directory).startswith(PRIVATE_PREFIX):
        from shutil import rmtree

        rmtree(directory, ignore_errors=True)


def store_path(store: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a store that is given as a path, or as a bare name in the user's data directory.

    What holds a slash or ends in .db, .sqlite or .sqlite3 is a path; a name makes `$XDG_DATA_HOME/taskpool/<name>.db` and that
    directory (0700). Symbolic links are followed, so that one file has one owner. Raises InvalidSettings.
    """
    from pathlib import Path

    text = os.fsdecode(store)
    if not text or "\0" in text:
        raise InvalidSettings(f"a store is a path or a name: {store!r}")
    if text.startswith((":memory:", "file:")):
        raise InvalidSettings(f"{text} cannot be shared between processes", hint="leave the store out for a private temporary one")
    if not isinstance(store, str) or "/" in text or text.endswith(_FILE_SUFFIXES):
        try:
            path = Path(os.path.realpath(os.path.expanduser(text)))
        except FileNotFoundError as error:  # what the path begins from
            hint = "change to one that is there, or give the whole path"
            raise InvalidSettings(f"{text}: the working directory is gone", hint=hint) from error
        if path.is_dir():
            raise InvalidSettings(f"{path} is a directory", hint="name a file in it")
        return path
    if len(text) > _NAME_LENGTH_MAX or text[0] in ".-" or not all(c.isascii() and (c.isalnum() or c in "_.-") for c in text):
        raise InvalidSettings(f"{text!r} is no name of a store", hint="letters, digits, dots and dashes; or a path with a slash")
    import platformdirs

    place = platformdirs.user_data_path("taskpool")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(os.path.realpath(place / f"{text}.db"))


def socket_path(db: str | os.PathLike[str]) -> Path:
    """Return where the supervisor of a store listens: `<db>.d/run/sock`, or a short hashed name if that is too long for a socket.

    Nothing is made. The directory must be the user's own, 0700; the supervisor sees to it.
    """
    from pathlib import Path

    path = Path(f"{os.path.realpath(os.fspath(db))}.d/run/sock")
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    from hashlib import blake2b

    name = blake2b(os.fsencode(path), digest_size=10).hexdigest()
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and len(os.fsencode(base)) <= 60 and os.path.isdir(base):
        return Path(base, "taskpool", f"{name}.sock")
    return Path(f"/tmp/taskpool-{os.geteuid()}", f"{name}.sock")


# ---- the machine ----------------------------------------------------------------------------------------------------


def usable_cpus() -> int:
    """Return how many CPUs this process may keep busy: its affinity (or PYTHON_CPU_COUNT), bounded by the quota of its cgroups."""
    count = getattr(os, "process_cpu_count", None)  # Python 3.13
    cpus: int = (count() or 1) if count is not None else len(os.sched_getaffinity(0))
    quota = cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup")
    return max(1, min(cpus, math.ceil(quota))) if quota is not None else cpus


def cgroup_cpus(membership: str | os.PathLike[str], mount: str | os.PathLike[str]) -> float | None:
    """Return the CPU quota of a process's cgroups (v2 or v1), None if there is none. A quota of any group above counts too."""
    try:
        lines = _read(os.fspath(membership)).splitlines()
    except OSError:
        return None
    root = os.fspath(mount)
    quotas: list[float] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            quotas += _quotas(root, group, _quota_v2)
        elif "cpu" in controllers.split(","):
            for place in (controllers, "cpu"):
                quotas += _quotas(f"{root}/{place}", group, _quota_v1)
    return min(quotas, default=None)


def _quotas(root: str, group: str, read: Callable[[str], float | None]) -> list[float]:
    """Return the quotas of a group and all groups above it; inside a container the group's path may not exist: then the root's."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    places = ["/".join([root, *parts[:n]]) for n in range(len(parts), -1, -1)]
    return [quota for place in places if (quota := read(place)) is not None]


def _quota_v2(place: str) -> float | None:
    try:
        quota, period = _read(f"{place}/cpu.max").split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(place: str) -> float | None:
    try:
        quota = int(_read(f"{place}/cpu.cfs_quota_us"))
        return quota / int(_read(f"{place}/cpu.cfs_period_us")) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
