"""What `run` runs over: lines of a file or of stdin, rows of a CSV, or the words of the command line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import click

CSV_FIELD_CHARACTERS_MAX = 16 << 20


class Input(NamedTuple):
    """One input. values: its texts in order; names: column → text for a row of a CSV, empty otherwise."""

    values: tuple[str, ...]
    names: dict[str, str]

    @property
    def shown(self) -> str:
        """Return the input as people read it."""
        return " ".join(self.values)


class Inputs(NamedTuple):
    """All inputs, and the identity of where they came from: part of the default batch's name."""

    items: list[Input]
    source: str


def read_inputs(args: tuple[str, ...], *, each_line: str | None, csv_file: str | None, stdin: bool) -> Inputs:
    """Return the inputs from the one source that was named; a single empty one if there is none. Raises click.UsageError."""
    if sum((bool(args), each_line is not None, csv_file is not None, stdin)) > 1:
        raise click.UsageError("inputs come from one of: words, --each-line, --csv, --stdin")
    if each_line is not None:
        return Inputs([Input((line,), {}) for line in _lines(each_line)], _file_identity(each_line))
    if csv_file is not None:
        return Inputs(list(_rows(csv_file)), _file_identity(csv_file))
    if stdin:
        words = [line.rstrip("\r\n") for line in sys.stdin]
        return Inputs([Input((word,), {}) for word in words], _words_identity(words))
    if args:
        return Inputs([Input((word,), {}) for word in args], _words_identity(args))
    return Inputs([Input((), {})], "")


def _lines(path: str) -> Iterator[str]:
    if path == "-":
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None


def _rows(path: str) -> Iterator[Input]:
    csv.field_size_limit(CSV_FIELD_CHARACTERS_MAX)
    try:
        with sys.stdin if path == "-" else open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, None)
            if not header or len(set(header)) < len(header):
                raise click.UsageError(f"{path} has no header, or two columns of one name")
            for row in rows:
                if row and len(row) != len(header):
                    raise click.UsageError(f"{path}, line {rows.line_num}: {len(row)} fields, but {len(header)} columns")
                if row:
                    yield Input(tuple(row), dict(zip(header, row, strict=True)))
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    except csv.Error as error:
        raise click.UsageError(f"{path}: {error}") from None


def _file_identity(path: str) -> str:
    return "-" if path == "-" else str(Path(path).resolve())


def _words_identity(words: Iterable[str]) -> str:
    digest = blake2b(digest_size=8)
    for word in words:
        data = word.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def default_batch(target: str, source: str) -> str:
    """Return the batch of a run that was given no name: the same target over the same source is the same batch.

    A file is the same by its path, words and stdin by what they are: a longer file is noticed, other words are other work.
    """
    digest = blake2b("\0".join((target, source)).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"run:{target[:60]}:{digest}"
