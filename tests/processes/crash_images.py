"""What a loss of power may leave: a process's writes and syncs as strace saw them, replayed up to some moment.

The disk's only promise is that an fsync of a file made all earlier writes to that file durable. Of the writes since, each may be
there, or not, or in part (by sectors), in any order, whatever came to other files.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
TRACED = "trace=write,pwrite64,fsync,fdatasync,ftruncate,unlink"
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_FILE = re.compile(r"^\d+<(.*?)>")


class Call(NamedTuple):
    """One system call of the process: a write ("" for data other than bytes), sync or truncation of a file."""

    name: str
    file: str
    data: bytes = b""
    offset: int = 0


def record(command: list[str], log: Path) -> list[Call]:
    """Run a command under strace and return what it wrote and synced, in order. Standard output appears as file "out"."""
    traced = ["strace", "-f", "-y", "-xx", "-s", "2000000", "-e", TRACED, "-o", str(log), *command]
    subprocess.run(traced, check=True, stdout=subprocess.DEVNULL)
    calls = []
    for line in log.read_text().splitlines():
        found = _CALL.match(line)
        if found is not None and int(found[3]) >= 0:
            call = _parse(found[1], found[2])
            if call is not None:
                calls.append(call)
    return calls


def _parse(name: str, arguments: str) -> Call | None:
    if name == "unlink":
        return Call(name, _text(arguments).decode())
    descriptor, _, rest = arguments.partition(", ")
    found = _FILE.match(descriptor)
    assert found is not None, arguments
    file = bytes.fromhex(found[1].replace("\\x", "")).decode() if found[1].startswith("\\x") else found[1]
    if descriptor.startswith("1<"):
        file = "out"
    if name == "write":
        return Call(name, file, _text(rest))
    if name == "pwrite64":
        _, _, offset = rest.rpartition(", ")
        return Call(name, file, _text(rest), int(offset))
    if name == "ftruncate":
        return Call(name, file, offset=int(rest))
    return Call(name, file)


def _text(argument: str) -> bytes:
    return bytes.fromhex(argument[argument.index('"') + 1 : argument.rindex('"')].replace("\\x", ""))


class Disk:
    """Files as the process sees them, and as the disk has them for certain."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.durable = {name: bytearray(data) for name, data in files.items()}
        self.open: dict[str, list[Call]] = {}  # what came since the last sync of each file

    def apply(self, call: Call) -> None:
        """Take one call."""
        if call.name in ("fsync", "fdatasync"):
            for earlier in self.open.pop(call.file, []):
                _change(self.durable.setdefault(call.file, bytearray()), earlier)
        elif call.name in ("pwrite64", "ftruncate"):
            self.open.setdefault(call.file, []).append(call)

    def image(self, chance: random.Random) -> dict[str, bytes]:
        """Return one state that the disk may be found in."""
        files = {name: bytearray(data) for name, data in self.durable.items()}
        for name, calls in self.open.items():
            kept = chance.random()
            for call in chance.sample(calls, len(calls)) if chance.random() < 0.5 else calls:
                if chance.random() < kept:
                    _change(files.setdefault(name, bytearray()), call, chance if chance.random() < 0.3 else None)
        return {name: bytes(data) for name, data in files.items()}


def _change(file: bytearray, call: Call, torn: random.Random | None = None) -> None:
    if call.name == "ftruncate":
        del file[call.offset :]
        file.extend(bytes(call.offset - len(file)))
        return
    for start in range(0, len(call.data), SECTOR):
        if torn is None or torn.random() < 0.5:
            part = call.data[start : start + SECTOR]
            at = call.offset + start
            file.extend(bytes(max(0, at - len(file))))
            file[at : at + len(part)] = part
