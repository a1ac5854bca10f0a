"""Helpers for tests of programs that use taskpool, and of taskpool itself."""

from taskpool.testing.planting import planted_fault as planted_fault
from taskpool.testing.simulation.world import simulate as simulate
