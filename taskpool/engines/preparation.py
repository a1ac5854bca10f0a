"""Making the `__main__` of a script known to workers, as the standard library's spawn does.

The script describes itself (`describe_main`), the zygote enters that description (`enter_main`): module search path, arguments,
directory, and the script's own module, run once more under the name `__mp_main__`, so that what stands under
`if __name__ == "__main__":` never runs again. The running is left to `multiprocessing.spawn.prepare`; the description is made here,
because the stock one imports 15–26 ms of modules into the script, fixes its start method, holds an object that refuses to be
pickled, and names a file `<stdin>` that nobody can run.
"""

from __future__ import annotations

import os
import sys
import types

import msgspec

entering = False  # in the zygote, while modules of the script are imported: no pool may be made


class Main(msgspec.Struct, omit_defaults=True):
    """A script's surroundings. Paths as file system bytes; module or path names what to run, if anything."""

    search: list[bytes]
    argv: list[bytes]
    directory: bytes
    original_directory: bytes
    module: str = ""
    path: bytes = b""
    authkey: bytes | None = None


def describe_main() -> bytes:
    """Return this process's `__main__` and surroundings, packed for Prepare.main.

    RuntimeError inside the import of a script by the zygote: the script makes a pool outside of `if __name__ == "__main__":`.
    """
    if entering:
        raise RuntimeError(
            "a pool was made while its module was imported for the workers of another; put what starts it under "
            'if __name__ == "__main__": so that it runs in the script alone'
        )
    process = sys.modules.get("multiprocessing.process")
    directory = _directory()
    original = getattr(process, "ORIGINAL_DIR", None) or os.fsdecode(directory)
    main = Main(
        search=[os.fsencode(os.path.join(original, entry)) for entry in sys.path],
        argv=[os.fsencode(argument) for argument in sys.argv],
        directory=directory,
        original_directory=os.fsencode(original),
    )
    if process is not None:
        main.authkey = bytes(process.current_process().authkey)
    module = sys.modules["__main__"]
    name = getattr(getattr(module, "__spec__", None), "name", None)
    if name is not None:  # python -m
        main.module = name
    else:
        main.path = _script_path(module, original)
    return msgspec.msgpack.encode(main)


def _directory() -> bytes:
    """Return the working directory, or the root where that is gone: nobody needs it who has not asked for it."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b"/"


def _script_path(module: types.ModuleType, original: str) -> bytes:
    """Return the file of a script that can be run again, or nothing: interactive, -c, stdin, and installed commands."""
    path = getattr(module, "__file__", None)
    if not isinstance(path, str):
        return b""
    path = os.path.normpath(os.path.join(original, path))
    # An installed command (pytest, jupyter) holds nothing but a call; running it again would only import its application.
    if not os.path.isfile(path) or os.path.dirname(path) == os.path.dirname(sys.executable):
        return b""
    return os.fsencode(path)


def enter_surroundings(data: bytes) -> None:
    """Take over search path, arguments, directory and authentication key of a script. ValueError if the data makes no sense."""
    from multiprocessing import spawn

    main = msgspec.msgpack.decode(data, type=Main)
    prepared: dict[str, object] = {
        "name": "taskpool-worker",
        "sys_path": [os.fsdecode(entry) for entry in main.search],
        "sys_argv": [os.fsdecode(argument) for argument in main.argv],
        "orig_dir": os.fsdecode(main.original_directory),
    }
    if main.authkey is not None:
        prepared["authkey"] = main.authkey
    if os.path.isdir(main.directory):
        prepared["dir"] = os.fsdecode(main.directory)
    spawn.prepare(prepared)
    # Functions sent by value look for a `__main__`; it must not be this program.
    sys.modules["__main__"] = types.ModuleType("__main__")


def enter_main(data: bytes) -> None:
    """Run the script's module as `__mp_main__`, if it has one. Raises whatever it raises."""
    from multiprocessing import process, spawn

    main = msgspec.msgpack.decode(data, type=Main)
    if not (main.module or main.path):
        return
    me = process.current_process()
    me._inheriting = True  # type: ignore[attr-defined]  # as in a spawned child: multiprocessing refuses to start anything
    try:
        if main.module:
            spawn.prepare({"init_main_from_name": main.module})
        else:
            spawn.prepare({"init_main_from_path": os.fsdecode(main.path)})
    finally:
        del me._inheriting  # type: ignore[attr-defined]
