"""What the program does at a terminal and nowhere else: a progress line, colour, a question before a bulk change."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool.cli.exits import MEANING, Exit
from taskpool.cli.main import VERBS, main
from taskpool.store.reading import Reader

PATIENCE_S = 60.0


class Terminal:
    """The program at a terminal of its own: what it shows, and what is typed."""

    def __init__(self, directory: Path, *words: str, **environment: str) -> None:
        self._primary, secondary = pty.openpty()
        env = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
        for name in ("NO_COLOR", "FORCE_COLOR"):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskpool", *words],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            cwd=directory,
            env=env | {"TERM": "xterm", "COLUMNS": "120"} | environment,
        )
        os.close(secondary)
        self.seen = ""

    def type(self, text: str) -> None:
        """Type some keys."""
        os.write(self._primary, text.encode())

    def until(self, words: str) -> str:
        """Return all that was shown, once these words were."""
        end = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < end, self.seen
            assert self._more(end), self.seen
        return self.seen

    def end(self) -> int:
        """Return the exit code, after all was read."""
        end = time.monotonic() + PATIENCE_S
        while self._more(end):
            assert time.monotonic() < end
        return self.process.wait(PATIENCE_S)

    def _more(self, end: float) -> bool:
        if not select.select([self._primary], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            part = os.read(self._primary, 65536)
        except OSError:  # the last writer has left
            return False
        self.seen += part.decode(errors="replace")
        return bool(part)

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        os.close(self._primary)


@pytest.fixture
def at_terminal(tmp_path: Path) -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    class Opened(Terminal):
        def __init__(self, *words: str, **environment: str) -> None:
            super().__init__(tmp_path, *words, **environment)
            opened.append(self)

    yield Opened  # type: ignore[misc]
    for terminal in opened:
        terminal.close()


def test_a_run_shows_its_progress_on_one_line(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("-C", "x.db", "run", "math:factorial", "3", "4")  # type: ignore[arg-type]
    assert terminal.end() == 0
    assert "/2 done" in terminal.seen
    assert "\r\x1b[K" in terminal.seen
    assert "2 of 2 succeeded" in terminal.seen
    shown = terminal.seen.replace("\r\n", "\n").split("\n")
    assert sorted(line.rpartition("\x1b[K")[2] for line in shown)[:3] == [
        "",
        "2 of 2 succeeded in " + shown[-2].rpartition(" ")[2],
        "24",
    ]


def test_colour_at_a_terminal_unless_it_is_unwanted(at_terminal: type[Terminal], tmp_path: Path) -> None:
    first = at_terminal("-C", "x.db", "run", "math:factorial", "3")  # type: ignore[arg-type]
    assert first.end() == 0
    for words, environment, coloured in (
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
        (("--color", "never"), {}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
    ):
        terminal = at_terminal("-C", "x.db", *words, "ls", **environment)  # type: ignore[arg-type]
        assert terminal.end() == 0
        assert ("\x1b[32m" in terminal.seen) == coloured, (words, environment, terminal.seen)


def test_many_tasks_at_once_are_asked_about(at_terminal: type[Terminal], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    words = [f"while [ ! -e {gate} ]; do sleep 0.05; done; : {{}}"]
    server = at_terminal("-C", "x.db", "serve", "--workers", "1")  # type: ignore[arg-type]
    server.until("ready")
    run = at_terminal("-C", "x.db", "run", *map(str, range(25)), "--batch", "b", "--", *words)  # type: ignore[arg-type]
    run.until("0/25 done")
    no = at_terminal("-C", "x.db", "cancel", "all")  # type: ignore[arg-type]
    no.until("cancel 25 tasks?")
    no.type("n\n")
    assert no.end() == 5
    with Reader(tmp_path / "x.db") as reader:
        assert "cancelled" not in reader.counts()
    yes = at_terminal("-C", "x.db", "cancel", "all", "-y")  # type: ignore[arg-type]
    assert yes.end() == 0
    assert run.end() == 7
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0


# ---- help --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"help"}))
def test_each_verb_has_a_short_and_a_long_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "-h"]) == 0
    short = capsys.readouterr().out
    assert short.startswith(f"Usage: taskpool {verb}")
    assert main(["help", verb]) == 0
    long = capsys.readouterr().out
    assert len(long) > len(short)
    for section in ("EXAMPLES:", "EXIT STATUS:", "ENVIRONMENT:", "FILES:"):
        assert section in long


def test_the_programs_help_lists_all_verbs_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in text
    for code in Exit:
        assert f"  {int(code)} " in text
    assert set(MEANING) == set(Exit)
