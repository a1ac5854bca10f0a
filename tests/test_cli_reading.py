"""The verbs that read the file, with no server: what they print, their documents, their exit codes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskpool.core.commands import Closed, End, Insert, Move, Start
from taskpool.model import Options, Progress, TaskError, TaskSpec, encode
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.wire.jobs import OK, Report

Run = Callable[..., subprocess.CompletedProcess[str]]
T0 = 1_700_000_000_000_000
NASTY = "evil\x1b]0;gotcha\x07\x9b31m\u202egnp.exe"


class Builder:
    """Writes tasks into a store as the supervisor would, without one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = T0

    def task(self, name: str = "jobs:price", label: str = "7", **fields: Any) -> int:
        task_id = self.store.next_id()
        options = encode(Options(label=label, **fields.pop("options", {})))
        spec = TaskSpec(task_id.to_bytes(16), name, 1, pickle.dumps(((7,), {})), options, **fields)
        self.now += 1_000_000
        self.store.commit([Insert(task_id, spec, "queued", self.now, self.now)], self.now)
        return task_id

    def start(self, task_id: int) -> int:
        self.now += 500_000
        self.store.commit([Start(task_id, 1, "queued", 1, 1, 1, self.now)], self.now)
        return task_id

    def end(self, task_id: int, to: str, *, value: object = None, error: TaskError | None = None, output: str = "") -> int:
        self.start(task_id)
        self.now += 2_000_000
        report = None
        if to == "succeeded":
            report = Report(1, task_id, 1, OK, 0, 2_000_000_000, codec=1, value=None if value is None else pickle.dumps(value))
        closed = Closed(1, 1, 4711, self.now - 2_000_000, to, 2_000_000_000, 1_500_000, 100_000, 20_000, error, "", output)
        self.store.commit([End(task_id, 2, to, self.now, 1, closed, report, error)], self.now)
        return task_id


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A store with one task of each kind: ids 1 to 8."""
    path = tmp_path / "x.db"
    store = Store.open(path, durability="process")
    build = Builder(store)
    build.end(build.task(), "succeeded", value={"price": 10.5, "big": 2**60}, output="one\ntwo\nthree\n")
    failure = TaskError("handler", "no such file", type_name="FileNotFoundError", traceback="Traceback …\n  boom\n")
    build.end(build.task(label="8"), "failed", error=failure, output=NASTY + "\n")
    panic = TaskError("panic", "the worker was killed by SIGKILL", signal=9, peak_rss_bytes=123 << 20)
    build.end(build.task(label="9"), "failed", error=panic)
    cancelled = build.task(label="10")
    store.commit([Move(cancelled, 1, "queued", "cancelled", build.now)], build.now)
    build.start(build.task(label="11", queue="cpu", options={"tags": ("nightly",)}))
    store.save_progress([(5, Progress(21, 50, "half way", T0))])
    build.task(name="jobs:" + NASTY, label=NASTY)
    build.end(build.task(), "succeeded", value=b"\x00\xff raw")
    build.end(build.task(), "succeeded", value="plain text")
    store.close()
    return path


@pytest.fixture
def run(db: Path) -> Run:
    """Run the program in a process of its own."""

    def taskpool(*args: str, pool: Path | None = db, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
        environment = inherited | {"NO_COLOR": "1"} | kwargs.pop("env", {})
        pool_args = [] if pool is None else ["-C", str(pool)]
        return subprocess.run(
            [sys.executable, "-m", "taskpool", *pool_args, *args],
            capture_output=True,
            text=kwargs.pop("text", True),
            timeout=60,
            check=False,
            env=environment,
            **kwargs,
        )

    return taskpool


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the one JSON value on stdout."""
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


# ---- ls ----------------------------------------------------------------------------------------------------------------


def test_ls_shows_the_newest_first(run: Run) -> None:
    done = run("ls")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "NAME", "ARGS", "QUEUE", "AGE", "TIME", "PROGRESS", "ATT"]
    assert [line.split()[0] for line in lines[1:]] == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert "42%" in lines[4]


def test_on_a_narrow_terminal_names_and_arguments_are_cut_and_ids_are_not(run: Run, db: Path) -> None:
    code = f"import pty; pty.spawn({[sys.executable, '-m', 'taskpool', '-C', str(db), 'ls']!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": "64", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert [line.split()[1] for line in lines[1:3]] == ["succeeded", "succeeded"]
    assert max(map(len, lines)) <= 64
    assert "…" in lines[3]


def test_no_name_can_move_a_cursor(run: Run) -> None:
    done = run("ls", "6", "--color", "always")
    assert r"evil\x1b]0;gotcha\x07\x9b31m\u202egnp.exe" in done.stdout
    for control in ("\x07", "\x9b", "\u202e", "\x1b]"):
        assert control not in done.stdout


def test_ls_as_a_document_pages_by_id(run: Run) -> None:
    page = document(run("ls", "--json", "--limit", "3"))
    assert page["schema"] == "taskpool.tasks/1"
    assert [item["id"] for item in page["items"]] == [8, 7, 6]
    assert not any("schema" in item for item in page["items"])  # that of the page says it
    assert page["next"] == 6
    rest = document(run("ls", "--json", "--before", "6"))
    assert [item["id"] for item in rest["items"]] == [5, 4, 3, 2, 1]
    assert rest["next"] is None
    five = rest["items"][0]
    assert five["status"] == "running"
    assert five["progress"] == {"done": 21.0, "total": 50.0, "fraction": 0.42, "text": "half way"}
    assert five["uid"] == "00000000-0000-0000-0000-000000000005"
    assert five["created_at"].endswith("Z")


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["2-4"], [4, 3, 2]),
        (["1,8"], [8, 1]),
        (["last"], [8]),
        (["00000000-0000-0000-0000-000000000003"], [3]),
        (["--status", "failed"], [3, 2]),
        (["--queue", "cpu"], [5]),
        (["--tag", "nightly"], [5]),
        (["--error", "SIGKILL"], [3]),
        (["--name", "jobs:price", "--status", "succeeded"], [8, 7, 1]),
        (["all"], [8, 7, 6, 5, 4, 3, 2, 1]),
        (["--since", "1h"], []),
        (["--until", "now", "--status", "cancelled"], [4]),
    ],
)
def test_tasks_and_filters(run: Run, words: list[str], ids: list[int]) -> None:
    assert [item["id"] for item in document(run("ls", "--json", *words))["items"]] == ids


def test_chosen_columns_and_order(run: Run) -> None:
    done = run("ls", "--columns", "id,error", "--sort", "name", "--status", "failed")
    assert done.stdout.splitlines()[0].split() == ["ID", "ERROR"]
    assert "[panic] the worker was killed by SIGKILL" in done.stdout
    assert run("ls", "--columns", "nope").returncode == 2


# ---- show, status ----------------------------------------------------------------------------------------------------


def test_show_tells_why_it_failed(run: Run) -> None:
    done = run("show", "2")
    assert done.returncode == 0, done.stderr
    for words in ("task 2  failed", "[handler] FileNotFoundError: no such file", "  boom", "ATTEMPT", r"evil\x1b]0;gotcha"):
        assert words in done.stdout
    assert "signal SIGKILL, peak memory 123.0 MiB" in run("show", "3").stdout


def test_show_as_a_document(run: Run) -> None:
    shown = document(run("show", "3", "--json"))
    assert (shown["schema"], shown["task"]["schema"]) == ("taskpool.show/1", "taskpool.task/1")
    assert shown["task"]["error"]["signal"] == 9
    (attempt,) = shown["attempts"]
    assert (attempt["outcome"], attempt["pid"], attempt["duration_s"], attempt["cpu_user_s"]) == ("failed", 4711, 2.0, 1.5)


def test_status_reads_the_file_when_there_is_no_server(run: Run) -> None:
    status = document(run("status", "--json"))
    assert status["live"] is False
    assert status["counts"] == {"succeeded": 3, "failed": 2, "cancelled": 1, "running": 1, "queued": 1}
    assert "no server" in run("status").stdout


# ---- result, log --------------------------------------------------------------------------------------------------------


def test_a_result_is_shown_as_python_shows_it(run: Run) -> None:
    done = run("result", "1")
    assert (done.returncode, done.stdout) == (0, f"{{'price': 10.5, 'big': {2**60}}}\n")
    result = document(run("result", "1", "--json"))
    assert result["value"] == {"price": 10.5, "big": 2**60, "big_str": str(2**60)}
    assert result["type"] == "dict"


def test_bytes_and_text_come_as_they_are(run: Run, tmp_path: Path) -> None:
    assert run("result", "7", text=False).stdout == b"\x00\xff raw"
    assert run("result", "8").stdout == "plain text\n"
    out = tmp_path / "out"
    assert run("result", "7", "-o", str(out)).returncode == 0
    assert out.read_bytes() == b"\x00\xff raw"
    assert document(run("result", "7", "--json"))["value"] is None


@pytest.mark.parametrize(("task_id", "code"), [("2", 1), ("3", 8), ("4", 7), ("5", 5), ("6", 5)])
def test_the_exit_code_tells_how_the_task_ended(run: Run, task_id: str, code: int) -> None:
    done = run("result", task_id)
    assert (done.returncode, done.stdout) == (code, "")
    assert run("result", task_id, "--json").returncode == code


def test_log_prints_the_output(run: Run) -> None:
    assert run("log", "1").stdout == "one\ntwo\nthree\n"
    assert run("log", "1", "-n", "1").stdout == "three\n"
    assert run("log", "1", "-n", "0").stdout == ""
    assert run("log", "1-2", "-n", "1").stdout.startswith("[1] three\n[2] evil")
    lines = [json.loads(line) for line in run("log", "1", "--json").stdout.splitlines()]
    assert [line["text"] for line in lines] == ["one", "two", "three"]
    assert {line["schema"] for line in lines} == {"taskpool.log/1"}
    assert run("log", "1", "--timestamps").stdout.splitlines()[0].endswith("Z one")


def test_output_is_escaped_on_a_terminal_only(db: Path) -> None:
    import pty

    primary, secondary = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "taskpool", "-C", str(db), "log", "2"], stdout=secondary, stderr=secondary)
    os.close(secondary)
    seen = b""
    try:
        while part := os.read(primary, 4096):
            seen += part
    except OSError:
        pass  # the terminal is closed when its last writer ends
    os.close(primary)
    assert process.wait(30) == 0
    assert b"evil\\x1b]0;gotcha\\x07\\x9b31m\\u202egnp.exe" in seen
    assert b"\x1b]" not in seen


# ---- what goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["show", "99"], ["result", "1,99"], ["log", "50-60"], ["ls", "99"]])
def test_a_task_that_is_not_there(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 3
    assert "no task" in done.stderr
    error = document(run(*words, "--json"))["error"]
    assert error["code"] == "not_found"
    assert set(error) == {"code", "message", "hint"}


def test_a_store_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    done = run("ls", pool=missing)
    assert done.returncode == 3
    assert "no store" in done.stderr
    assert not missing.exists()


@pytest.mark.parametrize("name", ["bad name", ":memory:", "/"])
def test_what_cannot_name_a_store_is_a_usage_error(run: Run, name: str) -> None:
    done = run("ls", pool=None, env={"TASKPOOL_POOL": name})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")


def test_a_file_that_is_no_store_is_refused(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "letter.db"
    other.write_text("Dear reader, " * 500)
    done = run("ls", pool=other)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert other.read_text().startswith("Dear reader")


@pytest.mark.parametrize(
    "words",
    [["ls", "--limit", "0"], ["ls", "x-y"], ["show"], ["nonsense"], ["--nope"], ["ls", "--status", "odd"], ["result", "1-3"], []],
)
def test_usage_errors(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_usage_error_as_a_document(run: Run) -> None:
    done = run("--json", "ls", "--limit", "many")
    assert done.returncode == 2
    assert document(done)["error"]["code"] == "usage"
    assert done.stderr == ""


def test_global_options_stand_before_and_after_the_verb(run: Run, db: Path) -> None:
    before = run("-C", str(db), "--json", "ls", "--limit", "1", pool=None)
    after = run("ls", "--limit", "1", "--json", "-C", str(db), pool=None)
    assert document(before) == document(after)


def test_the_pool_may_be_named_by_the_environment(run: Run, db: Path) -> None:
    assert run("ls", pool=None, env={"TASKPOOL_POOL": str(db)}).returncode == 0
    assert run("ls", pool=None, env={"TASKPOOL_DB": str(db)}).returncode == 0


def test_a_reader_that_leaves_is_no_error(db: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head` does, only sooner
    process = subprocess.run(
        [sys.executable, "-m", "taskpool", "-C", str(db), "ls"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize("words", ["ls", "show 1", "status --json", "log 1"])
def test_output_that_cannot_be_written_is_told(db: Path, words: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "taskpool", "-C", str(db), *words.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_without_our_signs_shows_them_as_escapes(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.db"
    with closing(Store.open(path, durability="process")) as store:
        build = Builder(store)
        build.end(build.task(name="jobs:größe", label="日本"), "succeeded", value="日本", output="日本 ü\n")
    for words in (["ls"], ["show", "1"], ["log", "1"], ["events"], ["ls", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "taskpool", "-C", str(path), *words],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        if words[0] != "events":
            assert b"\\u65e5\\u672c" in done.stdout


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_streams_may_be_closed(db: Path, closed: str) -> None:
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "taskpool", "-C", str(db), "ls"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["-h"], ["ls", "-h"], ["help"], ["help", "ls"], ["--version"]])
def test_help_and_version(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_long_help_has_the_sections_of_a_man_page(run: Run) -> None:
    for verb in ("ls", "show", "status", "result", "log"):
        text = run("help", verb).stdout
        for section in ("EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "FILES"):
            assert section in text


def test_reading_leaves_the_file_as_it_was(run: Run, db: Path) -> None:
    before = db.read_bytes()
    for words in (["ls"], ["show", "1"], ["status"], ["result", "1"], ["log", "1"]):
        assert run(*words).returncode == 0
    assert db.read_bytes() == before
    with Reader(db) as reader:
        assert sum(reader.counts().values()) == 8


def test_ls_loads_no_more_than_it_needs(db: Path) -> None:
    code = "import sys; from taskpool.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "-C", str(db), "ls", "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stderr.split())
    assert not loaded & {
        "dill",
        "multiprocess",
        "psutil",
        "sqlite_utils",
        "rich",
        "asyncio",
        "taskpool.doors.pool",
        "taskpool.cli.run",
    }
