"""The rows there are, in the order of the table."""

from __future__ import annotations

from importlib import import_module

from bench.harness import Row

MODULES = {
    "P1": "p01_noop",
    "P1b": "p01b_submit",
    "P1c": "p01c_rules",
    "P2": "p02_round_trip",
    "P3": "p03_efficiency",
    "P6": "p06_start",
    "P7": "p07_deadline",
    "P8": "p08_crash",
    "P9": "p09_enqueue",
    "P10": "p10_waiting",
    "P11": "p11_finished",
    "P12": "p12_start",
    "P13": "p13_kill_supervisor",
    "P14": "p14_soak",
    "P16": "p16_cpu",
    "P17": "p17_counts",
    "P18": "p18_busy_caller",
    "P19": "p19_transaction",
    "P20": "p20_graphs",
    "P21": "p21_schedules",
}


def find(row_id: str) -> Row:
    """Return the row of that id, in any case of letters. KeyError if there is none."""
    by_lower = {known.lower(): module for known, module in MODULES.items()}
    row: Row = import_module(f"bench.{by_lower[row_id.lower()]}").ROW
    return row
