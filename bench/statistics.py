"""The few statistics that a table needs."""

from __future__ import annotations

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones. ValueError if there is none."""
    if not values:
        raise ValueError("no values to take the median of")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed: nearest rank, never interpolated."""
    if not values:
        raise ValueError("no values to take a quantile of")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def short(value: float) -> str:
    """Return a number with three significant digits, thousands separated: 1,230 · 45.6 · 0.00789."""
    if math.isnan(value):
        return "–"
    if value == 0 or abs(value) >= 1000:
        digits = 0 if value == 0 else max(0, math.floor(math.log10(abs(value))) - 3)
        return f"{round(value, -digits):,.0f}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
