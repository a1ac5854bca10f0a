"""Encoders of calls, one for each function, shared by a pool and all its views: to look at a signature takes longer than a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskpool.wire.codec import CallEncoder

ENCODERS_MAX = 512


class Encoders:
    """Encoders by the identity of their functions, which are held too, so that an id is not used again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, CallEncoder]] = {}

    def of(self, fn: Callable[..., Any]) -> CallEncoder:
        """Return the encoder of a function's calls. InvalidHandler for what is not callable."""
        found = self._known.get(id(fn))
        if found is None:
            from taskpool.wire.codec import CallEncoder

            if len(self._known) >= ENCODERS_MAX:
                self._known.clear()
            found = self._known[id(fn)] = fn, CallEncoder(fn)
        return found[1]
