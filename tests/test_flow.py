"""Graphs through a pool: futures as arguments, flows, what failures do, retry, cancel, explain, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import (
    ArgCountError,
    ArgTypeError,
    Flow,
    InvalidHandler,
    InvalidPayload,
    InvalidTask,
    NotFound,
    Pool,
    TaskCancelled,
    task,
)
from taskpool.doors.flow import Step
from taskpool.store.reading import Reader
from tests.waiting import wait_file


@dataclasses.dataclass
class Point:
    x: int
    y: int


@task
def point(x: int, y: int) -> Point:
    return Point(x, y)


@task
def norm(at: Point) -> int:
    return abs(at.x) + abs(at.y)


def one() -> int:
    return 1


def add(a: Any, b: Any) -> Any:
    return a + b


def total(values: list[int]) -> int:
    return sum(values)


def keep(value: Any) -> Any:
    return value


def fail(*values: Any) -> None:
    raise ValueError("no")


def fail_unless(path: str, value: int = 0) -> int:
    if not Path(path).exists():
        raise ValueError("not yet")
    return value


def wait_for(path: str) -> str:
    wait_file(path)
    return path


def note(path: str, *values: Any) -> None:
    with open(path, "a") as file:
        file.write("x")


def large(n: int) -> bytes:
    return bytes(n)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=2) as pool:
        yield pool


def reason(pool: Pool, step: Step[Any]) -> tuple[str, str | None, str]:
    found = pool.get(step.id)
    return found.status.value, found.finish_reason, found.error.kind if found.error else ""


# ---- futures as arguments -----------------------------------------------------------------------------------------------


def test_a_future_as_an_argument_is_an_edge(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = pool.submit(wait_for, str(gate))
    second = pool.submit(add, first, "!")
    waiting = pool.get(second.id)
    assert (waiting.status, waiting.wait_reason, waiting.parents) == ("pending", "parents", (first.id,))
    explained = second.explain()
    assert f"of which 0 of 1 have ended; it waits for {first.id} (" in explained.sentence
    assert [each.code for each in explained.reasons] == ["parents"]
    gate.touch()
    assert second.result(10) == f"{gate}!"


def test_an_ended_parent_and_one_that_is_not_yet_stored(pool: Pool) -> None:
    ended = pool.submit(one)
    ended.result(10)
    assert pool.submit(add, ended, 1).result(10) == 2
    fresh = pool.submit_nowait(one)
    assert pool.submit_nowait(add, fresh, b=fresh).result(10) == 2
    assert list(pool.map(add, [ended, fresh], [10, 20])) == [11, 21]
    assert [each.result(10) for each in pool.submit_many(keep, [ended, fresh, 5])] == [1, 1, 5]


def test_futures_at_any_depth(pool: Pool) -> None:
    parents = [pool.submit(add, n, 0) for n in range(20)]
    assert pool.submit(total, parents).result(10) == 190
    found = pool.submit(keep, {"a": [parents[3], (parents[3], parents[4])]}).result(10)
    assert found == {"a": [3, (3, 4)]}


def test_typed_handlers_take_and_give_results_by_their_annotations(pool: Pool) -> None:
    assert pool.submit(norm, pool.submit(point, 3, -4)).result(10) == 7
    wrong = pool.submit(norm, pool.submit(one))
    with pytest.raises(Exception, match="Point"):
        wrong.result(10)
    assert pool.get(wrong.id).error is not None
    assert pool.get(wrong.id).error.kind == "arg_type"  # type: ignore[union-attr]


def test_functions_by_value_take_results(pool: Pool) -> None:
    offset = 5
    assert pool.submit(lambda value: value + offset, pool.submit(one)).result(10) == 6


def test_after_is_an_edge_without_an_argument(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = pool.submit(wait_for, str(gate))
    second = pool.options(after=[first]).submit(one)
    third = pool.options(after=second.id).submit(one)
    assert pool.get(third.id).parents == (second.id,)
    gate.touch()
    assert third.result(10) == 1
    with pytest.raises(NotFound, match="999999"):
        pool.options(after=999_999).submit(one)
    with pytest.raises(InvalidTask, match="after"):
        pool.options(after="x")


def test_a_failed_parent_cancels_what_needs_its_result(pool: Pool) -> None:
    bad = pool.submit(fail)
    child = pool.submit(add, bad, 1)
    with pytest.raises(TaskCancelled, match=f"task {bad.id} "):
        child.exception(10)
    found = pool.get(child.id)
    assert (found.status, found.finish_reason, found.attempt) == ("cancelled", "upstream", 0)
    late = pool.submit(add, bad, 2)  # its parent has failed already
    with pytest.raises(TaskCancelled, match="failed"):
        late.exception(10)


def test_a_future_of_another_pool_is_refused(pool: Pool) -> None:
    with Pool(workers=1) as other, pytest.raises(InvalidTask, match="another pool"):
        pool.submit(keep, other.submit(one))


def test_what_cannot_be_sent_is_refused_as_without_futures(pool: Pool) -> None:
    with pytest.raises(InvalidPayload, match="generator"):
        pool.submit(keep, (n for n in ()))
    with pytest.raises(InvalidPayload, match="generator"):
        pool.submit(keep, [pool.submit(one), (n for n in ())])


def test_a_step_that_cannot_be_sent_is_refused_where_it_is_added(pool: Pool) -> None:
    flow = Flow("strict")
    good = flow.submit(point, 3, -4)
    with pytest.raises(ArgTypeError, match="'x'"):
        flow.submit(point, "three", -4)  # type: ignore[arg-type]
    with pytest.raises(ArgCountError, match="point"):
        flow.step(point, 3, after=good)
    with pytest.raises(InvalidPayload, match="generator"):
        flow.submit(keep, [good, (n for n in ())])
    with pytest.raises(InvalidHandler, match="cannot be called"):
        flow.step(5)  # type: ignore[arg-type]
    last = flow.submit(norm, good)
    assert pool.submit_flow(flow).wait(10).counts == {"succeeded": 2}, "what was refused is no part of it"
    assert last.result() == 7


def test_a_step_takes_its_arguments_as_they_are_when_it_is_added(pool: Pool) -> None:
    flow = Flow("snapshot")
    mutable = [1]
    step = flow.submit(keep, mutable)
    mutable.append(2)
    pool.submit_flow(flow)
    assert step.result(10) == [1]


def test_results_are_given_by_reference_and_not_stored_again(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        big = pool.submit(large, 3_000_000)
        assert [each.result(20) for each in pool.submit_many(len, [big] * 5)] == [3_000_000] * 5
        children = pool.list(name="builtins:len") or [one for one in pool.list() if one.parents]
        assert len(children) == 5
    with Reader(tmp_path / "x.db") as reader:
        assert all(len(reader.task(child.id).payload) < 200 for child in children)


def test_results_that_are_too_big_together(pool: Pool) -> None:
    parents = [pool.submit(large, 12_000_000) for _ in range(3)]
    child = pool.submit(keep, parents)
    assert child.exception(30) is not None
    error = pool.get(child.id).error
    assert "[decode] the results that it takes as arguments have 34.3 MiB, the limit is 32 MiB" in str(error)


# ---- flows --------------------------------------------------------------------------------------------------------------


def test_a_flow_runs_in_the_order_of_its_edges(pool: Pool) -> None:
    with pool.flow("nightly") as flow:
        first = flow.submit(one)
        second = flow.submit(add, first, 2)
        third = flow.submit(total, [first, second, second])
    assert third.result(10) == 7
    state = flow.wait(10)
    assert (state.id, state.name, state.status, state.counts) == (first.id, "nightly", "succeeded", {"succeeded": 3})
    assert pool.flow_state(flow.id) == state
    assert pool.flows()[0] == state
    found = pool.get(third.id)
    assert (found.dag_id, found.step_id, found.parents) == (flow.id, "total", (first.id, second.id))
    assert {each.id for each in pool.list(flow=flow.id)} == {first.id, second.id, third.id}


def test_nothing_is_submitted_when_the_block_is_left_by_an_exception(pool: Pool) -> None:
    before = len(pool.flows(1000))
    with pytest.raises(RuntimeError), pool.flow("never") as flow:
        flow.submit(one)
        raise RuntimeError
    assert len(pool.flows(1000)) == before
    with pytest.raises(InvalidTask, match="not submitted"):
        flow.id


def test_conditions(pool: Pool) -> None:
    flow = Flow("conditions")
    good, bad = flow.submit(one), flow.submit(fail)
    skipped = flow.submit(add, bad, 1)
    rescue = flow.step(keep, skipped, on="failed", label="rescue")
    needless = flow.step(keep, 1, after=[good], on="failed")
    anyhow = flow.step(keep, [good, bad], on="any")
    mixed = flow.step(keep, good).after(bad, on="failed").after(needless, on="any")
    pool.submit_flow(flow)
    state = flow.wait(10)
    assert (state.status, state.counts) == ("failed", {"succeeded": 4, "failed": 1, "cancelled": 2})
    assert rescue.result() is None
    assert anyhow.result() == [1, None]
    assert mixed.result() == 1
    assert reason(pool, skipped) == ("cancelled", "upstream", "upstream")
    assert reason(pool, needless) == ("cancelled", "upstream", "upstream")
    assert f"task {good.id} " in pool.get(needless.id).error.message  # type: ignore[union-attr]


def test_a_failure_cancels_a_long_chain_in_one_turn(pool: Pool) -> None:
    flow = Flow("chain")
    step: Step[Any] = flow.submit(fail)
    for _ in range(300):
        step = flow.submit(keep, step)
    turns = pool.stats().turns
    pool.submit_flow(flow)
    assert flow.wait(20).counts == {"failed": 1, "cancelled": 300}
    assert pool.stats().turns - turns < 100
    assert f"task {flow.steps[-2].id} " in pool.get(step.id).error.message  # type: ignore[union-attr]


def test_a_cycle_is_refused_and_named(pool: Pool) -> None:
    flow = Flow("ring")
    first = flow.submit(one)
    second = flow.submit(add, first, 1)
    third = flow.step(keep, second, label="last")
    first.after(third)
    before = pool.count()
    with pytest.raises(InvalidTask, match=r"one \(1\) → add \(2\) → last \(3\) → one \(1\)"):
        pool.submit_flow(flow)
    assert pool.count() == before, "nothing of it is stored"


def test_steps_may_come_before_their_parents(pool: Pool) -> None:
    flow = Flow("backwards")
    child = flow.step(keep, 1)
    parent = flow.submit(one)
    child.after(parent)
    pool.submit_flow(flow)
    assert parent.id < child.id
    assert flow.wait(10).status == "succeeded"


def test_a_flow_may_depend_on_tasks_outside(pool: Pool) -> None:
    outside = pool.submit(one)
    with pool.flow("outer") as flow:
        inner = flow.step(add, outside, 1, after=outside.id)
    assert inner.result(10) == 2
    with pool.flow("next") as following:
        last = following.submit(add, inner, 1)
    assert last.result(10) == 3


def test_wrong_use(pool: Pool) -> None:
    with pytest.raises(InvalidTask, match="name"):
        Flow("")
    flow = Flow("empty")
    with pytest.raises(InvalidTask, match="no steps"):
        pool.submit_flow(flow)
    with pytest.raises(InvalidTask, match="on must be"):
        flow.step(one, on="succeeded")  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="ids of tasks"):
        flow.step(one, after=["x"])
    with pytest.raises(InvalidTask, match="no pool"), Flow("x"):
        pass
    other = Flow("other")
    mine = flow.submit(keep, other.submit(one))
    with pytest.raises(InvalidTask, match="not submitted"):
        pool.submit_flow(flow)
    with pytest.raises(InvalidTask, match="not submitted"):
        mine.result()
    with pytest.raises(InvalidPayload, match="belongs to its process"):
        pool.submit(keep, 1).__reduce__()
    pool.submit_flow(other)
    for again in (lambda: pool.submit_flow(other), lambda: other.submit(one)):
        with pytest.raises(InvalidTask, match="submitted already"):
            again()
    with pytest.raises(NotFound):
        pool.flow_state(10**9)


def test_fail_fast_cancels_all_others(pool: Pool, tmp_path: Path) -> None:
    with pool.flow("fast", fail_fast=True) as flow:
        running = flow.submit(wait_for, str(tmp_path / "never"))
        bad = flow.submit(fail)
        late = flow.step(one, after=running, on="any")
        apart = flow.step(wait_for, str(tmp_path / "never"), after=running)
    state = flow.wait(20)
    assert (state.status, state.fallen, state.fail_fast) == ("failed", bad.id, True)
    assert state.counts == {"failed": 1, "cancelled": 3}
    for step in (running, late, apart):
        assert reason(pool, step) == ("cancelled", "upstream", "upstream")
    words = f"task {bad.id} ({pool.get(bad.id).name}), with whose failure its flow ends, has ended failed"
    for step in (running, late, apart):
        assert pool.get(step.id).error.message == words  # type: ignore[union-attr]


def test_retry_goes_on_from_the_failed_steps(pool: Pool, tmp_path: Path) -> None:
    seen, ready = tmp_path / "seen", tmp_path / "ready"
    with pool.flow("again", fail_fast=True) as flow:
        first = flow.submit(note, str(seen))
        second = flow.submit(fail_unless, str(ready), 5)
        second.after(first)
        third = flow.submit(add, second, 1)
        fourth = flow.submit(add, third, 1)
    assert flow.wait(10).counts == {"succeeded": 1, "failed": 1, "cancelled": 2}
    ready.touch()
    assert flow.retry() == 3
    assert fourth.result(10) == 7
    state = flow.wait(10)
    assert (state.status, state.fallen, state.counts) == ("succeeded", None, {"succeeded": 4})
    assert seen.read_text() == "x", "what had succeeded was used again"
    assert (pool.get(fourth.id).round, pool.get(first.id).round) == (1, 0)
    assert flow.retry() == 0


def test_a_child_alone_cannot_be_revived_while_its_parent_has_failed(pool: Pool) -> None:
    bad = pool.submit(fail)
    child = pool.submit(keep, bad)
    pool.wait(child.id, 10)
    again = child.retry()
    assert pool.wait(again.id, 10).finish_reason == "upstream"
    assert pool.get(child.id).round == 1


def test_cancel_of_a_flow(pool: Pool, tmp_path: Path) -> None:
    with pool.flow("stopped") as flow:
        first = flow.submit(wait_for, str(tmp_path / "never"))
        second = flow.submit(keep, first)
    assert flow.cancel("enough") == 2
    state = flow.wait(20)
    assert (state.status, state.counts) == ("cancelled", {"cancelled": 2})
    assert pool.get(second.id).error.message == "enough"  # type: ignore[union-attr]


def test_a_deadline_ends_a_step_that_waits_for_its_parents(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = pool.submit(wait_for, str(gate))
    late = pool.options(after=first, deadline=0.05).submit(one)
    expired = pool.options(after=first, expires=0.05).submit(one)
    assert pool.wait(late.id, 10).error.kind == "deadline"  # type: ignore[union-attr]
    assert pool.wait(expired.id, 10).finish_reason == "expired"
    gate.touch()
    first.result(10)


def test_a_delay_counts_beside_the_parents(pool: Pool) -> None:
    first = pool.submit(one)
    second = pool.options(delay=3600).submit(keep, first)
    first.result(10)
    third = pool.submit(keep, first)
    third.result(10)  # by now the turn that let the second go is over
    waiting = pool.get(second.id)
    assert (waiting.status, waiting.wait_reason) == ("pending", "time")
    second.cancel()


def test_a_graph_goes_on_in_another_pool(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        with pool.flow("long") as flow:
            first = flow.submit(wait_for, str(gate))
            second = flow.submit(add, first, "!")
            last = flow.submit(keep, [first, second])
        pool.stop()
    gate.touch()
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        assert pool.future(last.future._id).result(10) == [str(gate), f"{gate}!"]
        assert pool.flow_state(flow.steps[0].future._id).status == "succeeded"


def test_ten_thousand_steps(tmp_path: Path) -> None:
    """All of them in one submit; each runs once, after its parents."""
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        layers: list[list[Step[Any]]] = [[]]
        flow = Flow("wide")
        for _ in range(100):
            before = layers[-1]
            layers.append([flow.step(one, after=[before[n], before[n - 1]] if before else ()) for n in range(100)])
        pool.submit_flow(flow)
        assert flow.wait(50).counts == {"succeeded": 10_000}
    with Reader(tmp_path / "x.db") as reader:
        tasks = {task.id: task for page in range(11) for task in reader.tasks(limit=1000, before=None, offset=page * 1000)}
        assert len(tasks) == 10_000
        for found in tasks.values():
            assert found.charged == 1
            assert all(tasks[parent].finished_at <= found.started_at for parent in found.parents)  # type: ignore[operator]


def test_steps_that_somebody_else_retries_are_waited_for_again(pool: Pool, tmp_path: Path) -> None:
    ready, gate = tmp_path / "ready", tmp_path / "gate"
    with pool.flow("mended") as flow:
        bad = flow.submit(fail_unless, str(ready), 5)
        slow = flow.step(wait_for, str(gate), after=bad)
        last = flow.submit(keep, slow)
    assert flow.wait(10).status == "failed"
    ready.touch()
    pool.retry(flow=flow.id)  # not flow.retry(): it is told nothing of it
    with pytest.raises(TimeoutError):
        flow.wait(0.05)
    gate.touch()
    assert flow.wait(20).status == "succeeded"
    assert (slow.result(), last.result()) == (str(gate), str(gate))
