"""The simulation is worth its time only if it sees what is wrong: each planted fault must be caught, within few seeds."""

from __future__ import annotations

import os

import pytest

from taskpool.testing.simulation.world import simulate

from .faults import FAULTS
from .seeing import check_seen

SEEDS_MAX = int(os.environ.get("TASKPOOL_SIM_FAULT_SEEDS", "120"))


@pytest.mark.slow  # all together, and none depends on the interpreter
@pytest.mark.parametrize("name", FAULTS)
def test_the_simulation_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler with this fault does not survive the seeds."""
    FAULTS[name](monkeypatch)
    check_seen(name, SEEDS_MAX, simulate)
