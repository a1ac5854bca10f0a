"""Whatever happens in whatever order, the scheduler keeps its promises: the simulation's laws, over many seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.core.commands import Command
from taskpool.core.events import Event
from taskpool.testing import simulate

from .sweep import CANNOT, Sweep, asked_seeds, story

ROOT = Path(__file__).resolve().parents[2]
FEW = range(10_000, 10_020)


def test_a_few_seeds_keep_every_promise() -> None:
    """The quick look: seeds that the sweep does not have."""
    for seed in FEW:
        simulate(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_promise_holds(sweep: Sweep) -> None:
    """No seed of the sweep breaks a law; a seed that does is named, with the command that shows it again."""
    if "TASKPOOL_SIM_SEED" in os.environ:
        print(*story(asked_seeds()[0]), sep="\n")
    assert not sweep.broken, "\n".join(sweep.broken)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_status_met_every_event_that_it_can(sweep: Sweep) -> None:
    """A sweep that never brings two things together proves nothing about them."""
    if {"TASKPOOL_SIM_SEED", "TASKPOOL_SIM_SEEDS"} & set(os.environ):
        pytest.skip("only a full sweep is asked what it met")
    assert not sweep.missing(), "\n".join(sweep.missing())


def test_every_event_says_which_statuses_it_cannot_meet() -> None:
    """A new event must be given its line in the table of what cannot be."""
    assert set(CANNOT) == {event.__name__ for event in Event.__args__}
    assert all(bool(never) == bool(why) for never, why in CANNOT.values())


@pytest.mark.parametrize("seed", [7, 19, 400])
def test_a_seed_tells_the_same_story_twice(seed: int) -> None:
    """Pure decisions, injected time, hashed jitter: the same events, the same commands, to the byte."""
    first = simulate(seed)
    assert simulate(seed) == first
    assert simulate(seed + 1).digest != first.digest


def test_a_seed_tells_the_same_story_to_another_process() -> None:
    """Nothing depends on the addresses of objects or on the hashes of strings."""
    command = [sys.executable, "-m", "tests.sim", "3", "--digest"]
    told = {
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert told == {simulate(3).digest}


def test_commands_and_events_are_plain_data() -> None:
    """What goes in and out can be written down, so that a run can be."""
    for kind in (*Event.__args__, *Command.__args__):
        assert hasattr(kind, "__struct_fields__"), kind
