"""The harness that measures: its statistics, its verdicts, its report, and one tiny row from end to end. It judges no speed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import facts, report
from bench.chart import Bar, bars
from bench.harness import ContenderFailed, Figure, Measured, Result, Row, Target, in_fresh_process, lines_of, run_row, write
from bench.rows import MODULES, find
from bench.statistics import median, quantile, short


def test_median_and_quantiles_are_those_of_the_textbook() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    hundred = list(range(1, 101))
    assert quantile(hundred, 0.5) == 50
    assert quantile(hundred, 0.99) == 99
    assert quantile(hundred, 1.0) == 100
    assert quantile([7], 0.99) == 7
    for empty in (lambda: median([]), lambda: quantile([], 0.5)):
        with pytest.raises(ValueError, match="no values"):
            empty()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.007891, "0.00789"), (45.678, "45.7"), (3.0, "3"), (1234.5, "1,234"), (123456, "123,500"), (-2.5, "-2.5")],
)
def test_numbers_are_shown_with_few_digits(value: float, text: str) -> None:
    assert short(value) == text


def _row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "id": "P1",
        "title": "A row",
        "text": "About it.",
        "contenders": ("taskpool power", "PPE"),
        "figures": (Figure("rate", "tasks/s", "tasks a second", "higher"),),
        "measure": lambda contender, params: Measured({"rate": 1.0}),
        "params": {"tasks": 100},
        "quick": {"tasks": 1},
        "headline": "rate",
        "targets": (
            Target("ours ÷ PPE", lambda at: at["taskpool power"]["rate"] / at["PPE"]["rate"], at_least=3.0),
            Target("ours ÷ nobody", lambda at: at["nobody"]["rate"]),
        ),
    }
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def _result(*pairs: tuple[float, float]) -> Result:
    rounds = [{"taskpool power": {"rate": ours}, "PPE": {"rate": peer}} for ours, peer in pairs]
    return Result(_row(), rounds, {"taskpool power": {"pragmas": {"synchronous": 2}}}, {"tasks": 100}, {})


def test_a_ratio_is_taken_within_each_round_and_its_median_is_judged() -> None:
    result = _result((300, 100), (80, 40), (1000, 200))  # 3, 2 and 5, though the medians would say 300 ÷ 100
    [(target, values)] = result.judged()  # the other's contender did not run
    assert values == [3, 2, 5]
    (verdict,) = [line for line in lines_of(result) if line["kind"] == "target"]
    assert (verdict["median"], verdict["min"], verdict["max"], verdict["met"]) == (3, 2, 5, True)
    assert not target.met(2.99)


def test_every_round_of_every_figure_is_kept() -> None:
    figures = {line["contender"]: line for line in lines_of(_result((3, 1), (2, 1))) if line["kind"] == "figure"}
    assert figures["taskpool power"]["rounds"] == [3, 2]
    assert figures["taskpool power"]["median"] == 2.5
    assert figures["PPE"]["machine"]["python"]


def test_the_report_quotes_what_was_measured_and_only_that(tmp_path: Path) -> None:
    write(_result((12345, 3000), (12345, 3000)), tmp_path)
    page, picture = report.write(tmp_path, tmp_path / "docs" / "performance.md")
    text = page.read_text()
    assert "12,340" in text
    assert "| 3,000 |" in text
    assert "ours ÷ PPE | 4.12 | ≥ 3 | yes" in text.replace("| P1 | ", "")
    assert "synchronous=2" in text
    assert f"({picture.name})" in text
    with pytest.raises(FileNotFoundError, match="no results"):
        report.write(tmp_path / "empty", tmp_path / "page.md")


def test_the_readme_quotes_a_summary_between_its_marks(tmp_path: Path) -> None:
    write(_result((12345, 3000), (12345, 3000)), tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- numbers -->\nof old\n<!-- end of numbers -->\nafter\n")
    for _ in range(2):
        report.write(tmp_path, tmp_path / "performance.md", readme)
        text = readme.read_text()
        assert text.startswith("before\n<!-- numbers -->\n|")
        assert text.endswith("<!-- end of numbers -->\nafter\n")
        assert "of old" not in text
        assert "1 of 1 targets are met." in text
    assert all(mark in report.README.read_text() for mark in report.SUMMARY)


def test_a_missed_target_is_said_plainly(tmp_path: Path) -> None:
    write(_result((2, 1)), tmp_path)
    page, _ = report.write(tmp_path, tmp_path / "performance.md")
    assert "| ours ÷ PPE | 2 | ≥ 3 | **no** |" in page.read_text()


def test_a_picture_is_well_formed_and_says_its_numbers_in_words() -> None:
    for log in (False, True):
        tree = ElementTree.fromstring(
            bars("A <title>", "tasks/s", [Bar("a & b", 10, 9, 11, True), Bar("c", 1000, 0, 1e4)], log=log)
        )
        words = "".join(tree.itertext())
        assert "A <title>" in words
        assert "a & b: 10 tasks/s; c: 1,000 tasks/s" in words


def test_every_row_can_be_found_and_is_whole() -> None:
    for row_id in MODULES:
        row = find(row_id.lower())
        assert row.id == row_id
        assert row.quick.keys() == row.params.keys()
        assert not row.headline or row.headline in {figure.name for figure in row.figures}


def test_facts_of_machine_and_disk_are_there(tmp_path: Path) -> None:
    assert {"cpu", "cpus", "kernel", "python", "sqlite", "filesystem"} <= facts.machine().keys()
    assert facts.versions("no-such-distribution-of-ours")["no-such-distribution-of-ours"] == "absent"
    took = facts.commit_us(tmp_path, commits=3)
    assert len(took) == 3
    assert min(took) > 0
    assert list(tmp_path.iterdir()) == []


def test_contenders_take_turns_and_one_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(row: Row, contender: str, params: object) -> Measured:
        calls.append(contender)
        if contender == "PPE":
            raise ContenderFailed("it broke")
        return Measured({"rate": 2.0}, {"durability": "power"})

    monkeypatch.setattr("bench.harness.in_fresh_process", fake)
    result = run_row(_row(prepare=lambda params: {"steps": 5}), rounds=3, quick=True, params={"tasks": 7})
    assert calls == ["taskpool power", "PPE", "taskpool power", "taskpool power"]  # and PPE is not tried again
    assert result.params == {"tasks": 7, "steps": 5}
    assert result.failures == {"PPE": "it broke"}
    assert [line["why"] for line in lines_of(result) if line["kind"] == "failure"] == ["it broke"]


def test_a_tiny_row_runs_in_fresh_processes_and_is_written(tmp_path: Path) -> None:
    result = run_row(find("P1"), rounds=1, quick=True, contenders=["PPE"], params={"tasks": 20})
    assert result.failures == {}
    (line,) = map(json.loads, write(result, tmp_path).read_text().splitlines())
    assert (line["row"], line["contender"], line["figure"]) == ("P1", "PPE", "rate")
    assert line["median"] > 0


def test_a_contender_that_gives_no_figures_says_why() -> None:
    with pytest.raises(ContenderFailed, match="KeyError: 'nobody'"):
        in_fresh_process(find("P1"), "nobody", {"tasks": 1})
