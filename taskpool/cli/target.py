"""What `run` runs: a function named by module or file, or a command; and each input as arguments of it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from taskpool.cli.command_line import fill
from taskpool.cli.exits import CliError, Exit
from taskpool.cli.inputs import Input


class Call(NamedTuple):
    """One call to make. label: its arguments in short, for people."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    label: str


class Target(NamedTuple):
    """name: as people gave it; fn: what runs in the worker; arguments: what it is given for the n-th input (from 1)."""

    name: str
    fn: Callable[..., Any]
    arguments: Callable[[Input, int], Call]


def command_target(words: Sequence[str]) -> Target:
    """Return the target for a command after `--`."""
    from taskpool.worker.shell import run_command

    def arguments(given: Input, number: int) -> Call:
        try:
            command = fill(words, given.values, given.names, number)
        except KeyError as error:
            raise click.UsageError(f"there is no column for {error.args[0]}") from None
        return Call((command,), {}, command if isinstance(command, str) else " ".join(command))

    return Target(" ".join(words), run_command, arguments)


def function_target(name: str) -> Target:
    """Return the target for `pkg.mod:func` or `path/to/file.py:func`. Raises CliError (not found) or click.UsageError."""
    from taskpool.wire.description import describe

    fn = find_function(name)
    description = describe(fn)
    places = [p for p in description.parameters or () if p.positional]
    types = {p.name: p.annotation for p in description.parameters or ()}

    def arguments(given: Input, number: int) -> Call:
        if given.names:
            kwargs = {key: convert(key, text, types.get(key, Any), number) for key, text in given.names.items()}
            return Call((), kwargs, ", ".join(f"{key}={text}" for key, text in given.names.items()))
        annotations = [p.annotation for p in places[: len(given.values)]]
        annotations += [Any] * (len(given.values) - len(annotations))
        names = [p.name for p in places[: len(given.values)]] + [""] * len(given.values)
        args = tuple(
            convert(key, text, annotation, number) for key, text, annotation in zip(names, given.values, annotations, strict=False)
        )
        return Call(args, {}, ", ".join(given.values))

    return Target(name, fn, arguments)


def convert(name: str, text: str, annotation: Any, number: int) -> Any:
    """Return an input's text as what the parameter is annotated with: 7 for int, true for bool.

    Where nothing is known, a number is taken as one and all else as text. Raises click.UsageError, naming input and parameter.
    """
    if annotation is Any:
        return _number(text)
    try:
        return msgspec.convert(text, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"input {number}: {name}={text!r:.80}: {error}") from None
    except TypeError:  # an annotation that msgspec does not know
        return text


def _number(text: str) -> Any:
    try:
        value = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text
    return value if type(value) in (int, float) else text


def find_function(name: str) -> Callable[..., Any]:
    """Import and return a function. The directory of a file (for a module: this one) becomes the first on the search path."""
    module_name, colon, path = name.rpartition(":")
    if not (colon and module_name and path):
        raise click.UsageError(f"{name!r} names no function: write pkg.mod:func, path/to/file.py:func, or a command after --")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "a module is looked for in this directory and where Python looks"
        raise CliError(f"{module_name} cannot be imported: {error}", Exit.NOT_FOUND, "handler_not_found", hint) from error
    except (Exception, SystemExit) as error:
        words = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        raise CliError(words, Exit.NOT_FOUND, "handler_not_found", detail=_traceback(error)) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CliError(f"{module_name} has no {path!r}", Exit.NOT_FOUND, "handler_not_found") from None
    if not callable(found):
        raise click.UsageError(f"{name} is a {type(found).__qualname__}, not a function")
    return found  # type: ignore[no-any-return]


def import_module(name: str) -> Any:
    """Import a module by its name or by the path of its file."""
    directory, module_name = Path.cwd(), name
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.is_file():
            raise ModuleNotFoundError(f"there is no file {name}")
        directory, module_name = file.parent, file.stem
    if str(directory) not in sys.path:
        sys.path.insert(0, os.fspath(directory))
    module = importlib.import_module(module_name)
    if name.endswith(".py") and Path(getattr(module, "__file__", None) or "").resolve() != Path(name).resolve():
        raise ModuleNotFoundError(f"another module is called {module_name!r} ({module.__file__}): rename {name}")
    return module


def _traceback(error: BaseException) -> str:
    """Return the traceback of a failed import, without the frames that only lead to the module."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_IMPORTERS):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


_IMPORTERS = (__file__, os.path.dirname(importlib.__file__), "<frozen ")
