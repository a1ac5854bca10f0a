"""The help of a verb lists every code that it ends with: where the store is refused or absent, where no server is."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from taskpool.cli.exits import Exit
from taskpool.cli.main import VERBS, main
from taskpool.store import schema
from taskpool.store.store import Store

ARGUMENTS: dict[str, list[str]] = {
    "cancel": ["1"],
    "cron": [],
    "events": [],
    "explain": ["1"],
    "flow": [],
    "follow": ["1"],
    "handlers": [],
    "log": ["1"],
    "ls": [],
    "pause": ["mail"],
    "prune": [],
    "queues": [],
    "replies": [],
    "result": ["1"],
    "resume": ["mail"],
    "retry": ["1"],
    "run": ["absent.py:f", "1"],
    "serve": ["absent.py"],
    "show": ["1"],
    "status": [],
    "submit": ["absent:f"],
    "wait": ["1"],
}


@pytest.fixture
def newer(tmp_path: Path) -> str:
    """A store of a version that is yet to come."""
    path = tmp_path / "newer.db"
    with closing(Store.open(path, durability="process")):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    return str(path)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "help"])
def test_the_help_lists_every_code(
    tmp_path: Path, newer: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # `run` and `serve` put the directory of a module there
    listed = importlib.import_module(f"taskpool.cli.{verb}").command.exits
    for pool in (newer, str(tmp_path / "none.db"), "unix:none.sock"):
        code = main(["-C", pool, verb, *ARGUMENTS[verb], "--json"])
        said = json.loads(capsys.readouterr().out)
        assert said["error"]["message"]
        if (verb, pool) == ("serve", "unix:none.sock"):
            assert code == Exit.USAGE  # which all can end with, as with 0 and 130
        else:
            assert code in (Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED)
            assert code in listed, (pool, said)
        assert not (tmp_path / "none.db").exists()
