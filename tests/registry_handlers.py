"""Handlers of tests/test_registry_doors.py: workers import them, the tests (mostly) know their names only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskpool import Controller, Handler, NonRetryableError, RetryableError, controller, register, task
from taskpool.model import Running


class Kind(enum.Enum):
    PLAIN = "plain"
    FANCY = "fancy"


@dataclass
class Order:
    item: str
    count: int
    at: datetime | None = None
    kind: Kind = Kind.PLAIN


@task(aliases=["old_total"], tags=["orders"])
def total(order: Order, price: float) -> float:
    """Return what an order costs.

    Not shown.
    """
    return order.count * price


@task
def echo_order(order: Order) -> Order:
    return order


@task
def by_number(names: dict[int, str], when: dict[datetime, int] | None = None) -> dict[int, str]:
    assert all(isinstance(each, datetime) for each in when or {})
    return names


@task(queue="mail", type="welcome", headers={"from": "handler"})
def welcome(name: str) -> str:
    return f"welcome, {name}"


@task(name="trace")
def trace(ctl: Controller) -> dict[str, Any]:
    running = ctl.task
    return {"headers": running.headers, "trace_ctx": running.trace_ctx, "owner": running.options.owner_id}


@task(name="fail")
def fail(how: str) -> None:
    if how == "retryable":
        raise RetryableError("busy", backoff=0.01)
    if how == "chained":
        try:
            raise NonRetryableError("inner")
        except NonRetryableError as error:
            raise ValueError("outer") from error
    raise ValueError(how)


@dataclass
class Mail:
    to: str
    copies: int = 1


class SendMail:
    """Send a mail."""

    type = "send_mail"
    payload_type = Mail

    def run(self, task: Running, ctl: Controller) -> list[str]:
        ctl.progress(1, 1, "sent")
        return [f"{task.id}:{task.payload.to}"] * task.payload.copies


handler: Handler = SendMail()
send_mail = register(handler, aliases=["mailer"], max_attempts=2)


def plain(n: int) -> int:
    return controller().attempt + n
