"""Commands with placeholders, as in GNU parallel: {} and its relatives are replaced by one input."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence

_PLACEHOLDER = re.compile(r"(?<!\$)\{(#|\.|/|//|/\.|[1-9]\d*|[A-Za-z_]\w*)?\}")


def fill(words: Sequence[str], values: Sequence[str], names: Mapping[str, str], number: int) -> str | list[str]:
    """Return the command for one input: a line for the shell if it was given as one word, else its words.

    {} the input, {.} without its extension, {/} its last part, {//} its directory, {/.} last part without extension, {#} its number
    (from 1), {1} {2} … and {name} columns of a CSV. Without any placeholder the input becomes the last word. In a shell line each
    value is quoted; ${NAME} is the shell's. Raises KeyError naming a column that there is not.
    """
    value = values[0] if values else ""
    known: dict[str, Callable[[], str]] = {
        "": lambda: value,
        ".": lambda: os.path.splitext(value)[0],
        "/": lambda: os.path.basename(value),
        "//": lambda: os.path.dirname(value) or ".",
        "/.": lambda: os.path.splitext(os.path.basename(value))[0],
        "#": lambda: str(number),
    }

    def replace(match: re.Match[str], quote: Callable[[str], str]) -> str:
        key = match[1] or ""
        if key in known:
            return quote(known[key]())
        if key.isdigit() and int(key) <= len(values):
            return quote(values[int(key) - 1])
        if key in names:
            return quote(names[key])
        if key.isdigit():
            raise KeyError(match[0])
        return match[0]

    quote = shlex.quote if len(words) == 1 else str
    filled = [_PLACEHOLDER.sub(lambda match: replace(match, quote), word) for word in words]
    if values and not any(_PLACEHOLDER.search(word) for word in words):
        filled += values if len(words) > 1 else []
        if len(words) == 1:
            filled[0] += "".join(f" {shlex.quote(value)}" for value in values)
    return filled[0] if len(words) == 1 else filled
