"""Handlers whose names are numbers, for records."""

from __future__ import annotations

from taskpool import task


@task(name="7")
def reverse(data: bytes) -> bytes:
    return data[::-1]


@task(name="8")
def fail(data: bytes) -> None:
    raise ValueError(data)
