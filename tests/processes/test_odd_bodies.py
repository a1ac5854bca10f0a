"""Bodies and scripts that nobody expected: numbers that are no times, interpreters taken apart, parents without manners."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from taskpool import Pool, RetryableError, Snooze, controller
from tests.processes.evidence import WAIT_S
from tests.waiting import wait_until

NO_TIMES = [float("inf"), float("nan"), 1e300, -1.0]


def snooze(seconds: float) -> None:
    raise Snooze(seconds)


def ask_for_backoff(seconds: float) -> None:
    raise RetryableError("later", backoff=seconds)


def tell_progress(done: float, total: float) -> int:
    controller().progress(done, total)
    return 1


def test_what_is_no_time_is_an_error_of_its_task(place: Path) -> None:
    """It neither ends the supervisor nor lies in wait for the next."""
    for _ in range(2):
        with Pool(place / "x.db", workers=1, durability="process") as pool:
            for seconds in NO_TIMES:
                assert pool.submit(snooze, seconds).exception(WAIT_S)
                assert pool.submit(ask_for_backoff, seconds).exception(WAIT_S)
            assert pool.submit(abs, -1).result(WAIT_S) == 1


def test_progress_that_is_no_number_is_none(place: Path) -> None:
    """A result is not lost over it."""
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        for number in NO_TIMES:
            for done, total in ((number, number), (1.0, number), (number, 1.0)):
                future = pool.submit(tell_progress, done, total)
                assert future.result(WAIT_S) == 1
                progress = pool.get(future.id).progress
                assert progress is not None
                assert abs(progress.done) < float("inf")


def forget_modules() -> None:
    sys.modules.clear()


def break_builtins() -> None:
    import builtins

    builtins.open = os.write = None  # type: ignore[assignment]


@pytest.mark.parametrize("body", [forget_modules, break_builtins])
def test_an_interpreter_that_was_taken_apart_is_replaced(place: Path, body: Any) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        pool.submit(body).exception(WAIT_S)
        for n in range(20):
            assert pool.submit(tell_progress, n, 0).result(WAIT_S) == 1


# ---- scripts --------------------------------------------------------------------------------------------------------

SCRIPT = """
    import os, sys
    from taskpool import Pool

    def add(a, b):
        return a + b

    if __name__ == "__main__":
        with Pool(workers=1) as pool:
            (three,) = pool.map(add, [1], [2], progress=True)
            said = f"{three} {pool.submit(os._exit, 3).exception()}"
        with open(sys.argv[1], "w") as file:
            file.write(said)
"""

PARENTS = {
    "no errors": "exec 2>&-",
    "nothing standard": "exec 0<&- 1>&- 2>&-",
    "a full disk to print to": "exec 1>/dev/full",
    "a full disk for errors": "exec 2>/dev/full",
    "children ignored": "trap '' CHLD",
    "a directory that is gone": 'cd "$(mktemp -d)"; rmdir "$PWD"',
    "signals ignored": "trap '' INT TERM HUP USR1 USR2 PIPE ALRM",
    "hardly an environment": "unset HOME PATH LANG TMPDIR XDG_RUNTIME_DIR",
    "places that are not there": "export HOME=/none XDG_RUNTIME_DIR=/none/run TMPDIR=/none",
}


@pytest.mark.parametrize("manners", PARENTS.values(), ids=PARENTS.keys())
def test_a_script_may_have_any_parent(tmp_path: Path, tag: str, manners: str) -> None:
    script, said = tmp_path / "it's a script.py", tmp_path / "said"
    script.write_text(textwrap.dedent(SCRIPT))
    line = f'{manners}; exec "$@"'
    if "CHLD" in manners:  # a shell does not hand that on
        ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        line = f'exec {sys.executable} -c "{ignore}" "$@"'
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", sys.executable, str(script), str(said)],
        env=env,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert said.read_text().startswith("3 task 2: exited with code 3"), done
    # 120 is an interpreter's word for what it could not write as it ended.
    assert done.returncode in ((0, 120) if "2>/dev/full" in manners else (0,))
    assert "Traceback" not in done.stderr


WAYS = {
    "-c": ["-c", "{code}"],
    "stdin": ["-"],
    "a cell": ["-c", "import sys; exec(compile(sys.stdin.read(), '<cell 1>', 'exec'), {{'__name__': '__main__'}})"],
    "a namespace": ["-c", "import sys; exec(sys.stdin.read(), {{'__name__': 'of no module'}})"],
    "optimised, all warnings are errors": ["-OO", "-W", "error", "-"],
    "isolated": ["-I", "-c", "import sys; sys.path.insert(0, {root!r}); exec(sys.stdin.read())"],
    "development mode": ["-X", "dev", "-"],
}

CODE = """
import asyncio, threading
from taskpool import Pool

class Point:
    def __init__(self, x):
        self.x = x

def move(point):
    return Point(point.x + STEP)

STEP = 2

def in_thread():
    with Pool(workers=1) as other:
        said.append(other.submit(move, Point(5)).result().x)

async def waits(pool):
    return await asyncio.wrap_future(pool.submit(move, Point(3)))

said = []
with Pool(workers=1) as pool:
    said.append(pool.submit(move, Point(1)).result().x)
    said.append(pool.submit(lambda: STEP).result())
    said.append(asyncio.run(waits(pool)).x)
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
print(said)
"""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_program_need_not_be_a_file(tmp_path: Path, tag: str, way: list[str]) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, *(part.format(code=CODE, root=root) for part in way)]
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, input=CODE, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout == "[3, 2, 5, 7]\n", done.stderr
    assert done.stderr == ""


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path, tag: str) -> None:
    script = os.path.join(os.fsencode(tmp_path), b"caf\xe9.py")
    with open(script, "w") as file:
        file.write(textwrap.dedent(SCRIPT))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, script, "said"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert "InvalidSettings" in done.stderr.splitlines()[-1]
    assert "UTF-8" in done.stderr.splitlines()[-1]


def tree() -> list[int]:
    """Pools in pools: a private one, and one in a process that multiprocessing made."""
    with Pool(workers=1) as pool:
        return [*pool.map(abs, [-1, -2]), os.getppid()]


def test_pools_in_bodies_end_with_them(place: Path, tag: str) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        futures = [pool.submit(tree) for _ in range(3)]
        for future in futures:
            assert future.result(WAIT_S) == [1, 2, pool.pid]
        hanging = pool.options(timeout=1.0).submit(hang_in_a_pool, str(place))
        wait_until(lambda: (place / "up").exists(), "the inner pool")
        assert hanging.exception(WAIT_S)


def hang_in_a_pool(place: str) -> None:
    with Pool(workers=1) as pool:
        future = pool.submit(hang)
        Path(place, "up").touch()
        future.result()


def hang() -> None:
    import time

    time.sleep(WAIT_S)
