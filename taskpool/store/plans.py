"""What else is stored when tasks of a turn are refused: of a schedule all its times or none, of the inbox what is a task now."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from taskpool.core.commands import Advance, Occur, Plan, Taken


def _refused_schedules(plans: Sequence[Plan], refused: Collection[int]) -> set[str]:
    return {plan.occurrence.schedule for plan in plans if isinstance(plan, Occur) and plan.occurrence.task_id in refused}


def refused_with(plans: Sequence[Plan], refused: Collection[int]) -> set[int]:
    """Return all tasks that schedules made in this turn which made one of the refused."""
    names = _refused_schedules(plans, refused)
    made = [plan.occurrence for plan in plans if isinstance(plan, Occur) and plan.occurrence.schedule in names]
    return {occurrence.task_id for occurrence in made if occurrence.task_id is not None}


def unrefused(plans: Sequence[Plan], refused: Collection[int]) -> list[Plan]:
    """Return the plans without the times of schedules that made a refused task, and what leaves the inbox as one of those."""
    names = _refused_schedules(plans, refused)

    def stays(plan: Plan) -> bool:
        if isinstance(plan, Occur):
            return plan.occurrence.schedule not in names
        if isinstance(plan, Taken):
            return plan.id not in refused
        return not isinstance(plan, Advance) or plan.name not in names

    return [plan for plan in plans if stays(plan)]
