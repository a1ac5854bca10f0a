"""What bodies print reaches the supervisor, each byte under the attempt that wrote it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

import taskpool.worker.controller as controllers
from taskpool.wire.jobs import OK, Report


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def say(text: str, **kwargs: Any) -> None:
    print(text, **kwargs)


def test_every_way_to_write_is_captured(rig: Rig) -> None:
    def all_ways() -> None:
        print("print")
        print("error", file=sys.stderr)
        sys.stdout.write("no newline")
        os.write(1, b" raw1 ")
        os.write(2, b" raw2 ")
        sys.__stdout__.write("dunder")
        sys.stdout.buffer.write(b"buffered")
        controllers.current().log("logged")
        subprocess.run(["echo", "a child"], check=True)

    rig.run(all_ways)
    found = rig.printed(1).decode()
    for part in ("print\n", "error\n", "no newline", " raw1 ", " raw2 ", "dunder", "buffered", "logged\n", "a child\n"):
        assert part in found


def test_output_is_attributed_to_the_byte(rig: Rig) -> None:
    """Many short jobs in a mailbox, while the reader drains at any moment."""
    texts = [f"job {i} " + "x" * (i * 37 % 300) for i in range(400)]
    for start in range(0, 400, 50):
        rig.send(*(rig.job(say, text, end="") for text in texts[start : start + 50]))
    rig.report(400)
    assert [rig.printed(n + 1).decode() for n in range(400)] == texts


def test_a_flood_neither_blocks_nor_gets_lost(rig: Rig) -> None:
    def flood() -> int:
        for i in range(40_000):
            print(i, "#" * 90)
        return 40_000

    report = rig.run(flood)
    assert report.outcome == OK
    found = rig.printed(1)
    assert found.count(b"\n") == 40_000
    assert found.startswith(b"0 ###")
    assert found.endswith(b"#\n")


def test_text_that_cannot_be_encoded_is_printed_all_the_same(rig: Rig) -> None:
    rig.run(say, "ä\ud800\n")
    assert rig.printed(1) == "ä\\ud800\n\n".encode()


def test_lines_come_while_the_body_still_runs(rig: Rig, tmp_path: Path) -> None:
    def talk(path: str) -> None:
        print("working")
        while not os.path.exists(path):
            pass

    path = str(tmp_path / "go")
    rig.send(rig.job(talk, path))
    rig.until(lambda: rig.output == b"working\n")
    assert not rig.of(Report)
    Path(path).touch()
    rig.report(1)


def replace_streams() -> None:
    sys.stdout = io.StringIO()
    sys.stderr = io.StringIO()


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def close_descriptors() -> None:
    os.close(1)
    os.close(2)


def redirect_descriptors(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    print("into the file")


def reenter() -> None:
    contextlib.redirect_stdout(io.StringIO()).__enter__()


@pytest.mark.parametrize("fn", [replace_streams, close_streams, close_descriptors, redirect_descriptors, reenter])
@pytest.mark.parametrize("together", [False, True])
def test_the_next_body_has_its_streams_again(rig: Rig, tmp_path: Path, fn: Any, together: bool) -> None:
    path = tmp_path / "file"
    jobs = [rig.job(fn, str(path)) if fn is redirect_descriptors else rig.job(fn), rig.job(say, "heard"), rig.job(say, "again")]
    if together and fn in (close_descriptors, redirect_descriptors):
        jobs.insert(1, rig.job(os.sched_yield))  # in one mailbox descriptors are restored at its end only
        jobs = jobs[:2]
    if together:
        rig.send(*jobs)
    else:
        for job in jobs:
            rig.send(job)
            rig.report(job.n)
    rig.report(jobs[-1].n)
    assert not any(report.dirty for report in rig.of(Report))
    rig.run(say, "last")
    assert rig.printed(rig.n) == b"last\n"
    if fn is redirect_descriptors:
        assert path.read_text() == "into the file\n"
    elif not together:
        assert rig.printed(2) == b"heard\n"
