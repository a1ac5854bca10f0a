"""One sweep a session, and its table at the end of the run."""

from __future__ import annotations

import pytest

from .sweep import Sweep, asked_seeds

_sweeps: list[Sweep] = []


@pytest.fixture(scope="session")
def sweep() -> Sweep:
    """The sweep that the environment asks for."""
    sweep = Sweep()
    sweep.run(asked_seeds())
    _sweeps.append(sweep)
    return sweep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how often each status met each event."""
    for sweep in _sweeps:
        terminalreporter.section("simulation")
        terminalreporter.write_line(sweep.report())
