"""What travels between a supervisor and its zygote (over a socketpair, with descriptors), and what starts a supervisor.

Tagged msgspec Structs, new fields last and with defaults.
"""

from __future__ import annotations

import msgspec

from taskpool.config import Settings
from taskpool.wire.arity import Arity

# ---- zygote ↔ supervisor --------------------------------------------------------------------------------------------


class Prepare(msgspec.Struct, tag=True):
    """First message to the zygote. main: the script's `__main__` as engines.preparation describes it; preload: modules that
    register handlers; late: those of them that each worker imports by itself.
    """

    main: bytes = b""
    preload: tuple[str, ...] = ()
    main_stem: str = ""
    late: tuple[str, ...] = ()


class Fork(msgspec.Struct, tag=True):
    """Fork one worker; its descriptors (conn, page, stacks, output) come with the message."""

    worker_id: int


class HandlerOptions(msgspec.Struct, array_like=True):
    """What a handler's decorator says of its tasks, for clients that know but its name.

    options: packed Options; moments: deadline, expires and delay in seconds from the submit, or as RFC 3339; names: key and unique,
    None where a function computes them.
    """

    options: bytes = b""
    queue: str | None = None
    priority: int | None = None
    moments: dict[str, float | str] = {}
    names: dict[str, str | None] = {}


class HandlerInfo(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a handler outside of the workers. arity: None where its signature is unknown.

    canonical: `module:function`; usage: its call with types; summary: the first line of its docstring; said: its options.
    """

    name: str
    aliases: tuple[str, ...] = ()
    canonical: str = ""
    usage: str = ""
    summary: str = ""
    said: HandlerOptions | None = None
    arity: Arity | None = None


class Prepared(msgspec.Struct, tag=True):
    """The zygote is ready. handlers: names registered by preloaded modules; error: the traceback when preloading failed.

    error_code: of the error, if it is one of ours; said: what decorators say of their handlers' tasks, by name and alias.
    """

    handlers: tuple[str, ...] = ()
    error: str = ""
    notices: tuple[str, ...] = ()
    error_code: str = ""
    said: dict[str, HandlerOptions] = {}
    infos: tuple[HandlerInfo, ...] = ()
    late: bool = False  # workers import more modules, whose handlers nobody else knows


class Forked(msgspec.Struct, tag=True):
    """A worker lives (pid), or could not be forked (error)."""

    worker_id: int
    pid: int
    error: str = ""


# ---- the script that starts a supervisor → supervisor ---------------------------------------------------------------


class Boot(msgspec.Struct, tag=True):
    """First frame on the inherited socket, before the owner's Hello: what to serve, how workers find the script, whose it is."""

    settings: Settings
    prepare: Prepare
    owner_pid: int
