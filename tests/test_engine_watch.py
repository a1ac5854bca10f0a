"""When a job is asked for its stack, interrupted and killed: a page that is written by hand, and times that are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool.clock import NS
from taskpool.engines.engine import Limits
from taskpool.engines.watch import MS, REPEAT_NS, STACK_LEAD_NS, Watch
from taskpool.wire.page import (
    CANCEL,
    CANCEL_KIND,
    CANCEL_REQUEST,
    CANCEL_SOFT_TIMEOUT,
    CURRENT,
    EXTEND,
    EXTEND_N,
    PROGRESS_N,
    PROGRESS_SEQ,
    STARTED,
    Page,
)

T0 = 1000 * NS


class Target:
    """Notes what was done, and does not die unless it runs that job."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.done: list[object] = []

    def ask_stack(self) -> None:
        self.done.append("stack")

    def interrupt(self) -> None:
        self.done.append("interrupt")

    def strike(self, n: int, why: str) -> bool:
        if self.page.words[CURRENT] != n:
            return False
        self.done.append((n, why))
        return True


class Scene:
    """One watch; monotonic and boot time are the same here, except where a test lets the machine sleep."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.target = Target(page)
        self.watch = Watch(page, self.target)
        self.now = T0
        self.slept = 0

    def arm(self, limits: Limits) -> None:
        self.watch.arm(limits, self.now, self.now + self.slept, self.now // 1000)

    def begin(self, n: int) -> None:
        self.page.words[STARTED] = self.now
        self.page.words[CURRENT] = n

    def run(self, until: int) -> list[object]:
        """Let time pass as the killer's thread does: from look to look. Return what was done, with times relative to T0."""
        seen: list[object] = []
        while True:
            looks = [self.watch.next_mono]
            looks.append(None if self.watch.next_boot is None else self.watch.next_boot - self.slept)
            due = [at for at in looks if at is not None]
            if not due or min(due) > until:
                self.now = until
                return seen
            assert min(due) >= self.now - STACK_LEAD_NS, "looks go forward"
            self.now = max(self.now, min(due))
            self.watch.step(self.now, self.now + self.slept)
            seen += [(self.now - T0, one) for one in self.target.done]
            self.target.done.clear()
            if any(isinstance(one, tuple) for _, one in seen):  # type: ignore[misc]
                return seen
            self.now += 1


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    page = Page.create(tmp_path / "w1.page", worker=1)
    yield Scene(page)
    page.close()


def test_a_timeout_asks_for_the_stack_and_kills_to_the_nanosecond(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=2.0))
    scene.now += 123_456
    scene.begin(1)
    end = 2 * NS + 123_456
    assert scene.run(T0 + 9 * NS) == [(end - STACK_LEAD_NS, "stack"), (end, (1, "timeout"))]


def test_what_waits_in_a_mailbox_does_not_time_out(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=1.0))
    assert scene.run(T0 + 10 * NS) == []
    scene.begin(1)
    assert scene.run(T0 + 99 * NS)[-1] == (11 * NS, (1, "timeout"))


def test_a_job_that_ended_is_watched_no_more(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=1.0))
    scene.begin(1)
    scene.page.words[CURRENT] = 0
    assert scene.run(T0 + 10 * NS) == []
    scene.watch.disarm(1)
    assert not scene.watch.busy
    scene.run(T0 + 20 * NS)
    assert scene.watch.next_mono is None


def test_an_extension_counts_for_its_own_job_only(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=1.0))
    scene.arm(Limits(2, timeout_s=1.0))
    scene.begin(1)
    scene.page.words[EXTEND], scene.page.words[EXTEND_N] = 5 * NS, 1
    assert scene.run(T0 + 5 * NS) == []
    scene.watch.disarm(1)
    scene.begin(2)
    assert scene.run(T0 + 99 * NS)[-1] == (6 * NS, (2, "timeout"))


def test_a_sleeping_machine_costs_the_timeout_nothing_and_the_deadline_all(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=100.0, deadline_at=(T0 + 60 * NS) // 1000))
    scene.begin(1)
    assert scene.run(T0 + 10 * NS) == []
    scene.slept += 45 * NS
    assert scene.run(T0 + 99 * NS)[-1] == (15 * NS, (1, "deadline"))


def test_a_deadline_that_passed_in_the_mailbox_kills_at_the_begin(scene: Scene) -> None:
    scene.arm(Limits(1, deadline_at=(T0 + NS) // 1000))
    assert scene.run(T0 + 2 * NS) == []
    scene.begin(1)
    ((_, stack), (at, kill)) = scene.run(T0 + 3 * NS)
    assert (stack, kill) == ("stack", (1, "deadline"))
    assert at <= 2 * NS + 10 * MS


def test_the_nearest_of_several_limits_wins(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=5.0, heartbeat_s=3.0, deadline_at=(T0 + 4 * NS) // 1000))
    scene.begin(1)
    assert scene.run(T0 + 99 * NS)[-1] == (3 * NS, (1, "heartbeat"))


def test_heartbeats_put_the_kill_off(scene: Scene) -> None:
    scene.arm(Limits(1, heartbeat_s=1.0))
    scene.begin(1)
    scene.page.words[PROGRESS_N] = 1
    for beat in range(1, 20):
        scene.page.words[PROGRESS_SEQ] = 2 * beat
        assert scene.run(T0 + beat * NS * 8 // 10) == []
    ((_, _), (at, kill)) = scene.run(T0 + 99 * NS)
    assert kill == (1, "heartbeat")
    assert 0 <= at - (18 * NS * 8 // 10 + NS) <= NS // 8


def test_a_heartbeat_of_the_job_before_is_none_of_this_one(scene: Scene) -> None:
    scene.page.words[PROGRESS_N], scene.page.words[PROGRESS_SEQ] = 1, 2
    scene.arm(Limits(2, heartbeat_s=1.0))
    scene.begin(2)
    assert scene.run(T0 + 99 * NS)[-1] == (NS, (2, "heartbeat"))


def test_a_soft_timeout_is_signalled_until_the_job_ends_or_is_killed(scene: Scene) -> None:
    scene.arm(Limits(1, timeout_s=2.0, soft_timeout_s=1.5))
    scene.begin(1)
    seen = scene.run(T0 + 99 * NS)
    interrupts = [at for at, what in seen if what == "interrupt"]
    assert interrupts == [15 * NS // 10, 17 * NS // 10, 19 * NS // 10]
    assert (scene.page.words[CANCEL], scene.page.words[CANCEL_KIND]) == (1, CANCEL_SOFT_TIMEOUT)


def test_a_cancel_is_repeated_and_ends_in_a_kill(scene: Scene) -> None:
    scene.begin(1)
    scene.watch.cancel(1, 0.5, "cancel", scene.now)
    scene.watch.step(scene.now, scene.now)
    assert scene.target.done == ["interrupt"]
    scene.target.done.clear()
    half = NS // 2
    seen = scene.run(T0 + 9 * NS)
    assert [at for at, what in seen if what == "interrupt"] == [REPEAT_NS, 2 * REPEAT_NS]
    assert seen[-2:] == [(half - STACK_LEAD_NS, "stack"), (half, (1, "cancel"))]


def test_a_cancel_in_the_mailbox_is_named_on_the_page_and_never_kills(scene: Scene) -> None:
    scene.begin(1)
    scene.watch.cancel(3, 0.0, "cancel", scene.now)
    scene.watch.step(scene.now, scene.now)
    assert (scene.page.words[CANCEL], scene.page.words[CANCEL_KIND]) == (3, CANCEL_REQUEST)
    assert scene.run(T0 + 2 * NS) == []
    scene.watch.disarm(3)
    assert not scene.watch.busy


def test_a_later_cancel_may_shorten_the_grace_and_not_lengthen_it(scene: Scene) -> None:
    scene.begin(1)
    scene.watch.cancel(1, 10.0, "cancel", scene.now)
    scene.watch.cancel(1, 1.0, "stop", scene.now)
    scene.watch.cancel(1, 20.0, "cancel", scene.now)
    scene.watch.step(scene.now, scene.now)
    assert scene.run(T0 + 99 * NS)[-1] == (NS, (1, "stop"))


def test_a_kill_asks_for_the_stack_and_raises_nothing(scene: Scene) -> None:
    scene.begin(1)
    scene.watch.cancel(1, STACK_LEAD_NS / NS, "cancel", scene.now)
    scene.watch.step(scene.now, scene.now)
    assert scene.target.done == ["stack"]
    scene.target.done.clear()
    assert scene.run(T0 + NS) == [(STACK_LEAD_NS, (1, "cancel"))]


def test_jobs_without_limits_cost_nothing(scene: Scene) -> None:
    scene.arm(Limits(1))
    assert not scene.watch.busy
    assert scene.watch.next_mono is None
