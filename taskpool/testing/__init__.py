"""Helpers for tests of programs that use taskpool, and of taskpool itself."""

from typing import TYPE_CHECKING, Any

from taskpool.testing.planting import planted_fault as planted_fault
from taskpool.testing.simulation.world import simulate as simulate

if TYPE_CHECKING:
    from taskpool.testing.stores import StoreConformance as StoreConformance


def __getattr__(name: str) -> Any:
    """Load what needs pytest when somebody asks for it."""
    if name == "StoreConformance":
        from taskpool.testing.stores import StoreConformance

        return StoreConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
