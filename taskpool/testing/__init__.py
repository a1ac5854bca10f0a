"""Helpers for tests of programs that use taskpool, and of taskpool itself."""

from taskpool.testing.planting import planted_fault as planted_fault
