"""The twenty hardest functions of Python's standard library, measured by a pool that survives whatever happens to it.

Each source file is one task: it is parsed, and of each function the length and the cyclomatic complexity (McCabe: one, and one more
for every branch) are taken. One file's task is made to crash its process on purpose; nothing else is lost, and the report says
what happened. Kill this program with -9 in the middle and start it again: it goes on where it was, and prints the same report.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from taskpool import Attempt, Pool, TaskPanicked, task

LIBRARY = Path(os.__file__).parent
CRASHES = "this.py"  # the Zen of Python; its task reads address 0


@dataclass(frozen=True)
class Function:
    """One function. length in lines, with its decorators; complexity: McCabe's."""

    file: str
    name: str
    line: int
    length: int
    complexity: int


class Measure(ast.NodeVisitor):
    """Walks a module and measures each function; one inside another counts for itself, not for the outer one."""

    # What adds one path through a function.
    BRANCHES = (
        ast.If,
        ast.For,
        ast.AsyncFor,
        ast.While,
        ast.IfExp,
        ast.ExceptHandler,
        ast.Assert,
        ast.comprehension,
        ast.match_case,
    )

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Function] = []
        self._names: list[str] = []
        self._complexity = 0

    def visit(self, node: ast.AST) -> None:
        """Measure a function, note a class's name, and count what branches."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._inside(node)
        else:
            if isinstance(node, self.BRANCHES):
                self._complexity += 1 + len(getattr(node, "ifs", ()))
            elif isinstance(node, ast.BoolOp):
                self._complexity += len(node.values) - 1
            self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self._complexity = self._complexity, 1
        self._inside(node)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        length = (node.end_lineno or node.lineno) - first + 1
        self.found.append(Function(self.file, ".".join([*self._names, node.name]), node.lineno, length, self._complexity))
        self._complexity = outer

    def _inside(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()


@task
def measure(file: str) -> list[Function]:
    """Return the functions of one file of the library. Files that are broken on purpose (the library tests with some) have none."""
    if file == CRASHES:
        ctypes.string_at(0)  # a crash in C, as a bad extension module has it: no exception, the process is gone
    visitor = Measure(file)
    try:
        visitor.visit(ast.parse((LIBRARY / file).read_bytes()))
    except (SyntaxError, ValueError):
        return []
    return visitor.found


def library_files() -> list[str]:
    """Return the library's source files, by their paths in it, without installed packages."""
    found = (path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))
    return sorted(str(path) for path in found if not {"site-packages", "dist-packages", "__pycache__"} & set(path.parts))


# ---- the report ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure the library, print the hardest functions, what crashed, and what it took."""
    parser = argparse.ArgumentParser(description="The hardest functions of the standard library.")
    parser.add_argument("--store", default="hardest-functions", help="file (or name) that holds the work; run again, it goes on")
    parser.add_argument("--workers", type=int, help="processes (default: one per usable CPU)")
    parser.add_argument("--fresh", action="store_true", help="measure all files anew")
    parser.add_argument("--top", type=int, default=20, help="how many functions to show")
    args = parser.parse_args()

    files = library_files()
    began = time.time()
    with Pool(args.store, workers=args.workers) as pool:
        batch = f"python {platform.python_version()}"
        results = pool.map(measure, files, batch=batch, fresh=args.fresh, return_exceptions=True, progress="measuring files")
        measured: dict[str, list[Function] | Exception] = dict(zip(files, results, strict=True))
        wall = time.time() - began
        attempts = [attempt for each in all_tasks(pool, batch) for attempt in pool.attempts(each)]
        workers = pool.workers

    crashed = {file: found for file, found in measured.items() if isinstance(found, Exception)}
    functions = [function for found in measured.values() if isinstance(found, list) for function in found]
    functions.sort(key=lambda f: (-f.complexity, -f.length, f.file, f.line))
    print_hardest(functions[: args.top], total=len(functions), files=len(files) - len(crashed))
    print_crashes(crashed, attempts)
    print_numbers(attempts, tasks=len(files), workers=workers, began=began, wall=wall)


def all_tasks(pool: Pool, batch: str) -> list[int]:
    """Return the ids of a batch, a page at a time."""
    ids: list[int] = []
    while page := pool.list(batch=batch, limit=1000, before=ids[-1] if ids else None):
        ids += [each.id for each in page]
    return ids


def print_hardest(hardest: list[Function], *, total: int, files: int) -> None:
    """Print the functions as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"The {len(hardest)} hardest of {total:,} functions in {files:,} files of Python {platform.python_version()}"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "complexity", "lines"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("function", overflow="fold")
    table.add_column("where", overflow="fold")
    for place, function in enumerate(hardest, 1):
        where = f"{function.file}:{function.line}"
        table.add_row(str(place), str(function.complexity), str(function.length), function.name, where)
    Console().print(table)


def print_crashes(crashed: dict[str, Exception], attempts: list[Attempt]) -> None:
    """Say in words what became of the files whose process died, and with what on its stack."""
    for file, error in crashed.items():
        print(f"\n{file} was not measured: {error}")
        if isinstance(error, TaskPanicked):
            last = max((a for a in attempts if a.task_id == error.task_id), key=lambda a: a.attempt)
            frames = [line.strip() for line in last.stack.splitlines() if line.strip().startswith("File")]
            print("  Its process was alone in that: all other results are above. It died here:")
            for frame in frames[:3]:
                print(f"    {frame}")


def print_numbers(attempts: list[Attempt], *, tasks: int, workers: int, began: float, wall: float) -> None:
    """Print what it took, this run apart from those before it that were cut short."""
    ran = [attempt for attempt in attempts if attempt.outcome != "returned"]  # sent ahead, and taken back before it began
    mine = [attempt for attempt in ran if attempt.started_at >= began * 1e6]
    cpu = sum(attempt.cpu_user_s + attempt.cpu_system_s for attempt in ran)
    busy = sum(attempt.duration_s for attempt in mine)
    print(f"\n{tasks:,} tasks, {len(ran):,} attempts, {cpu:.1f} CPU seconds in them.")
    if len(ran) > len(mine):
        print(f"{len(ran) - len(mine):,} of these attempts were made by earlier runs; their results were taken from the store.")
    print(f"This run: {len(mine):,} attempts in {wall:.1f} s on {workers} workers.", end=" ")
    if len(mine) > workers:
        print(f"One after the other they would have taken about {busy:.1f} s: {busy / wall:.2f} times as long.")
    else:
        print("--fresh measures everything anew.")


if __name__ == "__main__":
    main()
