"""Draw the table of legal moves into docs/lifecycle.md: the figure (mermaid) and the table come from `taskpool.core.lifecycle`.

.venv/bin/python scripts/draw_lifecycle.py           rewrites what stands between the markers of the page
.venv/bin/python scripts/draw_lifecycle.py --check   says whether the page is up to date (exit code 1 if not)
"""

from __future__ import annotations

import sys
from pathlib import Path

from taskpool.core.lifecycle import MOVES, TERMINAL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "lifecycle.md"
BEGIN = "<!-- drawn by scripts/draw_lifecycle.py: do not edit from here … -->"
END = "<!-- … to here -->"


def figure() -> str:
    """Return the moves as a mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for before, moves in MOVES.items():
        lines += [f"    {before or '[*]'} --> {after}: {why}" for after, why in moves.items()]
    lines += [f"    {status} --> [*]" for status in MOVES if status in TERMINAL]
    return "\n".join(lines)


def table() -> str:
    """Return the moves as a Markdown table, one row a status."""
    lines = ["| from | to |", "|---|---|"]
    for before, moves in MOVES.items():
        lines.append(f"| {before or '(new)'} | {' · '.join(f'**{after}** {why}' for after, why in moves.items())} |")
    return "\n".join(lines)


def drawn(page: str) -> str:
    """Return the page with what stands between its markers drawn anew. Raises ValueError if a marker is missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n```mermaid\n{figure()}\n```\n\n{table()}\n\n{END}{after}"


def main(argv: list[str]) -> int:
    """Draw or check; return the exit code."""
    have = PAGE.read_text(encoding="utf-8")
    want = drawn(have)
    if "--check" in argv:
        if have != want:
            print(f"{PAGE.relative_to(ROOT)} does not show the table of moves: run scripts/draw_lifecycle.py", file=sys.stderr)
        return int(have != want)
    PAGE.write_text(want, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
