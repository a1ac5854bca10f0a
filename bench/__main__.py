"""`python -m bench [ROW…] [--rounds N] [--quick] [--json]` measures; `python -m bench report` writes docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.harness import RESULTS, ROUNDS, Result, lines_of, run_row, write
from bench.rows import MODULES, find

REHEARSALS = RESULTS / "rehearsal"  # of quick or partial runs: looked at, never quoted


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure: {' '.join(MODULES)} (all), or: report")
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds ({ROUNDS}; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a rehearsal in three minutes")
    parser.add_argument("--json", action="store_true", help="print the records instead of tables")
    parser.add_argument("--patience", type=float, default=0.0, metavar="S", help="wait so long for a quiet machine, each time")
    parser.add_argument("--only", action="append", default=[], metavar="CONTENDER", help="measure only these contenders")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=N", help="override a size of the row")
    parser.add_argument("--out", type=Path, help="directory for results; `report` reads and writes there (bench/results, docs)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command line; return 1 if a contender gave no figures."""
    arguments = _arguments(argv)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what users start is compiled already, as peers in site-packages are
    if arguments.rows == ["report"]:
        out = arguments.out
        written = report.write(out, out / report.PAGE.name) if out else report.write(readme=report.README)
        for path in written:
            print(path)
        return 0
    unknown = [name for name in arguments.rows if name.lower() not in {known.lower() for known in MODULES}]
    if unknown:
        print(f"no such row: {', '.join(unknown)}; there are {' '.join(MODULES)}, and report", file=sys.stderr)
        return 2
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    rehearsal = arguments.quick or arguments.only or arguments.set or rounds < ROUNDS
    directory = arguments.out or (REHEARSALS if rehearsal else RESULTS)
    failed = False
    for row_id in arguments.rows or MODULES:
        began = time.monotonic()
        result = run_row(
            find(row_id),
            rounds=rounds,
            quick=arguments.quick,
            contenders=arguments.only,
            patience_s=arguments.patience,
            params=dict(_size(text) for text in arguments.set),
            tell=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
        )
        failed |= bool(result.failures)
        write(result, directory)
        if arguments.json:
            for line in lines_of(result):
                print(json.dumps(line, sort_keys=True), flush=True)
        else:
            _show(result, time.monotonic() - began)
    return int(failed)


def _size(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _show(result: Result, seconds: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=160)
    records = list(lines_of(result))
    table = Table(title=f"{result.row.id} · {result.row.title} ({seconds:.0f} s)", box=box.SIMPLE, title_justify="left")
    figures = [at for at in records if at["kind"] == "figure"]
    names = list(dict.fromkeys(at["figure"] for at in figures))
    table.add_column("contender", no_wrap=True)
    for name in names:
        unit = next(at["unit"] for at in figures if at["figure"] == name)
        table.add_column(f"{name} [{unit}]".replace("[", r"\["), justify="right")
    for contender in dict.fromkeys(at["contender"] for at in figures):
        mine = {at["figure"]: report.cell(at) for at in figures if at["contender"] == contender}
        table.add_row(contender, *(mine.get(name, "") for name in names))
    console.print(table)
    for at in records:
        if at["kind"] == "target":
            mark = {"yes": "[green]✓[/]", "**no**": "[red]✗[/]", "": " "}[report.verdict(at)]
            console.print(f"  {mark} {at['text']}: {report.cell(at)} {at['unit']}   {report.demand(at)}", highlight=False)
        elif at["kind"] == "failure":
            console.print(f"  [red]{at['contender']} failed:[/] {at['why']}", highlight=False, markup=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
