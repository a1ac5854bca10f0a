"""Makes `tests` importable from its folders; workers get the same search path."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from taskpool import Client
    from tests.peer import Peer

pytest.register_assert_rewrite("tests.engine_rig")

settings.register_profile("taskpool", deadline=None)  # no stopwatch: other processes may want the machine
settings.load_profile("taskpool")

# A shell starts what it puts in the background with SIGINT ignored, which children inherit: tests that press Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def connected() -> Iterator[Callable[..., tuple[Client, Peer]]]:
    """Make clients, each with a peer at the other end that a script speaks for."""
    from peer import Peer

    from taskpool.doors.client import Client
    from taskpool.doors.link import Link

    made: list[tuple[Client, Peer]] = []

    def make(script: Any = None) -> tuple[Client, Peer]:
        peer = Peer(script)
        made.append((Client(Link(peer.ours)), peer))
        return made[-1]

    yield make
    for client, peer in made:
        peer.close()
        client.close()
