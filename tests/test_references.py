"""docs/references.md maps every name of the five task APIs to a name of ours and a test, which exist, or to a reason."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import taskpool
from taskpool.doors.options import TaskOptions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "references.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.*?) \|$")
PATH = re.compile(r"`([\w.]+)`")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def wanted() -> dict[str, list[str]]:
    """Return the names of each API, as the list has them."""
    names: dict[str, list[str]] = {}
    for line in (ROOT / "tests" / "data" / "reference_names.txt").read_text().splitlines():
        if line.startswith("["):
            names[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names[list(names)[-1]].append(line)
    return names


def rows() -> dict[str, list[tuple[str, str, str]]]:
    """Return (name, ours, test) of each section of the page; a section is named in its heading, in brackets."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in PAGE.splitlines():
        heading = re.match(r"^## .*\((\w+)\)$", line)
        if heading:
            found[heading[1]] = []
        row = ROW.match(line)
        if row:
            found[list(found)[-1]].append((row[1], row[2], row[3]))
    return found


ROWS = [(section, *row) for section, of_it in rows().items() for row in of_it]


def resolved(path: str) -> Any:
    """Return what a dotted path from `taskpool` on names: modules, attributes, fields, keys of options, parameters."""
    found: Any = taskpool
    if path.startswith("doors.options.TaskOptions."):
        return TaskOptions.__annotations__[path.rpartition(".")[2]]
    for part in path.split("."):
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, ModuleType):
            found = importlib.import_module(f"{found.__name__}.{part}")
        elif part in getattr(found, "__annotations__", ()) and isinstance(found, type):
            found = found.__annotations__[part]
        elif inspect.isroutine(found) or hasattr(found, "__init__"):
            found = inspect.signature(found).parameters.get(part)
            if found is None:
                raise LookupError(f"{path}: there is no {part!r}")
        else:
            raise LookupError(f"{path}: there is no {part!r}")
    return found


def test_the_page_has_every_name_once_and_no_other() -> None:
    names, found = wanted(), rows()
    assert list(found) == list(names)
    for section, of_it in found.items():
        assert [name for name, _, _ in of_it] == names[section], section


@pytest.mark.parametrize(("section", "name", "ours", "test"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_what_a_name_leads_to_exists(section: str, name: str, ours: str, test: str) -> None:
    if not ours.startswith("—"):
        paths = PATH.findall(ours)
        assert paths, f"{name} leads nowhere"
        assert test, f"nothing proves {name}"
        for path in paths:
            resolved(path)
    else:
        assert len(ours) > 20, f"{name} leads nowhere, and nobody says why"
    for file, function in TEST.findall(test):
        place = ROOT / "taskpool" / "testing" / file if file == "stores.py" else ROOT / "tests" / file
        assert re.search(rf"^ *(def|class) {function}\b", place.read_text(), re.MULTILINE), f"{file} has no {function}"
    assert not test or TEST.search(test), f"{test} names no test"


def test_a_path_that_leads_nowhere_is_seen() -> None:
    for path in ("Nothing", "Client.nothing", "Status.DONE", "doors.options.TaskOptions.nothing", "Pool.nothing"):
        with pytest.raises((LookupError, ImportError)):
            resolved(path)
