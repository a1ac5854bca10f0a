"""What is said on stderr beside the work. It is never worth the work: nobody may be there to read it, or no room for it."""

from __future__ import annotations

import sys

UNTOLD = (OSError, ValueError)  # the reader is gone, the disk is full; the stream is closed


def tell(words: str) -> None:
    """Write a line to stderr, if there is one and it takes it."""
    if sys.stderr is None:  # print would take stdout for it
        return
    try:
        print(words, file=sys.stderr, flush=True)
    except UNTOLD:
        pass


def on_terminal() -> bool:
    """Return whether stderr is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except UNTOLD:
        return False
