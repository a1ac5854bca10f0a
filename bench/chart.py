"""Bar charts as SVG, drawn by hand: no dependency, readable in both themes, with a title and a table's worth of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.statistics import short

WIDTH, LABEL, BAR, GAP, TOP = 760, 190, 22, 8, 46
PLOT = WIDTH - LABEL - 120
OURS, OTHERS, INK, GRID = "#0072b2", "#999999", "#777777", "#88888844"  # a palette that colour-blind readers tell apart


@dataclass(frozen=True)
class Bar:
    """One bar: its label, median, and the extremes of its rounds. ours: drawn in the accent colour."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


def bars(title: str, unit: str, rows: Sequence[Bar], *, log: bool = False) -> str:
    """Return an SVG document: horizontal bars from zero, a whisker from the least to the greatest round, the median in words.

    log: lengths are proportional to the logarithm, for figures that differ by orders of magnitude.
    """
    from math import log10

    top = max((bar.high for bar in rows), default=1.0) or 1.0
    floor = min((bar.low for bar in rows if bar.low > 0), default=1.0) / 2

    def x(value: float) -> float:
        if log:
            return LABEL + PLOT * max(0.0, log10(max(value, floor) / floor)) / max(log10(top / floor), 1e-9)
        return LABEL + PLOT * value / top

    height = TOP + len(rows) * (BAR + GAP) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape('; '.join(f'{bar.label}: {short(bar.value)} {unit}' for bar in rows))}</desc>",
        f'<text x="8" y="20" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="8" y="37" font-size="11" fill="{INK}">{escape(unit)}{", logarithmic" if log else ""}</text>',
        f'<line x1="{LABEL}" y1="{TOP - 4}" x2="{LABEL}" y2="{height - 8}" stroke="{GRID}"/>',
    ]
    for number, bar in enumerate(rows):
        y = TOP + number * (BAR + GAP)
        middle = y + BAR / 2
        colour = OURS if bar.ours else OTHERS
        parts += [
            f'<text x="{LABEL - 8}" y="{middle + 4.5:g}" text-anchor="end" fill="{INK}">{escape(bar.label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{max(1.0, x(bar.value) - LABEL):.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            f'<path d="M{x(bar.low):.1f} {middle:g}H{x(bar.high):.1f}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{x(bar.high) + 8:.1f}" y="{middle + 4.5:g}" fill="{INK}">{short(bar.value)}</text>',
        ]
    parts.append("</svg>\n")
    return "\n".join(parts)
