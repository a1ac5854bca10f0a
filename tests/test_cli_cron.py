"""The verb cron: what it shows with and without a server, what it changes, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import Pool
from tests.test_cli_acting import Run, program


def price(seed: int) -> int:
    return 2 * seed


def fail() -> None:
    raise ValueError("no")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cron")


@pytest.fixture(scope="module")
def pool(place: Path) -> Iterator[Pool]:
    with Pool(place / "x.db", workers=1) as pool:
        pool.add_cron("0 3 * * MON-FRI", price, 4, name="nightly", tz="Europe/Paris", label="4")
        pool.add_cron("@every 90d", fail, name="failing")
        yield pool


@pytest.fixture
def run(pool: Pool, place: Path) -> Run:
    return program(place, "x.db")


def test_ls_says_it_in_words(run: Run) -> None:
    done = run("cron")
    assert done.returncode == 0
    for words in ("nightly", "At 03:00 on Monday through Friday (Europe/Paris)", "price(4)", "failing"):
        assert words in done.stdout
    assert run("cron", "ls", "nightly").stdout.count("\n") == 2


def test_ls_as_a_document(run: Run) -> None:
    document = json.loads(run("cron", "ls", "--json").stdout)
    assert document["schema"] == "taskpool.cron/1"
    failing, nightly = document["items"]
    assert (failing["name"], nightly["name"]) == ("failing", "nightly")
    assert (nightly["tz"], nightly["missed"], nightly["overlap"], nightly["paused"]) == ("Europe/Paris", "last", "skip", False)


def test_next_times_of_one_and_of_all(run: Run) -> None:
    document = json.loads(run("cron", "next", "3", "nightly", "--json").stdout)
    assert document["schema"] == "taskpool.cron.next/1"
    at = [one["at"] for one in document["items"]]
    assert len(at) == 3
    assert at == sorted(set(at))
    assert len(run("cron", "next", "2").stdout.splitlines()) == 2


def test_run_pause_resume_and_cancel(run: Run, pool: Pool) -> None:
    assert "task" in run("cron", "run", "nightly").stdout
    done = run("cron", "run", "nightly", "--wait")
    assert done.returncode == 0, done.stderr
    assert json.loads(run("cron", "run", "nightly", "--json").stdout)["action"] == "run"
    assert run("cron", "run", "failing", "--wait").returncode == 1
    assert pool.get_cron("failing").err_count == 1
    assert run("cron", "pause", "nightly").stdout == "paused nightly\n"
    assert "paused" in run("cron").stdout
    assert json.loads(run("cron", "next", "nightly", "--json").stdout)["items"] == []
    assert run("cron", "resume", "nightly").returncode == 0
    pool.add_cron("@daily", price, 1, name="short-lived")
    assert run("cron", "cancel", "short-lived").stdout == "cancelled short-lived\n"
    assert run("cron", "cancel", "short-lived").returncode == 3


def test_a_task_shows_its_schedule(run: Run, pool: Pool) -> None:
    task_id = pool.run_cron("nightly").id
    assert json.loads(run("show", str(task_id), "--json").stdout)["task"]["recurrence"] == "nightly"
    assert "nightly" in run("show", str(task_id)).stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["cron", "start"], 2),
        (["cron", "run"], 2),
        (["cron", "next", "0"], 2),
        (["cron", "pause", "nightly", "--wait"], 2),
        (["cron", "run", "nobody"], 3),
        (["cron", "ls", "nobody"], 3),
    ],
)
def test_exit_codes(run: Run, words: list[str], code: int) -> None:
    done = run(*words)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert json.loads(run(*words, "--json").stdout)["error"]["message"]


def test_without_a_server_it_shows_and_does_not_change(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1) as pool:
        pool.add_cron("@daily", price, 4, name="daily")
    run = program(tmp_path, "x.db")
    assert "daily" in run("cron").stdout
    assert len(run("cron", "next", "4").stdout.splitlines()) == 4
    assert run("cron", "run", "daily").returncode == 4
