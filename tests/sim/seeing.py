"""Whether the simulation sees a planted fault, and by its laws: not because the fault itself fits the code no longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskpool.testing.simulation.fates import LawBroken

MISFITS = (TypeError, AttributeError, NameError)


def check_seen(name: str, seeds: int, run: Callable[[int], object]) -> None:
    """Run seeds until one breaks a law, and say which; fail if none does."""
    for seed in range(seeds):
        try:
            run(seed)
        except LawBroken as broken:
            if isinstance(broken.__cause__, MISFITS):
                pytest.fail(f"the fault does not fit the code: {broken}")
            print(f"seed {seed}: {str(broken).splitlines()[0]}")
            return
    pytest.fail(f"{seeds} seeds did not show that {name.replace('_', ' ')}")
