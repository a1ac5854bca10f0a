"""docs/performance.md and its pictures, written from the results' files alone: the page quotes nothing that was not measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.chart import Bar, bars
from bench.harness import RESULTS, ROOT, Row
from bench.rows import MODULES, find
from bench.statistics import short

Record = Mapping[str, Any]
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
SUMMARY = ("<!-- numbers -->", "<!-- end of numbers -->")  # between these lines the README quotes the results

INTRODUCTION = """# Performance

Written by `python -m bench report` from `bench/results/`; change nothing here by hand. `python -m bench` measures it anew
(`pip install -e ".[bench]"` brings the peers), `python -m bench P1 --quick` gives a first impression of one row.

How to read it. Each contender runs in a fresh process, in interleaved rounds, at the same number of workers; a cell shows the
median over the rounds and, in brackets, the least and the greatest. A ratio is taken within each round, since the machine is not
the same from one minute to the next; the ratios are what these pages promise, the absolute figures belong to this machine.
*power*: an acknowledged task survives a power cut (SQLite in WAL mode, `synchronous=FULL`); *process*: it survives the death of
every process (`synchronous=NORMAL`). The peers keep nothing: ProcessPoolExecutor (PPE), multiprocessing.Pool with `apply_async`
(MPP), and pebble.
"""


def load(directory: Path = RESULTS) -> dict[str, list[Record]]:
    """Return the records of every row that has a results' file, in the order of the table."""
    found = {}
    for row_id in MODULES:
        path = directory / f"{row_id.lower()}.jsonl"
        if path.exists():
            found[row_id] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def page(results: Mapping[str, Sequence[Record]], pictures: Mapping[str, str]) -> str:
    """Return the page. pictures: row id → file name of its picture."""
    parts = [INTRODUCTION, _targets_table(results)]
    for row_id, records in results.items():
        row = find(row_id)
        parts.append(f"## {row_id} · {row.title}\n\n{row.text}\n")
        if row_id in pictures:
            parts.append(f"![{row.title}, {_headline(row)[1]}]({pictures[row_id]})\n")
        parts.append(_figures_table(records))
        parts += [f"{record['contender']} has no figures: {record['why']}\n" for record in records if record["kind"] == "failure"]
        parts.append(_beside(records))
    return "\n".join(parts)


def summary(results: Mapping[str, Sequence[Record]]) -> str:
    """Return the few lines that the README quotes: rates beside the peers, and which targets are met and not."""
    lines = ["| no-op tasks a second, one by one | |", "|---|---|"]
    for record in results.get("P1", ()):
        if record["kind"] == "figure" and record["figure"] == "rate":
            lines.append(f"| {record['contender']} | {cell(record)} |")
    targets = [(row_id, at) for row_id, records in results.items() for at in records if at["kind"] == "target"]
    judged = [(row_id, at) for row_id, at in targets if verdict(at)]
    missed = [(row_id, at) for row_id, at in judged if not at["met"]]
    lines += ["", f"{len(judged) - len(missed)} of {len(judged)} targets are met."]
    if missed:
        lines += ["", "| not met | measured | target |", "|---|---|---|"]
        lines += [f"| {row_id} {at['text']} | {cell(at)} {at['unit']} | {demand(at)} |" for row_id, at in missed]
    return "\n".join(lines)


def quote(readme: Path, results: Mapping[str, Sequence[Record]]) -> None:
    """Put the summary into the README, in place of the last one."""
    begin, end = SUMMARY
    head, _, rest = readme.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{begin}\n{summary(results)}\n{end}{tail}")


def write(directory: Path = RESULTS, page_path: Path = PAGE, readme: Path | None = None) -> list[Path]:
    """Write the page and a picture for each row that has a headline; return the paths. FileNotFoundError without results.

    readme: quotes the summary, too.
    """
    results = load(directory)
    if not results:
        raise FileNotFoundError(f"no results in {directory}; run `python -m bench` first")
    page_path.parent.mkdir(parents=True, exist_ok=True)
    pictures, written = {}, []
    for row_id, records in results.items():
        svg = picture(find(row_id), records)
        if svg:
            path = page_path.parent / f"performance-{row_id.lower()}.svg"
            path.write_text(svg)
            pictures[row_id] = path.name
            written.append(path)
    page_path.write_text(page(results, pictures))
    if readme is not None:
        quote(readme, results)
        written.append(readme)
    return [page_path, *written]


def picture(row: Row, records: Sequence[Record]) -> str:
    """Return the row's headline figure as an SVG bar chart, or "" if the row has none or too little was measured."""
    found = [at for at in records if at["kind"] == "figure" and at["figure"] == row.headline]
    if len(found) < 2:
        return ""
    rows = [Bar(at["contender"], at["median"], at["min"], at["max"], at["contender"].startswith("taskpool")) for at in found]
    values = [bar.value for bar in rows if bar.value > 0]
    wide = bool(values) and max(values) > 100 * min(values)
    return bars(f"{row.id} · {row.title}", _headline(row)[1], rows, log=wide)


def _headline(row: Row) -> tuple[str, str]:
    for figure in row.figures:
        if figure.name == row.headline:
            better = f" ({figure.better} is better)" if figure.better else ""
            return figure.name, f"{figure.text}, {figure.unit}{better}"
    return "", row.title


def demand(record: Record) -> str:
    """Return a target's bound in words, "–" for a ratio that is only shown."""
    parts = []
    if record["at_least"] is not None:
        parts.append(f"≥ {short(record['at_least'])}")
    if record["at_most"] is not None:
        parts.append(f"≤ {short(record['at_most'])}")
    return " and ".join(parts) or "–"


def cell(record: Record) -> str:
    """Return median and extremes: 12,300 (11,900–12,800)."""
    if record["min"] == record["max"]:
        return short(record["median"])
    return f"{short(record['median'])} ({short(record['min'])}–{short(record['max'])})"


def verdict(record: Record) -> str:
    """Return yes or no, or "" for a ratio without a bound."""
    return "" if record["at_least"] is None and record["at_most"] is None else "yes" if record["met"] else "**no**"


def _targets_table(results: Mapping[str, Sequence[Record]]) -> str:
    lines = ["## Targets\n", "| row | what | measured | target | met |", "|---|---|---|---|---|"]
    for row_id, records in results.items():
        for record in records:
            if record["kind"] == "target":
                unit = "" if record["unit"] == "×" else f" {record['unit']}"
                lines.append(f"| {row_id} | {record['text']} | {cell(record)}{unit} | {demand(record)} | {verdict(record)} |")
    return "\n".join(lines) + "\n"


def _figures_table(records: Sequence[Record]) -> str:
    figures = [at for at in records if at["kind"] == "figure"]
    names = list(dict.fromkeys(at["figure"] for at in figures))
    heads = {at["figure"]: f"{at['text']}, {at['unit']}" for at in figures}
    lines = ["| | " + " | ".join(heads[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for contender in dict.fromkeys(at["contender"] for at in figures):
        mine = {at["figure"]: at for at in figures if at["contender"] == contender}
        lines.append(f"| {contender} | " + " | ".join(cell(mine[name]) if name in mine else "" for name in names) + " |")
    return "\n".join(lines) + "\n"


def _beside(records: Sequence[Record]) -> str:
    """Return what must stand beside the numbers: when, where, with what, under which PRAGMAs."""
    first = records[0]
    machine = first["machine"]
    versions: dict[str, str] = {}
    pragmas: dict[str, Any] = {}
    for record in records:
        about = record.get("facts", {})
        versions |= about.get("versions", {})
        if "pragmas" in about:
            pragmas[record["contender"]] = about["pragmas"]
    rounds = max((len(record["rounds"]) for record in records if "rounds" in record), default=0)
    sizes = ", ".join(f"{name}={value}" for name, value in first["params"].items())
    lines = [
        f"{first['at']}, {rounds} rounds, {sizes}. {machine['cpus']} × {machine['cpu']}, {machine['memory_gb']} GB, "
        f"Linux {machine['kernel']}, {machine['filesystem']}, SQLite {machine['sqlite']}, load {machine['load_1m']}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + "."
    ]
    lines += [f"{name}: " + ", ".join(f"{k}={v}" for k, v in values.items()) + "." for name, values in pragmas.items()]
    return "<small>" + "<br>".join(lines) + "</small>\n"
