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
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import taskpool
from taskpool import Pool, task

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
