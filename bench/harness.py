"""Runs the rows: contenders in fresh processes, in interleaved rounds; keeps every round and judges ratios within each.

A row says what to measure (`Row.measure`, called in a fresh process for one contender), which figures come out, and which targets
hold, each a number computed from one round. A target is met if the median over the rounds meets it. Rounds are rotated, so that no
contender always follows the same other one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import facts
from bench.statistics import median

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
ROUNDS = 3

Params = Mapping[str, Any]
Figures = dict[str, float]
Round = Mapping[str, Mapping[str, float]]  # contender → figure → value


class ContenderFailed(Exception):
    """A contender's process ended without figures."""


@dataclass(frozen=True)
class Measured:
    """What one contender yields in one round: figures by name, and facts (PRAGMA values, versions) that belong beside them."""

    figures: Figures
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Figure:
    """One measured number. better: "higher" or "lower", or "" where it is only background."""

    name: str
    unit: str
    text: str
    better: str = ""


@dataclass(frozen=True)
class Target:
    """A demand on one number of a round. value returns it, or raises KeyError if a contender it needs did not run."""

    text: str
    value: Callable[[Round], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"

    def met(self, value: float) -> bool:
        """Return whether the value satisfies the demand."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Row:
    """One row of the table. params and quick: the sizes of a full and a quick run; prepare may add measured ones, once per run."""

    id: str
    title: str
    text: str
    contenders: tuple[str, ...]
    figures: tuple[Figure, ...]
    measure: Callable[[str, Params], Measured]
    params: Params
    quick: Params
    targets: tuple[Target, ...] = ()
    prepare: Callable[[Params], Params] | None = None
    timeout_s: float = 300.0
    headline: str = ""  # the figure that the picture shows


@dataclass(frozen=True)
class Result:
    """All rounds of one row. failures: contender → why it has no figures."""

    row: Row
    rounds: list[dict[str, Figures]]
    facts: dict[str, Mapping[str, Any]]
    params: Params
    failures: dict[str, str]

    def values(self, contender: str, figure: str) -> list[float]:
        """Return a figure of each round, in order, of the rounds that have it."""
        return [at[contender][figure] for at in self.rounds if figure in at.get(contender, {})]

    def judged(self) -> list[tuple[Target, list[float]]]:
        """Return each target with its value in every round; targets whose contenders did not run are left out."""
        judged = []
        for target in self.row.targets:
            values = []
            for at in self.rounds:
                try:
                    values.append(target.value(at))
                except (KeyError, ZeroDivisionError):
                    pass
            if values:
                judged.append((target, values))
        return judged


def run_row(
    row: Row,
    *,
    rounds: int = ROUNDS,
    quick: bool = False,
    contenders: Sequence[str] = (),
    params: Params | None = None,
    patience_s: float = 0.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Measure a row: `rounds` times each contender, interleaved. contenders: only these; params: overrides of the row's sizes.

    patience_s: so long each measurement waits for a machine on which nothing else runs.
    """
    sizes = {**(row.quick if quick else row.params), **(params or {})}
    if row.prepare is not None:
        sizes = {**sizes, **row.prepare(sizes)}
    chosen = [name for name in row.contenders if not contenders or name in contenders]
    result = Result(row, [], {}, sizes, {})
    for number in range(rounds):
        at: dict[str, Figures] = {}
        result.rounds.append(at)
        for name in _rotated(chosen, number):
            if name in result.failures:
                continue
            if patience_s and not facts.wait_for_quiet(patience_s):
                tell(f"{row.id} round {number + 1} {name}: the machine is not quiet")
            try:
                measured = in_fresh_process(row, name, sizes)
            except ContenderFailed as error:
                result.failures[name] = str(error)
                tell(f"{row.id} round {number + 1} {name}: {error}")
                continue
            at[name] = measured.figures
            result.facts[name] = measured.facts or {}
            tell(f"{row.id} round {number + 1} {name}: " + "  ".join(f"{k}={v:.4g}" for k, v in measured.figures.items()))
    return result


def _rotated(names: list[str], by: int) -> list[str]:
    by %= max(1, len(names))
    return names[by:] + names[:by]


def in_fresh_process(row: Row, contender: str, params: Params) -> Measured:
    """Measure one contender once, in a Python process of its own and its own session, which is gone when this returns."""
    command = [sys.executable, "-m", "bench.once", row.id, contender, json.dumps(dict(params))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=row.timeout_s)
    except subprocess.TimeoutExpired:
        raise ContenderFailed(f"no figures within {row.timeout_s:g} s") from None
    finally:
        _end_session(process)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        words = [line for line in err.strip().splitlines() if line and not line.startswith((" ", "Traceback"))]
        raise ContenderFailed(f"exit status {process.returncode}: {words[-1] if words else 'no word'}")
    answer = json.loads(lines[-1])
    return Measured(answer["figures"], answer["facts"])


def _end_session(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


# ---- what is written ------------------------------------------------------------------------------------------------


def lines_of(result: Result) -> Iterator[dict[str, Any]]:
    """Return one record per figure and contender, then one per target: all that the report and the picture need."""
    row = result.row
    common = {
        "row": row.id,
        "title": row.title,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "params": dict(result.params),
        "machine": facts.machine(),
    }
    for contender in row.contenders:
        for figure in row.figures:
            values = result.values(contender, figure.name)
            if values:
                yield {
                    **common,
                    "kind": "figure",
                    "contender": contender,
                    "figure": figure.name,
                    "text": figure.text,
                    "unit": figure.unit,
                    "better": figure.better,
                    **spread(values),
                    "facts": dict(result.facts.get(contender, {})),
                }
    for target, values in result.judged():
        summary = spread(values)
        yield {
            **common,
            "kind": "target",
            "text": target.text,
            "unit": target.unit,
            "at_least": target.at_least,
            "at_most": target.at_most,
            **summary,
            "met": target.met(summary["median"]),
        }
    for contender, why in result.failures.items():
        yield {**common, "kind": "failure", "contender": contender, "why": why}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, min, max and all rounds of a list of values."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def write(result: Result, directory: Path) -> Path:
    """Write a row's records to <directory>/<row>.jsonl in place of what was there, and return that path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.row.id.lower()}.jsonl"
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines_of(result)))
    part.replace(path)
    return path
