"""The verb flow: what it shows of graphs, without a server, and its exit codes; explain of what waits for its parents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import Pool
from tests.test_cli_acting import Run, program
from tests.test_flow import fail, keep, one, wait_for


def need(value: int, gate: str) -> int:
    if not Path(gate).exists():
        raise FileNotFoundError(gate)
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flow")


@pytest.fixture(scope="module")
def pool(place: Path) -> Iterator[Pool]:
    with Pool(place / "x.db", workers=1) as pool:
        with pool.flow("nightly") as flow:
            first = flow.submit(one)
            second = flow.submit(fail, first)
            third = flow.step(keep, second, label='"load" [x]')
            flow.step(keep, [first, third], on="any", label="sweep")
        flow.wait(20)
        yield pool


@pytest.fixture
def run(pool: Pool, place: Path) -> Run:
    return program(place, "x.db")


def test_ls(run: Run) -> None:
    done = run("flow")
    assert done.returncode == 0
    assert [word for word in done.stdout.splitlines()[1].split() if word][:6] == ["1", "nightly", "failed", "4", "2", "1"]
    document = json.loads(run("flow", "ls", "--json").stdout)
    assert document["schema"] == "taskpool.flows/1"
    (flow,) = document["items"]
    assert (flow["id"], flow["status"], flow["counts"]) == (1, "failed", {"succeeded": 2, "failed": 1, "cancelled": 1})


def test_show_draws_each_step_under_a_parent(run: Run) -> None:
    lines = run("flow", "show", "1").stdout.splitlines()
    assert lines[0].startswith("nightly (flow 1): failed; ")
    assert [line.lstrip(" └├─│") for line in lines[1:]] == [
        "✓ 1 one: succeeded",
        "✗ 2 fail: failed",
        '– 3 "load" [x]: cancelled',
        "✓ 4 sweep: succeeded, on any (after 1 on any, too)",
    ]


def test_show_as_a_document(run: Run) -> None:
    document = json.loads(run("flow", "show", "1", "--json").stdout)
    assert document["schema"] == "taskpool.flow/1"
    assert [(step["id"], step["dag_id"], step["step_id"]) for step in document["steps"]][:2] == [(1, 1, "one"), (2, 1, "fail")]
    assert document["steps"][2]["finish_reason"] == "upstream"
    edges = [(edge["parent"], edge["child"], edge["on"]) for edge in document["edges"]]
    assert edges == [(1, 2, "success"), (2, 3, "success"), (1, 4, "any"), (3, 4, "any")]


def test_show_for_graphviz(run: Run) -> None:
    lines = run("flow", "show", "1", "--dot").stdout.splitlines()
    assert lines[0] == 'digraph "nightly" {'
    assert '  3 [label="– \\"load\\" [x] (3)"];' in lines
    assert "  1 -> 2;" in lines
    assert "  3 -> 4 [style=dashed];" in lines


@pytest.mark.parametrize(
    ("words", "code"),
    [(("show", "99"), 3), (("show",), 2), (("show", "x"), 2), (("draw",), 2), (("ls", "1"), 2), (("ls", "--dot"), 2)],
)
def test_what_is_refused(run: Run, words: tuple[str, ...], code: int) -> None:
    assert run("flow", *words).returncode == code


def test_explain_names_the_parents(run: Run, pool: Pool, place: Path) -> None:
    gate = place / "gate"
    parent = pool.submit(wait_for, str(gate))
    child = pool.submit(keep, parent)
    document = json.loads(run("explain", str(child.id), "--json").stdout)
    assert [reason["code"] for reason in document["reasons"]] == ["parents"]
    assert f"waits for its parents, of which 0 of 1 have ended; it waits for {parent.id} (" in document["sentence"]
    assert "parents" in run("show", str(child.id), "--json").stdout
    gate.touch()
    assert child.result(20) == str(gate)


def test_retry_goes_on_from_the_failed_steps(run: Run, pool: Pool, place: Path) -> None:
    """One command gives the failed step, and what fell with it, another round; what succeeded is not run again."""
    gate = place / "rules"
    with pool.flow("mended") as flow:
        first = flow.submit(one)
        second = flow.submit(need, first, str(gate))
        third = flow.submit(keep, second)
    flow.wait(20)
    ids = [step.future.id for step in (first, second, third)]
    assert [pool.get(task_id).status for task_id in ids] == ["succeeded", "failed", "cancelled"]
    gate.touch()
    done = run("retry", f"{ids[0]}-{ids[2]}", "--json")
    assert done.returncode == 0, done.stderr
    assert flow.wait(20).status == "succeeded"
    assert [pool.get(task_id).round for task_id in ids] == [0, 1, 1]
    assert [pool.get(task_id).attempt for task_id in ids] == [1, 2, 1]
