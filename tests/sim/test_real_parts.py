"""The same world, the same laws, with the supervisor's own loop, desk and store in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskpool.testing import simulate

from .loop_faults import LOOP_FAULTS
from .real_parts import RealShell, real_parts
from .seeing import check_seen

FAULT_SEEDS = 120
SEEDS = int(os.environ.get("TASKPOOL_SIM_REAL_SEEDS", "50"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_loop_desk_and_store_keep_every_promise(tmp_path: Path) -> None:
    """Killed at every fault point, locked out, without room: nothing acknowledged is lost, and every end is told once."""
    with real_parts(tmp_path) as store:
        for seed in range(SEEDS):
            simulate(seed, shell=RealShell, store=store)


@pytest.mark.slow  # all together, and none depends on the interpreter
@pytest.mark.parametrize("name", LOOP_FAULTS)
def test_the_world_sees(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop or desk with this fault does not survive the seeds."""
    LOOP_FAULTS[name](monkeypatch)
    with real_parts(tmp_path) as store:
        check_seen(name, FAULT_SEEDS, lambda seed: simulate(seed, shell=RealShell, store=store))


def test_a_few_seeds_for_every_interpreter(tmp_path: Path) -> None:
    with real_parts(tmp_path) as store:
        for seed in range(1000, 1003):
            simulate(seed, shell=RealShell, store=store)
