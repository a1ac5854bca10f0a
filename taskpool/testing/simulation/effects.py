"""Effects in the model world: some bodies hand statements over, most of which can be applied, and the store must say which were.

They are statements that a real store can apply too, to the tables of `TABLES`.
"""

from __future__ import annotations

from random import Random
from typing import Final

from taskpool.wire.effects import Effect
from taskpool.wire.jobs import Report

TABLES: Final = (
    "CREATE TABLE sim_row(task INTEGER, attempt INTEGER)",
    "CREATE TABLE sim_one(id INTEGER PRIMARY KEY)",
    "INSERT INTO sim_one VALUES(1)",
)
ROW: Final = "INSERT INTO sim_row VALUES(?, ?)"
BAD: Final = (
    "INSERT INTO sim_one VALUES(1)",
    "INSERT OR ROLLBACK INTO sim_one VALUES(1)",  # ends the whole transaction
    "UPDATE task SET status = 'succeeded'",
)


def drawn(random: Random, task_id: int, attempt: int) -> list[Effect] | None:
    """Return what a body wants done with its success; mostly nothing, or a row that names it."""
    chance = random.random()
    if chance < 0.5:
        return None
    mine = [Effect(ROW, [task_id, attempt])]
    return mine if chance < 0.85 else [*mine, Effect(random.choice(BAD))]


def must_fail(report: Report) -> bool:
    """Return whether the effects of a report cannot be applied."""
    return any(effect.sql in BAD for effect in report.effects or ())
