"""Measurements of taskpool beside its peers: one file per row of docs/performance.md. `python -m bench --help` runs them.

This is the only place of the project that holds a stopwatch. Every number is taken in interleaved rounds, each contender in a
fresh process, and every round is kept; what counts is a ratio of two figures of the same round, not a figure.
"""
