"""`taskpool flow [ls|show ID]`: the graphs of a pool."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from taskpool.cli.documents import flow_doc, task_doc
from taskpool.cli.escape import one_line
from taskpool.cli.exits import CliError, Exit
from taskpool.cli.output import console
from taskpool.cli.quantity import local_time
from taskpool.cli.session import Session
from taskpool.cli.shapes import EdgeDoc, FlowDoc, FlowsDoc
from taskpool.cli.verb import verb
from taskpool.core.graph import CONDITIONS
from taskpool.model import Filter, FlowState, Task

if TYPE_CHECKING:
    from rich.tree import Tree

    from taskpool.store.reading import Reader

ACTIONS = ("ls", "show")
STEPS_MAX = 100_000
MARKS = {"succeeded": "✓", "failed": "✗", "cancelled": "–", "interrupted": "!", "running": "▶"}
NAMES = {number: name for name, number in CONDITIONS.items()}
Edges = dict[int, list[tuple[int, int]]]  # step → (parent, condition)


@verb(
    "flow",
    exits=[Exit.NOT_FOUND, Exit.NO_SERVER, Exit.REFUSED],
    examples=[
        ("taskpool flow", "the graphs, newest first"),
        ("taskpool flow show 17", "the steps of one, each under a step that it waits for"),
        ("taskpool flow show 17 --dot | dot -Tsvg > flow.svg", "as a drawing, by graphviz"),
    ],
)
@click.argument("words", nargs=-1, metavar="[ls|show ID]")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="With ls: at most so many.")
@click.option("--dot", is_flag=True, help="With show: in the language of graphviz.")
@click.pass_obj
def command(session: Session, words: tuple[str, ...], limit: int, dot: bool) -> int:
    """Look at the graphs of a pool: list them, or show the steps of one. Needs no server."""
    action = words[0] if words else "ls"
    if action not in ACTIONS:
        raise click.UsageError(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")
    if action == "ls":
        if words[1:] or dot:
            raise click.UsageError("flow ls takes no ID, and --dot goes with show")
        with session.reader() as reader:
            return _ls(session, reader.flows(limit))
    if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > 18:
        raise click.UsageError("flow show takes the ID of one flow; `taskpool flow ls` lists them")
    with session.reader() as reader:
        return _show(session, reader, int(words[1]), dot=dot)


def _ls(session: Session, flows: Sequence[FlowState]) -> int:
    if session.json:
        session.show(FlowsDoc([flow_doc(flow) for flow in flows]))
        return Exit.OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ID", "NAME", "STATUS", "STEPS", "DONE", "FAILED", "CREATED"):
        table.add_column(name, justify="right" if name in ("ID", "STEPS", "DONE", "FAILED") else "left", no_wrap=True)
    for flow in flows:
        table.add_row(
            str(flow.id),
            one_line(flow.name, 60),
            flow.status.value,
            f"{sum(flow.counts.values()):,}",
            f"{flow.counts.get('succeeded', 0):,}",
            f"{flow.counts.get('failed', 0) + flow.counts.get('interrupted', 0):,}",
            local_time(flow.created_at) or "",
        )
    console(session.color, sys.stdout).print(table)
    return Exit.OK


def _show(session: Session, reader: Reader, flow_id: int, *, dot: bool) -> int:
    found = reader.flows(1, None, flow_id)
    if not found:
        raise CliError(f"there is no flow {flow_id} in {reader.path}", Exit.NOT_FOUND, "not_found")
    steps = reader.tasks(Filter(flow=flow_id), STEPS_MAX)[::-1]
    edges: Edges = {}
    for child, parent, condition in reader.edges(flow_id):
        edges.setdefault(child, []).append((parent, condition))
    if session.json:
        documents = [task_doc(step, nested=True) for step in steps]
        lines = [EdgeDoc(parent, child, NAMES[condition]) for child, mine in edges.items() for parent, condition in mine]
        session.show(FlowDoc(flow_doc(found[0]), documents, lines))
    elif dot:
        session.say(_dot(found[0], steps, edges))
    else:
        console(session.color, sys.stdout).print(_tree(found[0], steps, edges))
    return Exit.OK


def _tree(flow: FlowState, steps: Sequence[Task], edges: Edges) -> Tree:
    """Return the steps as a tree: each under the last of its parents, with the others named."""
    from rich.tree import Tree

    counts = ", ".join(f"{n:,} {status}" for status, n in flow.counts.items())
    root = Tree(f"{one_line(flow.name, 60)} (flow {flow.id}): {flow.status.value}; {counts}")
    at: dict[int, Tree] = {}
    for step in steps:
        mine = edges.get(step.id, [])
        inside = [parent for parent, _ in mine if parent in at]
        words = f"{MARKS.get(step.status.value, '…')} {step.id} {one_line(step.step_id or step.name, 60)}: {step.status.value}"
        under = dict(mine).get(inside[-1]) if inside else None
        words += f", on {NAMES[under]}" if under else ""
        others = [f"{parent} on {NAMES[c]}" if c else str(parent) for parent, c in mine if not inside or parent != inside[-1]]
        words += f" (after {', '.join(others)}, too)" if others and inside else f" (after {', '.join(others)})" if others else ""
        at[step.id] = (at[inside[-1]] if inside else root).add(words)
    return root


def _dot(flow: FlowState, steps: Sequence[Task], edges: Edges) -> str:
    """Return the graph in the language of graphviz."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"digraph {quoted(one_line(flow.name))} {{", "  rankdir=LR; node [shape=box];"]
    for step in steps:
        label = f"{MARKS.get(step.status.value, '…')} {one_line(step.step_id or step.name, 60)} ({step.id})"
        lines.append(f"  {step.id} [label={quoted(label)}];")
    styles = {"success": "", "any": " [style=dashed]", "failed": " [style=dotted]"}
    lines += [f"  {parent} -> {child}{styles[NAMES[condition]]};" for child, mine in edges.items() for parent, condition in mine]
    return "\n".join([*lines, "}"])
