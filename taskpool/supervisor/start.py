"""The first moments of a Pool's supervisor: the zygote is executed before anything else is imported, so that both start at once."""

from __future__ import annotations

import gc
import os

from taskpool.engines.launch import launch, settle_in


def main(argv: list[str]) -> int:
    """Serve the script at the other end of the inherited socket that `--fd N` names. Return the exit code."""
    gc.disable()  # as it stays: see `process`
    settle_in()
    zygote = launch(new_mark())
    from taskpool.supervisor.process import main as serve

    return serve(argv, zygote)


def new_mark() -> str:
    """Return a name that no other owner of any store has."""
    return os.urandom(12).hex()
