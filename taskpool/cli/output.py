"""What a verb says: one JSON document or a stream of them on stdout, or words for people (tables by rich, notes on stderr)."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

# Beyond this, many JSON readers round an integer.
EXACT = 1 << 53


def portable(value: Any) -> Any:
    """Return value with each integer that some reader would round accompanied by its text, under `<key>_str`, and NaN as null."""
    match value:
        case dict():
            out: dict[str, Any] = {}
            for key, item in value.items():
                out[key] = portable(item)
                if (text := _as_text(item)) is not None:
                    out[f"{key}_str"] = text
            return out
        case list() | tuple():
            return [portable(item) for item in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
    return value


def _as_text(value: Any) -> Any:
    """Return the texts of the big integers in a value: for an integer itself, or for a list that holds some; else None."""
    if isinstance(value, int) and abs(value) > EXACT:
        return str(value)
    if isinstance(value, list | tuple) and any(_as_text(item) is not None for item in value):
        return [item if (text := _as_text(item)) is None else text for item in value]
    return None


def to_json(document: Any, *, indent: int | None = None) -> str:
    """Return a document (builtins or Structs) as JSON in ASCII, so that nothing in it can reach a terminal as a control."""
    return json.dumps(portable(msgspec.to_builtins(document)), indent=indent, allow_nan=False)


def stream_is_terminal(stream: IO[Any]) -> bool:
    """Return whether a stream is a terminal, also when it is closed or missing."""
    try:
        return stream.isatty()
    except (ValueError, AttributeError):
        return False


def wants_color(choice: str, stream: IO[Any]) -> bool:
    """Return whether to colour a stream: by --color, then NO_COLOR, FORCE_COLOR, TERM=dumb, then whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream_is_terminal(stream)


def console(choice: str, stream: IO[str], *, width: int | None = None) -> Console:
    """Return a rich console on a stream; off a terminal a table is as wide as it needs."""
    from rich.console import Console

    class PlainConsole(Console):
        """A console that leaves a broken pipe to the program."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader has left")

    color = wants_color(choice, stream)
    terminal = stream_is_terminal(stream)
    return PlainConsole(
        file=stream,
        force_terminal=True if color else None,
        color_system="auto" if color and terminal else "standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        width=width or (None if terminal else 240),
        soft_wrap=not terminal,
    )


def write(text: str, stream: IO[str] | None = None) -> None:
    """Write a line at once, so that a reader of a pipe sees it when it is true."""
    stream = stream or sys.stdout
    stream.write(text + "\n")
    stream.flush()
