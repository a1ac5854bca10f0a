"""Each test that asks for `place` must leave no process behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.processes.evidence")


@pytest.fixture
def tag(tmp_path: Path) -> Iterator[str]:
    """A word in the environment of every process that the test starts; in the end none may be alive."""
    from tests.processes import evidence  # after it was registered above

    tag = f"{os.getpid()}-{tmp_path.name}"
    before = os.environ.get(evidence.TAG)
    os.environ[evidence.TAG] = tag
    try:
        yield tag
        evidence.wait_gone(tag)
    finally:
        if before is None:
            del os.environ[evidence.TAG]
        else:
            os.environ[evidence.TAG] = before
        for pid in evidence.tagged(tag):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def place(tmp_path: Path, tag: str) -> Path:
    """A directory for a store, its evidence and its ledger."""
    return tmp_path
