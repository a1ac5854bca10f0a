"""Keys and unique keys as callers meet them: in a pool, in its store, and on the command line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import AlreadyExists, IllegalTransition, InvalidTask, Pool, RetryPolicy, TaskCancelled, wait
from taskpool.worker.controller import current


def note(file: str) -> None:
    """Write when the body began and ended."""
    began = time.monotonic()
    time.sleep(0.01)
    with open(file, "a") as lines:
        lines.write(f"{began} {time.monotonic()} {current().task.id}\n")


def hold(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.005)
    return "let go"


def bill(customer: int, amount: int) -> str:
    return f"{customer}: {amount}"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("keys") / "x.db", workers=3, durability="process") as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that bodies of `hold` wait for; there at the end, so that nothing waits for ever."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


def test_bodies_of_a_key_never_overlap_and_keep_their_order(pool: Pool, tmp_path: Path) -> None:
    futures = pool.options(key="one").submit_many(note, [str(tmp_path / "lines")] * 20)
    wait(futures)
    lines = [line.split() for line in (tmp_path / "lines").read_text().splitlines()]
    assert [int(number) for _, _, number in lines] == [future.id for future in futures]
    assert all(float(end) <= float(begin) for (_, end, _), (begin, _, _) in itertools.pairwise(lines))


def test_what_waits_for_its_key_names_who_has_it(pool: Pool, gate: Path) -> None:
    keyed = pool.options(key="vault")
    first, second = keyed.submit(hold, str(gate)), keyed.submit(str, 2)
    assert pool.submit(str, 3).result(20) == "3", "others pass"
    assert second.task().wait_reason == "key"
    explanation = second.explain()
    assert explanation.sentence.startswith(f"task {second.id} waits for serialization key 'vault', held by task {first.id} for ")
    assert [reason.code for reason in explanation.reasons] == ["key", "worker"]
    assert [found.id for found in pool.list(key="vault")] == [second.id, first.id]
    assert pool.count(key="vault") == 2
    assert (second.task().key, second.task().unique) == ("vault", None)
    gate.touch()
    assert second.result(20) == "2"


def fail_first(attempt: int) -> int:
    if current().attempt < attempt:
        raise ValueError("not yet")
    return current().attempt


def test_what_waits_for_a_retry_keeps_its_key_and_is_named(pool: Pool) -> None:
    keyed = pool.options(key="again", max_attempts=2)
    first = keyed.options(retry=RetryPolicy(initial_interval=600.0, maximum_attempts=2)).submit(fail_first, 2)
    behind = keyed.submit(str, 2)
    while first.task().status != "retrying":
        time.sleep(0.01)
    words = f"waits for serialization key 'again', held by task {first.id}, which keeps it until its next attempt"
    assert behind.explain().reasons[0].detail == words
    first.cancel()
    assert behind.result(20) == "2"


def test_a_unique_task_is_the_existing_one(pool: Pool, gate: Path) -> None:
    unique = pool.options(unique="u")
    first, second = unique.submit(hold, str(gate)), unique.submit(hold, str(gate))
    assert first.id == second.id
    assert {future.id for future in unique.submit_many(hold, [str(gate)] * 3)} == {first.id}
    with pytest.raises(AlreadyExists, match=f"task {first.id} has the unique key 'u'"):
        unique.options(on_conflict="raise").submit(hold, str(gate)).result(20)
    with pytest.raises(AlreadyExists):
        unique.options(on_conflict="replace").submit(str, 1).result(20)  # it runs
    gate.touch()
    assert (first.result(20), second.result(20)) == ("let go", "let go")
    assert unique.submit(str, 5).result(20) == "5", "it has ended: the key is free"


def test_a_new_round_is_refused_with_its_reason(pool: Pool, gate: Path) -> None:
    """Whichever door it is asked for at."""
    first = pool.options(unique="n").submit(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        first.result(20)
    second = pool.options(unique="n", key="n").submit(hold, str(gate))
    for again in (first.retry, lambda: pool.update_status(first.id, "pending")):
        with pytest.raises(IllegalTransition, match="another has its unique key 'n' now"):
            again()
    with pytest.raises(IllegalTransition, match="only what has ended can have another round"):
        second.retry()
    gate.touch()
    second.result(20)
    for again in (second.retry, lambda: pool.update_status(second.id, "pending")):
        with pytest.raises(IllegalTransition, match="force=True"):
            again()
    with pytest.raises(ValueError, match="no number"):
        first.retry().result(20)


def test_of_many_only_those_are_not_stored_whose_unique_key_another_has(pool: Pool) -> None:
    """And nobody loses the futures of the others."""
    unique = pool.options(unique=str, on_conflict="raise", delay=600)
    taken = unique.submit(str, 2)
    futures = unique.submit_many(str, [1, 2, 3, 3])
    stored = [futures[0].id, futures[2].id]
    assert [pool.get(task_id).unique for task_id in stored] == ["1", "3"]
    for future, holder in ((futures[1], taken.id), (futures[3], futures[2].id)):
        with pytest.raises(AlreadyExists, match=f"task {holder} has the unique key"):
            future.result(20)
    pool.cancel(name="builtins:str")


def test_replace_takes_the_place_of_what_waits(pool: Pool) -> None:
    unique = pool.options(unique="r", delay=600)
    first = unique.submit(str, 1)
    second = unique.options(on_conflict="replace", delay=0).submit(str, 2)
    assert second.result(20) == "2"
    with pytest.raises(TaskCancelled, match=f"replaced by task {second.id}"):
        first.result(20)
    assert first.task().finish_reason == "replaced"


def test_a_period_keeps_the_key_of_what_has_ended(pool: Pool) -> None:
    unique = pool.options(unique="p", unique_period=600)
    first = unique.submit(str, 1)
    assert first.result(20) == "1"
    again = unique.submit(str, 2)
    assert (again.id, again.result(20)) == (first.id, "1")


def test_keys_that_are_computed_from_the_arguments(pool: Pool, gate: Path) -> None:
    blocker = pool.options(key="customer-7").submit(hold, str(gate))
    bills = pool.options(
        key=lambda customer, amount: f"customer-{customer}", unique=lambda customer, amount: f"bill-{customer}-{amount}"
    )
    first, second, third = (bills.submit(bill, 7, amount) for amount in (10, 10, 20))
    assert (first.id, first.task().key, first.task().unique) == (second.id, "customer-7", "bill-7-10")
    gate.touch()
    assert third.result(20) == "7: 20"
    assert blocker.done()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": ""}, "key must be a text of 1 to 200 printable characters"),
        ({"key": "a" * 201}, "key must be a text"),
        ({"key": 7}, "key must be a text"),
        ({"unique": "a\n"}, "unique must be a text"),
        ({"key": "k", "key_limit": 0}, "key_limit"),
        ({"key": "k", "key_on_retry": "pass"}, "key_on_retry"),
        ({"unique": "u", "on_conflict": "ignore"}, "on_conflict"),
        ({"unique_period": 5}, "say unique= too"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_stored(pool: Pool, options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        pool.options(**options).submit(str, 1)  # type: ignore[arg-type]


def test_a_function_for_a_key_that_fails_says_so(pool: Pool) -> None:
    with pytest.raises(InvalidTask, match="the function for key fails on these arguments: ZeroDivisionError"):
        pool.options(key=lambda number: str(1 // number)).submit(str, 0)
    with pytest.raises(InvalidTask, match="unique must be a text"):
        pool.options(unique=lambda number: number).submit(str, 0)


def test_a_batch_and_a_graph_have_no_unique_keys(pool: Pool) -> None:
    with pytest.raises(InvalidTask, match="items of a batch"):
        pool.options(unique="b").map(str, [1], batch="b")
    first = pool.submit(str, 1)
    with pytest.raises(InvalidTask, match="waits for others"):
        pool.options(unique="g").submit(str, first)


def test_keys_hold_for_the_next_owner(tmp_path: Path) -> None:
    """What waited for its key waits for it again, in its order; one unique task is the one that was stored before."""
    store, lines = tmp_path / "x.db", str(tmp_path / "lines")
    with Pool(store, workers=2, durability="process") as pool:
        pool.queue("later", paused=True).options(key="k").submit_many(note, [lines] * 4)
        first = pool.options(queue="later", unique="u").submit(str, 1)
        pool.stop()
    with Pool(store, workers=2, durability="process") as pool:
        assert pool.options(unique="u").submit(str, 2).id == first.id
        pool.resume()
        for found in pool.list(queue="later"):
            assert pool.wait(found.id, 20).status == "succeeded"
    numbers = [int(line.split()[2]) for line in Path(lines).read_text().splitlines()]
    assert numbers == sorted(numbers)
    assert len(numbers) == 4


# ---- the command line -----------------------------------------------------------------------------------------------


def taskpool(store: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskpool", "-C", store, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_verbs(tmp_path: Path, gate: Path) -> None:
    """submit, ls, show, explain, cancel: keys as options, columns, facts, reasons and filters."""
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        holder = pool.options(key="k").submit(hold, str(gate))
        submitted = taskpool(pool.store, "submit", "builtins:str", "2", "--key", "k", "--unique", "u", "--print-id")
        number = int(submitted.stdout)
        assert taskpool(pool.store, "submit", "builtins:str", "2", "--unique", "u", "--print-id").stdout == submitted.stdout
        refused = taskpool(pool.store, "submit", "builtins:str", "2", "--unique", "u", "--on-conflict", "raise")
        assert refused.returncode != 0
        assert f"task {number} has the unique key 'u'" in refused.stderr
        shown = taskpool(pool.store, "explain", str(number)).stdout
        assert shown.startswith(f"task {number} waits for serialization key 'k', held by task {holder.id} for ")
        document = json.loads(taskpool(pool.store, "explain", str(number), "--json").stdout)
        assert [reason["code"] for reason in document["reasons"]] == ["key", "worker"]
        item = json.loads(taskpool(pool.store, "show", str(number), "--json").stdout)["task"]
        assert (item["key"], item["unique"], item["wait_reason"]) == ("k", "u", "key")
        found = json.loads(taskpool(pool.store, "ls", "--key", "k", "--json").stdout)["items"]
        assert [one["id"] for one in found] == [number, holder.id]
        assert [one["id"] for one in json.loads(taskpool(pool.store, "ls", "--unique", "u", "--json").stdout)["items"]] == [number]
        facts = taskpool(pool.store, "show", str(number)).stdout
        assert "unique" in facts
        assert taskpool(pool.store, "cancel", "--unique", "u", "--yes").returncode == 0
        assert pool.get(number).status == "cancelled"
        gate.touch()
        assert holder.result(20) == "let go"
