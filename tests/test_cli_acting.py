"""The verbs that act: real processes throughout, exit codes one by one, documents, and what a killed run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool.errors import TaskpoolError
from taskpool.store.reading import Reader
from tests.waiting import wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]

JOBS = '''
import os, signal, sys, time
from pathlib import Path
import taskpool
from taskpool import task

@task
def price(seed: int, paths: int = 10) -> float:
    print("pricing", seed)
    return seed * paths / 2

@task(queue="mail", max_attempts=3, timeout=60, tags=["post"])
def letter(to: str) -> str:
    return f"dear {to}"

@task
def fail(text: str) -> None:
    raise ValueError(text)

@task
def panic() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@task
def hold(gate: str) -> str:
    """Run until a file is there."""
    for step in range(100_000):
        if Path(gate).exists():
            return "let go"
        time.sleep(0.01)
    return "nobody came"

@task
def talk(gate: str) -> str:
    print("so far\\nso good", flush=True)
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"

@task
def steps(n: int) -> int:
    for step in range(n):
        print("step", step, flush=True)
        taskpool.controller().progress(step + 1, n, "going")
        time.sleep(0.15)
    return n

def double(x: int) -> int:
    return 2 * x

def third_fails(x: int) -> int:
    if x % 3 == 0:
        raise ValueError(f"no {x}")
    return x

def noted(x: int, notes: str = os.environ.get("NOTES", "")) -> int:
    """Leave a line for each time the body runs."""
    with open(notes, "a") as file:
        file.write(f"{x}\\n")
    if x == 3 and os.environ.get("GATE"):
        while not Path(os.environ["GATE"]).exists():
            time.sleep(0.01)
    return x
'''


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this environment without what names a pool."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")} | {"NO_COLOR": "1"} | extra


def program(directory: Path, pool: Path | str) -> Run:
    """Return a function that runs the program on a pool, in a directory."""

    def taskpool(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "taskpool", "-C", str(pool), *args],
            capture_output=True,
            text=kwargs.pop("text", True),
            timeout=60,
            check=False,
            cwd=directory,
            env=clean_environment(**kwargs.pop("env", {})),
            **kwargs,
        )

    return taskpool


Start = Callable[..., subprocess.Popen[str]]


def started(directory: Path, pool: Path | str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Start the program and go on."""
    return subprocess.Popen(
        [sys.executable, "-m", "taskpool", "-C", str(pool), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=clean_environment(**env),
    )


def read_until(stream: Any, words: str) -> list[str]:
    """Return the lines up to the one that has these words."""
    lines = []
    for line in stream:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"no line with {words!r} in {lines}")


def counts(store: Path) -> dict[str, int]:
    """Return a store's counts; none while it is not there yet."""
    try:
        with Reader(store) as reader:
            return reader.counts()
    except TaskpoolError:
        return {}


def documents(text: str) -> list[Any]:
    """Return the JSON values of a stream, one per line."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the program and go on; whatever becomes of the test, it does not outlive it."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*args: Any, **env: str) -> subprocess.Popen[str]:
        processes.append(started(*args, **env))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a module of jobs."""
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS))
    return tmp_path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Run]]:
    """A server with two workers, and the program that talks to it."""
    directory = tmp_path_factory.mktemp("served")
    (directory / "jobs.py").write_text(textwrap.dedent(JOBS))
    server = started(directory, "x.db", "serve", "jobs.py", "--workers", "2", "--drain-grace", "0.1")
    try:
        read_until(server.stderr, "ready")
        yield directory, program(directory, "x.db")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def run(served: tuple[Path, Run]) -> Run:
    return served[1]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that is not there yet: `hold` waits for it."""
    return tmp_path / "gate"


# ---- submit -----------------------------------------------------------------------------------------------------------


def test_submit_says_what_it_stored(run: Run) -> None:
    done = run("submit", "jobs:price", "7")
    assert done.returncode == 0, done.stderr
    status, task_id, label, on, queue = done.stdout.split()
    assert status in ("queued", "running", "succeeded")
    assert task_id.isdigit()
    assert (label, on, queue) == ("jobs:price(7)", "on", "default")


@pytest.mark.parametrize(
    ("words", "result"),
    [(["7"], "35.0\n"), (["seed=7", "paths:=4"], "14.0\n"), ([":=7", "paths=2"], "7.0\n"), (["--", "-1"], "-5.0\n")],
)
def test_text_becomes_what_the_handler_is_annotated_with(run: Run, words: list[str], result: str) -> None:
    done = run("submit", "jobs:price", "--wait", "--print-id", *words)
    assert done.returncode == 0, done.stderr
    assert run("result", done.stdout.strip()).stdout == result


@pytest.mark.parametrize(("after", "code"), [("99999", 3), ("all", 2), ("soon", 2), ("", 2)])
def test_submit_after_what_names_no_task(run: Run, after: str, code: int) -> None:
    run("submit", "jobs:price", "1", "--wait")
    assert run("submit", "jobs:price", "7", "--after", after).returncode == code


def test_submit_after_one_that_failed_is_cancelled(run: Run) -> None:
    assert run("submit", "jobs:fail", "no", "--wait").returncode == 1
    assert run("submit", "jobs:price", "7", "--after", "last", "--wait").returncode == 7


def test_submit_as_a_document(run: Run) -> None:
    (task,) = documents(
        run("submit", "jobs:price", "7", "--json", "--tag", "a", "--tag", "b", "--priority", "3", "--timeout", "1h").stdout
    )
    assert task["schema"] == "taskpool.task/1"
    assert (task["name"], task["label"], task["tags"]) == ("jobs:price", "jobs:price(7)", ["a", "b"])
    assert (task["priority"], task["timeout_s"]) == (3, 3600.0)


def test_submit_knows_what_the_decorator_says(run: Run) -> None:
    """The server tells what it has imported; what the command line says is stronger."""
    (task,) = documents(run("submit", "jobs:letter", "Ann", "--json").stdout)
    assert (task["queue"], task["max_attempts"], task["timeout_s"], task["tags"]) == ("mail", 3, 60.0, ["post"])
    (task,) = documents(run("submit", "jobs:letter", "Ann", "--json", "--queue", "fast", "--max-attempts", "1").stdout)
    assert (task["queue"], task["max_attempts"], task["timeout_s"]) == ("fast", 1, 60.0)


@pytest.mark.parametrize(("words", "code"), [(["jobs:price", "7"], 0), (["jobs:fail", "boom"], 1), (["jobs:panic"], 8)])
def test_the_exit_code_of_a_wait_is_the_tasks(run: Run, words: list[str], code: int) -> None:
    done = run("submit", *words, "--wait")
    assert done.returncode == code, done.stderr
    as_document = run("submit", *words, "--wait", "--json")
    assert as_document.returncode == code
    assert documents(as_document.stdout)[0]["status"] == ("succeeded" if code == 0 else "failed")


def test_a_wrong_argument_fails_in_words(run: Run) -> None:
    done = run("submit", "jobs:price", "x", "--wait")
    assert done.returncode == 1
    assert "seed" in done.stderr
    assert "int" in done.stderr


def test_a_delay_and_a_time(run: Run) -> None:
    for words in (["--delay", "1h"], ["--at", "in 1h"], ["--at", "2100-01-01T00:00:00Z"]):
        (task,) = documents(run("submit", "jobs:price", "7", "--json", *words).stdout)
        assert task["status"] == "pending"
        assert run("cancel", str(task["id"])).returncode == 0
        assert run("wait", str(task["id"])).returncode == 7


@pytest.mark.parametrize(
    "words",
    [
        ["jobs:price", "seed:=nonsense"],
        ["jobs:price", "--at", "soon"],
        ["jobs:price", "a=1", "a=2"],
        ["jobs:price", "a=1", "2"],
        [],
    ],
)
def test_submit_usage(run: Run, words: list[str]) -> None:
    assert run("submit", *words).returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs:price"], "misses 'seed'"),
        (["price", "7", "8", "9"], "3 were given"),
        (["price", "7", "path=3"], "no parameter 'path'"),
    ],
)
def test_submit_refuses_a_call_that_cannot_work(run: Run, words: list[str], said: str) -> None:
    done = run("submit", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "it is called as price(seed: int, paths: int)" in done.stderr


def test_submit_after_others(run: Run, gate: Path) -> None:
    parent = run("submit", "jobs:hold", str(gate), "--print-id").stdout.strip()
    (child,) = documents(run("submit", "jobs:price", "7", "--after", parent, "--json").stdout)
    assert (child["status"], child["wait_reason"], child["parents"]) == ("pending", "parents", [int(parent)])
    gate.touch()
    assert run("wait", str(child["id"])).returncode == 0
    failed = run("submit", "jobs:fail", "no", "--print-id").stdout.strip()
    assert run("submit", "jobs:price", "7", "--after", f"{parent},{failed}", "--wait").returncode == 7
    assert run("submit", "jobs:price", "7", "--after", "999999").returncode == 3


# ---- wait, follow, cancel, retry -----------------------------------------------------------------------------------------


def test_wait_gives_up_in_time_and_knows_a_status(run: Run, gate: Path) -> None:
    task_id = run("submit", "jobs:hold", str(gate), "--print-id").stdout.strip()
    assert run("wait", task_id, "--status", "running").returncode == 0
    done = run("wait", task_id, "--timeout", "50ms")
    assert done.returncode == 124
    assert "1 running" in done.stdout
    late = run("wait", task_id, "--timeout", "50ms", "--json")
    assert late.returncode == 124
    assert documents(late.stdout)[0]["complete"] is False
    other = run("submit", "jobs:price", "1", "--print-id").stdout.strip()
    assert run("wait", task_id, other, "--any").returncode == 0
    gate.touch()
    assert run("wait", task_id).returncode == 0
    assert run("result", task_id).stdout == "let go\n"


def test_wait_joins_exit_codes(run: Run) -> None:
    ids = [run("submit", "jobs:" + words[0], *words[1:], "--print-id").stdout.strip() for words in (["price", "1"], ["panic"])]
    assert run("wait", *ids).returncode == 8
    ids.append(run("submit", "jobs:fail", "x", "--print-id").stdout.strip())
    done = run("wait", *ids, "--json")
    assert done.returncode == 1
    (end,) = documents(done.stdout)
    assert (end["schema"], end["complete"]) == ("taskpool.wait/1", True)
    assert [item["status"] for item in end["items"]] == ["succeeded", "failed", "failed"]


def test_follow_shows_output_and_ends_as_the_task(run: Run) -> None:
    task_id = run("submit", "jobs:steps", "4", "--print-id").stdout.strip()
    done = run("follow", task_id)
    assert (done.returncode, done.stdout) == (0, "step 0\nstep 1\nstep 2\nstep 3\n")
    assert "succeeded" in done.stderr
    bad = run("submit", "jobs:fail", "boom", "--print-id").stdout.strip()
    assert run("follow", bad).returncode == 1


def test_follow_as_documents(run: Run) -> None:
    task_id = run("submit", "jobs:steps", "4", "--print-id").stdout.strip()
    lines = documents(run("follow", task_id, "--json").stdout)
    assert [line["text"] for line in lines if line["schema"] == "taskpool.log/1"] == [f"step {n}" for n in range(4)]
    assert lines[-1]["schema"] == "taskpool.end/1"
    assert lines[-1]["status"] == "succeeded"
    task_id = run("submit", "jobs:steps", "3", "--print-id").stdout.strip()
    assert run("log", task_id, "-f").stdout == "step 0\nstep 1\nstep 2\n"


def test_cancel_stops_what_runs(run: Run, gate: Path) -> None:
    task_id = run("submit", "jobs:hold", str(gate), "--print-id").stdout.strip()
    assert run("wait", task_id, "--status", "running").returncode == 0
    assert f"would cancel 1: {task_id}" in run("cancel", task_id, "--dry-run").stdout
    done = run("cancel", task_id, "--reason", "enough")
    assert (done.returncode, done.stdout) == (0, "cancelled 1\n")
    assert run("wait", task_id).returncode == 7
    assert run("follow", task_id).returncode == 7
    again = run("cancel", task_id)
    assert (again.returncode, again.stdout) == (5, "cancelled 0, already finished 1\n")
    (bulk,) = documents(run("cancel", task_id, "--json").stdout)
    assert bulk == {"verb": "cancel", "changed": [], "refused": [int(task_id)], "dry_run": False, "schema": "taskpool.bulk/1"}


def test_log_has_what_a_running_task_has_printed_so_far(run: Run, gate: Path) -> None:
    task_id = run("submit", "jobs:talk", str(gate), "--print-id").stdout.strip()
    wait_until(lambda: "so good" in run("log", task_id).stdout, "what it printed")
    assert run("log", task_id).stdout == "so far\nso good\n"  # nobody's look takes it away from the next
    assert run("log", task_id, "-n", "1").stdout == "so good\n"
    gate.touch()
    assert run("wait", task_id).returncode == 0
    assert run("log", task_id).stdout == "so far\nso good\n"


def test_cancel_now_does_not_ask_the_task(run: Run, gate: Path) -> None:
    task_id = run("submit", "jobs:hold", str(gate), "--print-id").stdout.strip()
    assert run("wait", task_id, "--status", "running").returncode == 0
    assert run("cancel", "--name", "jobs:hold", "--now").returncode == 0
    assert run("wait", task_id).returncode == 7


def test_retry_gives_another_round(run: Run, gate: Path) -> None:
    task_id = run("submit", "jobs:fail", "x", "--wait", "--print-id").stdout.strip()
    assert run("retry", task_id).stdout == "another round for 1\n"
    assert run("wait", task_id).returncode == 1
    (shown,) = documents(run("show", task_id, "--json").stdout)
    assert (shown["task"]["round"], len(shown["attempts"])) == (1, 2)
    good = run("submit", "jobs:price", "1", "--wait", "--print-id").stdout.strip()
    assert run("retry", good).returncode == 5
    assert run("retry", good, "--force").returncode == 0
    assert run("wait", good).returncode == 0


@pytest.mark.parametrize("verb", ["cancel", "retry", "wait"])
def test_naming_nothing_is_a_usage_error_and_a_missing_task_is_not_found(run: Run, verb: str) -> None:
    assert run(verb).returncode == 2
    assert run(verb, "999999").returncode == 3


def test_status_of_a_live_server(run: Run) -> None:
    run("submit", "jobs:price", "1", "--wait")
    (status,) = documents(run("status", "--json").stdout)
    assert status["live"] is True
    assert status["finished"] >= 1
    assert len([worker for worker in status["workers"] if worker["state"] in ("idle", "busy")]) == 2
    assert "WORKER" in run("status").stdout


def test_a_socket_names_a_pool_too(served: tuple[Path, Run]) -> None:
    directory, run = served
    run("submit", "jobs:price", "1", "--wait")
    by_socket = program(directory, f"unix:{directory}/x.db.d/run/sock")
    assert by_socket("submit", "jobs:price", "1", "--wait").returncode == 0
    assert by_socket("ls").returncode == 0
    assert program(directory, "unix:/nowhere/sock")("status").returncode == 4


# ---- serve ------------------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_refused(served: tuple[Path, Run]) -> None:
    done = served[1]("serve")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_serve_tells_where_everything_is(home: Path, start: Start) -> None:
    server = start(home, "y.db", "serve", "jobs.py", "--workers", "1", "--log-format", "json")
    lines = documents("".join(read_until(server.stdout, "ready")))
    text = "\n".join(line["message"] for line in lines)
    for words in (f"{home}/y.db", "y.db.d/run/sock", "jobs:price"):
        assert words in text
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0


def stopping(home: Path, gate: Path, start: Start, signo: signal.Signals = signal.SIGTERM) -> tuple[subprocess.Popen[str], Run]:
    """Start a server, and stop it while a task runs that waits for the gate."""
    server = start(home, "y.db", "serve", "jobs.py", "--workers", "1")
    read_until(server.stderr, "ready")
    run = program(home, "y.db")
    run("submit", "jobs:hold", str(gate))
    assert run("wait", "last", "--status", "running").returncode == 0
    server.send_signal(signo)
    read_until(server.stderr, "stopping")
    return server, run


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGHUP])  # a terminal that is closed says SIGHUP
def test_sigterm_lets_running_tasks_end(home: Path, gate: Path, start: Start, signo: signal.Signals) -> None:
    server, run = stopping(home, gate, start, signo)
    refused = run("submit", "jobs:price", "1")
    assert refused.returncode == 4
    gate.touch()
    assert server.wait(30) == 0
    assert run("result", "last").returncode == 0


def test_a_second_signal_ends_at_once_and_the_task_waits_for_the_next_owner(home: Path, gate: Path, start: Start) -> None:
    server, _ = stopping(home, gate, start)
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    with Reader(home / "y.db") as reader:
        assert reader.task(1).status == "pending"
        assert reader.task(1).charged == 0


def test_an_app_that_cannot_be_imported_ends_the_server_in_words(home: Path) -> None:
    (home / "broken.py").write_text("import no_such_module\n")
    done = program(home, "y.db")("serve", "broken.py")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
    assert "tried again" not in done.stderr
    assert program(home, "y.db")("serve", "absent.py").returncode == 3


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("def f(:\n", "SyntaxError", "line 1"),
        ("def g():\n    1 / 0\n\ng()\n", "ZeroDivisionError: division by zero", "line 2, in g"),
        ("import sys\nsys.exit('not here')\n", "SystemExit: not here", "line 2, in <module>"),
        ("from taskpool import task\n@task(timeout=-1)\ndef f(): pass\n", "InvalidTask", "line 2, in <module>"),
    ],
)
def test_a_target_that_fails_as_it_is_imported_is_told_with_its_own_traceback(home: Path, text: str, words: str, line: str) -> None:
    (home / "broken.py").write_text(text)
    done = program(home, "z.db")("run", "broken.py:f", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"error: broken.py cannot be imported: {words}" in done.stderr
    assert line in done.stderr
    assert "taskpool/cli" not in done.stderr
    assert "importlib" not in done.stderr
    document = json.loads(program(home, "z.db")("run", "broken.py:f", "1", "--json").stdout)
    assert document["error"]["code"] == "handler_not_found"
    assert words in document["error"]["message"]


@pytest.mark.parametrize("words", [["submit", "jobs:price", "1"], ["cancel", "1"], ["retry", "1"], ["wait", "2"]])
def test_without_a_server_acting_verbs_say_so(home: Path, words: list[str]) -> None:
    run = program(home, "z.db")
    assert run("run", "jobs.py:double", "1", "2").returncode == 0  # makes the store; its pool is gone afterwards
    with Reader(home / "z.db") as reader:
        assert reader.counts() == {"succeeded": 2}
    done = run(*words)
    if words[0] == "wait":
        assert done.returncode == 0  # it has ended: the file knows
        return
    assert done.returncode == 4
    assert "nobody serves" in done.stderr
    (error,) = documents(run(*words, "--json").stdout)
    assert error["error"]["code"] == "no_server"


# ---- run ---------------------------------------------------------------------------------------------------------------------


def test_run_prints_results_in_the_order_of_inputs_if_asked(home: Path) -> None:
    done = program(home, "z.db")("run", "jobs.py:double", *map(str, range(30)), "--keep-order")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(2 * n) for n in range(30)]
    assert "30 of 30 succeeded" in done.stderr


def test_a_run_is_a_batch_that_is_taken_up_again(home: Path) -> None:
    run = program(home, "z.db")
    words = ["run", "jobs.py:double", "1", "2", "3", "--json"]
    first, second = documents(run(*words).stdout), documents(run(*words).stdout)
    assert first[-1]["reused"] == 0
    assert second[-1]["reused"] == 3
    assert {line["id"] for line in first[:-1]} == {line["id"] for line in second[:-1]}
    fresh = documents(run(*words, "--fresh").stdout)
    assert fresh[-1]["reused"] == 0
    assert not {line["id"] for line in fresh[:-1]} & {line["id"] for line in first[:-1]}


def test_run_as_documents(home: Path) -> None:
    done = program(home, "z.db")("run", "jobs.py:third_fails", "1", "2", "3", "--json")
    assert done.returncode == 1
    *lines, summary = documents(done.stdout)
    by_seq = {line["seq"]: line for line in lines}
    assert {line["schema"] for line in lines} == {"taskpool.run/1"}
    assert (by_seq[1]["input"], by_seq[1]["status"], by_seq[1]["value"]) == ("1", "succeeded", 1)
    assert (by_seq[3]["status"], by_seq[3]["error"]["kind"], by_seq[3]["error"]["message"]) == ("failed", "handler", "no 3")
    assert (summary["schema"], summary["total"], summary["succeeded"], summary["failed"]) == ("taskpool.run.summary/1", 3, 2, 1)


def test_run_ends_with_a_table_of_failures_and_counts_them(home: Path) -> None:
    run = program(home, "z.db")
    done = run("run", "jobs.py:third_fails", *map(str, range(1, 10)))
    assert done.returncode == 1
    assert done.stderr.count("[handler] no ") == 3
    assert run("run", "jobs.py:third_fails", *map(str, range(1, 10)), "--exit-count").returncode == 3
    assert run("run", "jobs.py:panic", "--exit-count").returncode == 1
    assert run("run", "jobs.py:panic").returncode == 8


def test_run_stops_after_so_many_failures(home: Path, gate: Path) -> None:
    (home / "inputs").write_text("".join(f"{n}\n" for n in [3, 6] + [1] * 20))
    done = program(home, "z.db")(
        "run", "jobs.py:third_fails", "--each-line", "inputs", "--max-fails", "1", "--workers", "1", "--json"
    )
    assert done.returncode == 1
    summary = documents(done.stdout)[-1]
    assert summary["failed"] >= 1
    assert summary["total"] == 22


def test_rows_of_a_csv_are_arguments_by_name(home: Path) -> None:
    (home / "seeds.csv").write_text("seed,paths\n1,2\n3,4\n")
    done = program(home, "z.db")("run", "jobs.py:price", "--csv", "seeds.csv", "--keep-order")
    assert (done.returncode, done.stdout) == (0, "1.0\n6.0\n")


def test_the_mark_that_some_editors_begin_files_with_is_no_input(home: Path) -> None:
    (home / "names").write_text("\ufeffa\nb\n", encoding="utf-8")
    done = program(home, "z.db")("run", "--each-line", "names", "--keep-order", "--", "echo", "<{}>")
    assert (done.returncode, done.stdout) == (0, "<a>\n<b>\n")


def test_commands_as_gnu_parallel_runs_them(home: Path) -> None:
    run = program(home, "z.db")
    done = run("run", "a", "b c", "--keep-order", "--joblog", "log.tsv", "--", "echo", "{#}:{}")
    assert (done.returncode, done.stdout) == (0, "1:a\n2:b c\n")
    header, *rows = (home / "log.tsv").read_text().splitlines()
    assert header.split("\t") == ["Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command"]
    assert sorted((row.split("\t")[0], row.split("\t")[6], row.split("\t")[8]) for row in rows) == [
        ("1", "0", "echo 1:a"),
        ("2", "0", "echo 2:b c"),
    ]
    piped = run("run", "--stdin", "--keep-order", "--joblog", "log.tsv", "--", "test {} = y || kill -TERM $$", input="y\nn\n")
    assert piped.returncode == 1
    assert [row.split("\t")[6:8] for row in sorted((home / "log.tsv").read_text().splitlines()[1:])] == [["0", "0"], ["0", "15"]]
    assert "killed by SIGTERM" in piped.stderr
    failed = run("run", "--", "echo working; echo reason >&2; exit 3")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "[handler] exit status 3: reason" in failed.stderr


def test_names_of_files_need_not_be_utf_8(home: Path) -> None:
    """They come from find, and go to commands, as the bytes they are."""
    command = [sys.executable, "-m", "taskpool", "-C", "z.db", "run", "--stdin", "--keep-order", "--", "echo", "{}"]
    done = subprocess.run(
        command,
        cwd=home,
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[1])),
        input=b"caf\xe9\nplain\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"caf\xe9\nplain\n"), done.stderr
    done = subprocess.run(
        [*command[:6], "--batch", b"\xff", "a", "--", "echo"],
        cwd=home,
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[1])),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert b"batch must be a name" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_run_through_a_live_server(served: tuple[Path, Run]) -> None:
    _, run = served
    done = run("run", "jobs.py:double", "4", "5", "--keep-order")
    assert (done.returncode, done.stdout) == (0, "8\n10\n")


def test_a_run_that_is_killed_goes_on_where_it_was(home: Path, gate: Path, start: Start) -> None:
    notes = home / "notes"
    env = {"NOTES": str(notes), "GATE": str(gate)}
    words = ["run", "jobs.py:noted", *map(str, range(6)), "--workers", "1", "--json"]
    notes.touch()
    first = start(home, "z.db", *words, **env)
    wait_until(lambda: "3\n" in notes.read_text(), "the third")
    first.kill()
    assert first.wait(30) == -signal.SIGKILL
    gate.touch()
    second = program(home, "z.db")(*words, env=env)
    assert second.returncode == 0, second.stderr
    assert documents(second.stdout)[-1]["succeeded"] == 6
    ran = notes.read_text().split()
    assert sorted(set(ran)) == sorted(map(str, range(6)))
    assert [ran.count(str(n)) for n in (0, 1, 2)] == [1, 1, 1]  # what had finished did not run twice


def test_ctrl_c_stops_a_run_and_the_rest_waits(home: Path, gate: Path, start: Start) -> None:
    first = start(home, "z.db", "run", "jobs.py:hold", str(gate), "--workers", "1")
    wait_until(lambda: counts(home / "z.db").get("running") == 1, "its begin")
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    _, words = first.communicate()
    assert "Traceback" not in words
    assert "the same command goes on" in words
    gate.touch()
    assert program(home, "z.db")("run", "jobs.py:hold", str(gate)).returncode == 0


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_run_whose_server_dies_says_how_far_it_came(home: Path, gate: Path, start: Start, fresh: list[str]) -> None:
    server = start(home, "z.db", "serve", "--workers", "1")
    assert server.stderr is not None
    read_until(server.stderr, "ready")
    client = start(home, "z.db", "--json", "run", *fresh, "jobs.py:hold", "jobs.py", str(gate), "--keep-order")
    assert client.stdout is not None
    assert json.loads(client.stdout.readline())["status"] == "succeeded"
    server.kill()
    assert client.wait(30) == 4
    error = json.loads(client.stdout.read())["error"]
    assert error["message"].endswith(": 1 of 2 are finished")
    assert error["hint"] == f"the same command {'without --fresh ' if fresh else ''}goes on"


def test_a_reader_of_results_that_leaves_is_no_error(home: Path) -> None:
    command = f"{sys.executable} -m taskpool -C z.db run jobs.py:double $(seq 200) 2>err | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=home, timeout=60, check=False, env=clean_environment()
    )
    assert done.returncode in (0, 141)  # 0: it was faster than head
    assert "Traceback" not in (home / "err").read_text()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["nonsense"], 2),
        (["no_such_module:f", "1"], 3),
        (["jobs.py:absent", "1"], 3),
        (["absent.py:f", "1"], 3),
        (["jobs.py:double", "x"], 2),
        (["jobs.py:double", "1", "--stdin"], 2),
        (["--each-line", "absent.txt", "--", "echo"], 2),
        (["--"], 2),
        (["jobs.py:double", "1", "--batch", "b"], 0),
    ],
)
def test_run_exit_codes(home: Path, words: list[str], code: int) -> None:
    done = program(home, "z.db")("run", *words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_other_work_under_a_batch_is_refused(home: Path) -> None:
    run = program(home, "z.db")
    assert run("run", "jobs.py:double", "1", "--batch", "b").returncode == 0
    done = run("run", "jobs.py:third_fails", "1", "--batch", "b")
    assert done.returncode == 5
    assert "--fresh" in done.stderr
    assert "fresh=True" not in done.stderr
