"""The table of legal moves: every pair of statuses, and the figure that is drawn from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from taskpool.core import lifecycle
from taskpool.core.lifecycle import MOVES, TERMINAL, WAITING
from taskpool.errors import IllegalTransition
from taskpool.model import Status

ROOT = Path(__file__).resolve().parents[1]
STATUSES = [status.value for status in Status]

# The table of the specification, written a second time on purpose: from → to.
SPECIFIED = {
    "": {"pending", "queued", "running", "cancelled", "failed"},
    "pending": {"queued", "running", "cancelled", "failed"},
    "queued": {"running", "pending", "cancelled", "failed"},
    "running": {"succeeded", "retrying", "failed", "cancelled", "queued", "pending", "interrupted"},
    "retrying": {"queued", "running", "cancelled", "failed"},
    "succeeded": {"pending"},
    "failed": {"pending"},
    "cancelled": {"pending"},
    "interrupted": {"pending"},
}


@pytest.mark.parametrize("after", STATUSES)
@pytest.mark.parametrize("before", ["", *STATUSES])
def test_a_move_is_legal_if_and_only_if_it_is_specified(before: str, after: str) -> None:
    legal = after in SPECIFIED[before]
    assert lifecycle.is_legal(before, after) == legal
    if legal:
        lifecycle.check(7, before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"task 7 cannot move from {before or 'nothing'} to {after}"):
            lifecycle.check(7, before, after)


def test_every_move_says_why_it_happens() -> None:
    assert all(why for moves in MOVES.values() for why in moves.values())


def test_a_task_waits_runs_or_has_ended() -> None:
    """The three kinds of status do not overlap and leave none out; `Status` says the same of itself."""
    assert WAITING | TERMINAL | {lifecycle.RUNNING} == set(STATUSES)
    assert not WAITING & TERMINAL
    assert {status.value for status in Status if status.is_terminal} == TERMINAL


def test_what_has_ended_comes_back_by_hand_only() -> None:
    for status in TERMINAL:
        assert set(MOVES[status]) == {lifecycle.PENDING}
        assert "by hand" in MOVES[status][lifecycle.PENDING]
    assert "force" in MOVES[lifecycle.SUCCEEDED][lifecycle.PENDING]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_lifecycle", ROOT / "scripts" / "draw_lifecycle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_table() -> None:
    """docs/lifecycle.md is drawn from the table; scripts/draw_lifecycle.py brings it up to date."""
    script = _script()
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.drawn(page), "run scripts/draw_lifecycle.py"
    for before, moves in MOVES.items():
        for after in moves:
            assert f"{before or '[*]'} --> {after}: " in page


def test_an_outdated_page_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = _script()
    page = tmp_path / "docs" / "lifecycle.md"
    page.parent.mkdir()
    page.write_text(f"words\n{script.BEGIN}\nold\n{script.END}\nmore words\n", encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(["--check"]) == 1
    assert "run scripts/draw_lifecycle.py" in capsys.readouterr().err
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("words\n")
    assert text.endswith("more words\n")
    assert script.figure() in text
