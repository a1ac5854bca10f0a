"""The pages say only what is so: their programs run, their commands print what they show, their links and options exist.

A page is a place of its own, read from the top. A ```python block whose first line is `# name.py` is that file, another is only
compiled. In ```console blocks a `$ ` begins a command; what follows is what it prints, where … stands for anything within a line,
and a line of … for any lines. `taskpool serve` is run as if in another terminal; a line `^C` in what it prints interrupts it.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from taskpool.cli.exits import MEANING
from taskpool.cli.main import VERBS, Verbs, program
from taskpool.cli.verb import Verb, global_options
from taskpool.doors.client import QueueSettings
from taskpool.doors.options import TaskOptions
from taskpool.faults import POINTS
from taskpool.model import Controller, RetryPolicy, Spawning

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*/*.md"))]
TRIED = [page for page in PAGES if re.search(r"^```(python|console)$", page.read_text(), re.MULTILINE)]
WAIT_S = 60
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w.-]+\.(?:py|sh|csv|txt))\n")
UNFINISHED = re.compile(r": \d+/\d+ done \((?!100 %)")  # progress, told every few seconds
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Yield the fenced blocks of a page: language, text, number of the first line."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield match[1], match[2], text.count("\n", 0, match.start()) + 2


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield (command, what it prints) of a console block."""
    command, printed = "", ""
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], ""
        elif line.startswith("> ") and not printed:
            command += "\n" + line[2:]
        else:
            printed += line + "\n"
    yield command, printed


def plain(text: str) -> str:
    """Return a text with runs of blanks as one (columns are as wide as what stands in them), without what a slow run adds."""
    lines = (" ".join(line.split()) for line in text.strip().splitlines())
    return "\n".join(line for line in lines if not UNFINISHED.search(line))


def pattern_of(shown: str) -> re.Pattern[str]:
    """Return the expression for what a page shows of an output."""
    lines = []
    for line in plain(shown).splitlines():
        lines.append(r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*?") + "\n")
    return re.compile("".join(lines))


def prints(shown: str, printed: str) -> bool:
    """Return whether a page shows what was printed."""
    return pattern_of(shown).fullmatch(plain(printed) + "\n" if printed.strip() else "") is not None


class Spoken:
    """A process, and what it prints."""

    def __init__(self, words: list[str], place: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            words,
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def write(self, text: str) -> None:
        """Type something."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def read_until(self, enough: Callable[[str], bool], what: str) -> str:
        """Return what is printed until that is enough."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        printed, until = b"", time.monotonic() + WAIT_S
        while not enough(printed.decode(errors="replace")):
            assert time.monotonic() < until, f"{what}\nprinted\n{printed.decode()}"
            if select.select([fd], [], [], 0.1)[0]:
                more = os.read(fd, 1 << 16)
                assert more, f"{what}\nended and printed\n{printed.decode()}"
                printed += more
        return printed.decode()

    def interrupt(self) -> str:
        """Press Ctrl-C, and return what is printed until it ends, well."""
        self._process.send_signal(signal.SIGINT)
        printed, _ = self._process.communicate(timeout=WAIT_S)
        assert self._process.returncode == 0, printed.decode()
        return printed.decode()

    def close(self) -> None:
        """End it and all that it started, if they live."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Terminal:
    """A shell in a directory, and the servers that were started beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKPOOL_", "XDG_"))} | {
            "HOME": str(place),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        self._servers: list[tuple[Spoken, str]] = []
        self._shell = self._start(["bash", "--noprofile", "--norc"])

    def _start(self, words: list[str]) -> Spoken:
        return Spoken(words, self.place, self._environment)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in the shell. Return its exit status and what it printed."""
        mark = f"mark-{time.monotonic_ns()}"
        self._shell.write(f"{command}\n__status=$?; printf '\\n{mark} %s\\n' $__status; (exit $__status)\n")
        end = re.compile(rf"\n{mark} (\d+)\n")
        found = end.search(self._shell.read_until(lambda printed: end.search(printed) is not None, command))
        assert found is not None
        return int(found[1]), found.string[: found.start()]

    def serve(self, command: str, shown: str) -> None:
        """Start a server, and wait for the lines that it prints at its start."""
        first, _, rest = shown.partition("^C\n")
        server = self._start(shlex.split(command))
        self._servers.append((server, rest))
        server.read_until(lambda printed: prints(first, printed), command)

    def stop_servers(self) -> None:
        """Interrupt the servers, and see that they end as the page says."""
        for server, rest in self._servers:
            printed = server.interrupt()
            assert not rest or prints(rest, printed), printed

    def close(self) -> None:
        """Leave nothing behind."""
        for spoken in (self._shell, *(server for server, _ in self._servers)):
            spoken.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(page: Path, terminal: Terminal) -> None:
    unused: dict[str, int] = {}
    for language, text, line in blocks(page):
        at = f"{page.relative_to(ROOT)}:{line}"
        named = FILE_NAME.match(text)
        if language in ("python", "sh", "csv") and named:
            (terminal.place / named[1]).write_text(text)
            if "__main__" in text:
                unused[named[1]] = line
        if language == "python":
            compile("\n" * (line - 1) + text, str(page), "exec")
        if language != "console":
            continue
        for command, shown in commands(text):
            for name in list(unused):
                if name in command:
                    del unused[name]
            if re.match(r"taskpool (-C \S+ )?serve\b", command) and "error:" not in shown:
                terminal.serve(command, shown)
                continue
            status, printed = terminal.run(command)
            assert prints(shown, printed), f"{at}\n$ {command}\nshows\n{plain(shown)}\nbut prints\n{plain(printed)}"
            assert status == 0 or shown, f"{at}\n$ {command}\nends with exit status {status}"
    terminal.stop_servers()
    assert not unused, f"{page.name} has programs that it does not run: {unused}"


# ---- what is named, exists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text())
    for target in LINK.findall(prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text()
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in contents, page.name


@pytest.mark.parametrize(("name", "at_least"), [("robustness", 80), ("rules", 150)])
def test_every_test_that_is_named_exists(name: str, at_least: int) -> None:
    """The adversary's list and the rules would be worth nothing otherwise."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > at_least
    assert text.count(".py::") == len(named), "a name that is not read"
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_rule_has_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "rules.md").read_text().splitlines() if line.startswith("|")]
    rules = [row for row in rows if row not in ("| rule | test |", "|---|---|")]
    assert len(rules) > 100
    for row in rules:
        assert re.fullmatch(r"\| \S.*[.;] \| (`[\w/]+\.py::test_\w+`(, )?)+ \|", row), row


def test_every_verb_and_option_of_the_command_line_has_its_words() -> None:
    """The page on the command line and the program say the same: verbs, options, exit codes."""
    text = (ROOT / "docs" / "command-line.md").read_text()
    sections = {match[1]: match[2] for match in re.finditer(r"^## `taskpool (\w+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
    context = click.Context(program, info_name="taskpool")
    assert isinstance(program, Verbs)
    shared = {name for option in global_options() for name in option.opts}
    assert list(sections) == list(VERBS)
    for name, section in sections.items():
        verb = program.get_command(context, name)
        assert isinstance(verb, Verb)
        mine = [option for option in verb.params if isinstance(option, click.Option) and not option.hidden]
        for option in mine:
            if not shared.intersection(option.opts) and not _is_filter(option):
                longest = max(option.opts, key=len)
                assert f"`{longest}" in section, f"{name} {longest}"
        for written in re.findall(r"`(--[\w-]+)", section):
            assert any(written in option.opts for option in mine), f"{name} has no {written}"
    for option in shared:
        assert f"`{option}" in text, option
    for code in MEANING:
        assert f"| {int(code)} |" in text, code


def test_every_shape_of_json_has_its_words() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    sources = [path.read_text() for path in sorted((ROOT / "taskpool" / "cli").glob("*.py"))]
    shapes = {shape for source in sources for shape in re.findall(r'"(taskpool\.[\w.-]+/\d+)"', source)}
    assert shapes == set(re.findall(r"taskpool\.[\w.-]+/\d+", text))


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("retries", "## A policy", set(RetryPolicy.__struct_fields__)),
        ("tasks", "## Options", set(TaskOptions.__annotations__)),
        ("tasks", "## The controller", {name for name in {**vars(Spawning), **vars(Controller)} if not name.startswith("_")}),
        ("testing", "## Planted faults", set(POINTS)),
        ("queues", "## What a queue may be told", set(QueueSettings.__annotations__)),
    ],
)
def test_tables_are_complete(page: str, heading: str, names: set[str]) -> None:
    section = (ROOT / "docs" / f"{page}.md").read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert {name for first in firsts for name in re.findall(r"`([\w.]+)", first)} == names


def _is_filter(option: click.Option) -> bool:
    """Return whether an option chooses tasks: those are told of once."""
    return (option.help or "").startswith("Tasks ")
