"""The status page and ring of one worker: a small file that both sides map, and that outlives both.

Theory of operation. The page is the only thing a worker says about itself, so it must be right at any instant at which either
side may be killed. Three rules make it so. Every fact is one aligned machine word, written by one store, so it is never half
there. A fact that spans words is published by a later word: `CURRENT` after task and attempt, `HEAD` after a record's bytes.
And each word has one writer: the worker writes what it does, the supervisor what it allows (`LIMIT`, `CANCEL`, `TAIL`, …).

The ring carries everything that must survive the worker: a record is 4 bytes of length, 4 of CRC-32, then the bytes, padded to 8.
A record that would cross the end begins anew at the start, after a mark. HEAD and TAIL count bytes and only rise.
TAIL moves when the supervisor has committed what it read, so whoever reads after a crash finds all that was not.
The checksum is no proof against malice (workers run the owner's own code) but finds a page that a stray write hit, and lets a
reader on a weakly ordered machine see that HEAD came before the bytes: it stops there and looks again at the next doorbell.

A file of tmpfs or a disk will do; its space is reserved at creation, so that a full disk is an error then and not a SIGBUS later.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from struct import Struct
from zlib import crc32

from taskpool import faults
from taskpool.model import Progress
from taskpool.wire.jobs import Spilled

HEADER_BYTES = 4096
RING_BYTES = 256 * 1024  # a power of two
PAGE_BYTES = HEADER_BYTES + RING_BYTES
RECORD_BYTES_MAX = 64 * 1024  # what is larger goes into a spill file
PROGRESS_TEXT_BYTES = 200

MAGIC_VALUE = int.from_bytes(b"tpoolpg\x01", "little")  # the last byte is the version of this layout
NO_LIMIT = 2**63 - 1

# Indices of words. Written once, by whoever makes the page:
MAGIC, EPOCH, WORKER, BOOT = 0, 1, 2, 3  # BOOT: hash of the machine's boot id; a page of another boot is void
# Written by the worker:
PID = 8
CURRENT_TASK, CURRENT_ATTEMPT = 9, 10
CURRENT = 11  # number of the job whose body has begun; 0 once the record of its result is whole in the ring
STARTED = 12  # monotonic ns, begin of that body
EXTEND_N, EXTEND = 13, 14  # job, and ns by which it extends its timeout
PROGRESS_SEQ = 15  # odd while progress is being written; any change of it is a heartbeat
PROGRESS_N, PROGRESS_DONE, PROGRESS_TOTAL, PROGRESS_LENGTH = 16, 17, 18, 19  # job; two floats; bytes of the text
HEAD = 20
# Written by the supervisor, on a cache line of their own:
LIMIT = 32  # no job above it may begin
CANCEL, CANCEL_KIND = 33, 34  # job to interrupt, and how
STOPPING = 35  # 1: the pool is going to stop
OUTPUT_READ = (
    36  # bytes of the worker's output that were drained so far; with OUTPUT_BUSY in it, look again: some are being drained
)
TAIL = 37
SEEN_AT = 38  # monotonic ns of its last look into the ring

CANCEL_REQUEST, CANCEL_SOFT_TIMEOUT = 1, 2  # values of CANCEL_KIND
OUTPUT_BUSY = 1 << 63

_TEXT = 1024  # byte offset of the progress text
_MASK = RING_BYTES - 1
_WRAP = 0xFFFFFFFF  # length of the mark that says: go on at the start of the ring
_PREFIX = Struct("<II")


class PageInvalid(Exception):
    """The file is no page of this layout."""


def boot_word() -> int:
    """Return a 63-bit number that differs for each boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return int(file.read().replace("-", ""), 16) & (2**63 - 1)


class Page:
    """One worker's mapped page.

    words: all 8-byte words of the page, as a writable sequence of unsigned ints (index with the constants of this module);
    floats: the same memory as doubles; path: where its file lies; fd: the open file until `close_fd`, else -1.
    """

    def __init__(self, fd: int, path: str) -> None:
        """Map an open file of PAGE_BYTES. The page owns fd from here on."""
        self.fd = fd
        self.path = path
        self.map = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._bytes = memoryview(self.map)
        self.words = self._bytes.cast("Q")
        self.floats = self._bytes.cast("d")

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, worker: int, epoch: int = 0, boot: int | None = None) -> Page:
        """Make the file (0600, must not exist) and map it. OSError when there is no room or no right to."""
        path = os.fspath(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, PAGE_BYTES)
            page = cls(fd, path)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        words = page.words
        words[EPOCH], words[WORKER], words[LIMIT] = epoch, worker, NO_LIMIT
        words[BOOT] = boot_word() if boot is None else boot
        words[MAGIC] = MAGIC_VALUE
        return page

    @classmethod
    def anonymous(cls, worker: int = 0) -> Page:
        """Make a page in memory that nobody else sees, to run attempts in this process."""
        fd = os.memfd_create("taskpool-page")
        os.ftruncate(fd, PAGE_BYTES)
        page = cls(fd, "")
        page.words[WORKER], page.words[LIMIT], page.words[MAGIC] = worker, NO_LIMIT, MAGIC_VALUE
        page.close_fd()
        return page

    @classmethod
    def open(cls, source: str | os.PathLike[str] | int) -> Page:
        """Map an existing page, by path or by a descriptor (which the page then owns). PageInvalid, OSError."""
        if isinstance(source, int):
            fd, path = source, os.readlink(f"/proc/self/fd/{source}")
        else:
            path = os.fspath(source)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if (size := os.fstat(fd).st_size) != PAGE_BYTES:
                raise PageInvalid(f"{path} has {size} bytes, a status page has {PAGE_BYTES}")
            page = cls(fd, path)
            if page.words[MAGIC] != MAGIC_VALUE:
                raise PageInvalid(f"{path} does not begin like a status page of this version")
        except BaseException:
            os.close(fd)
            raise
        return page

    @property
    def run_dir(self) -> str:
        """Return the directory of the page, where spill files go too."""
        return os.path.dirname(self.path)

    def close_fd(self) -> None:
        """Close the descriptor; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Unmap, and close the descriptor. The file stays. Safe to call twice."""
        self.words.release()
        self.floats.release()
        self._bytes.release()
        self.map.close()
        self.close_fd()

    # ---- what the supervisor reads ----------------------------------------------------------------------------------

    def current(self) -> tuple[int, int, int]:
        """Return (n, task id, attempt) of the body that has begun; n is 0 while there is none."""
        words = self.words
        while True:  # the three are from one moment if n did not change while they were read
            n = words[CURRENT]
            found = (n, words[CURRENT_TASK], words[CURRENT_ATTEMPT])
            if words[CURRENT] == n:
                return found if n else (0, 0, 0)

    def extended_ns(self, n: int) -> int:
        """Return the ns by which job n has extended its timeout."""
        words = self.words
        return words[EXTEND] if words[EXTEND_N] == n else 0

    def progress(self) -> tuple[int, Progress] | None:
        """Return (n, progress) as last told by a handler; None before the first, or when it is being written right now."""
        words = self.words
        for _ in range(3):
            before = words[PROGRESS_SEQ]
            if before == 0:
                return None
            n, done, total = words[PROGRESS_N], self.floats[PROGRESS_DONE], self.floats[PROGRESS_TOTAL]
            text = bytes(self._bytes[_TEXT : _TEXT + min(words[PROGRESS_LENGTH], PROGRESS_TEXT_BYTES)])
            if before % 2 == 0 and words[PROGRESS_SEQ] == before:
                return n, Progress(finite(done), finite(total), text.decode("utf-8", "replace"))
        return None

    # ---- what the worker writes -------------------------------------------------------------------------------------

    def set_progress_text(self, data: bytes) -> None:
        """Write the progress text; the caller holds PROGRESS_SEQ odd around it. data: at most PROGRESS_TEXT_BYTES of UTF-8."""
        self._bytes[_TEXT : _TEXT + len(data)] = data
        self.words[PROGRESS_LENGTH] = len(data)


class RingWriter:
    """The worker's end of the ring."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._map = page.map
        self._words = page.words
        self._head: int = page.words[HEAD]
        self._tail: int = page.words[TAIL]

    def push(self, data: bytes) -> bool:
        """Add one record of at most RECORD_BYTES_MAX bytes; False, and nothing done, if there is no room yet."""
        size = len(data)
        if size > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {size} bytes does not belong into the ring, at most {RECORD_BYTES_MAX}")
        need = (size + 15) & ~7
        head = self._head
        at = head & _MASK
        skip = RING_BYTES - at if at + need > RING_BYTES else 0
        if head + skip + need - self._tail > RING_BYTES:
            self._tail = self._words[TAIL]
            if head + skip + need - self._tail > RING_BYTES:
                return False
        if skip:
            _PREFIX.pack_into(self._map, HEADER_BYTES + at, _WRAP, 0)
            at = 0
        start = HEADER_BYTES + at
        self._map[start : start + 8 + size] = _PREFIX.pack(size, crc32(data)) + data
        faults.point("result.half")
        self._head = self._words[HEAD] = head + skip + need
        return True


class RingReader:
    """The supervisor's end of the ring. damaged: why the ring cannot be read on, or "" (reading again may heal it)."""

    def __init__(self, page: Page) -> None:
        """Begin at the first record that was never released."""
        self._map = page.map
        self._words = page.words
        self.position: int = page.words[TAIL]
        self.damaged = ""

    def read(self) -> list[bytes]:
        """Return the records that are whole and were not returned before, in order."""
        return list(self._records())

    def release(self) -> None:
        """Give the room of all that was read back to the writer: call it when that is committed."""
        self._words[TAIL] = self.position

    @property
    def unreleased(self) -> bool:
        """Return whether something was read and not released."""
        return bool(self._words[TAIL] != self.position)

    def _records(self) -> Iterator[bytes]:
        head = self._words[HEAD]
        self.damaged = ""
        if head < self.position or head - self._words[TAIL] > RING_BYTES or head % 8:
            self.damaged = f"head {head} does not fit tail {self._words[TAIL]}"
            return
        while self.position < head:
            at = self.position & _MASK
            size, check = _PREFIX.unpack_from(self._map, HEADER_BYTES + at)
            if size == _WRAP:
                self.position += RING_BYTES - at
                continue
            need = (size + 15) & ~7
            if size > RECORD_BYTES_MAX or at + need > RING_BYTES or self.position + need > head:
                self.damaged = f"a record of {size} bytes at {self.position} cannot be"
                return
            data = self._map[HEADER_BYTES + at + 8 : HEADER_BYTES + at + 8 + size]
            if crc32(data) != check:
                self.damaged = f"the checksum of the record at {self.position} is wrong"
                return
            self.position += need
            yield data


def write_spill(run_dir: str, worker: int, seq: int, data: bytes) -> Spilled:
    """Write a record that is too big for the ring into a file of run_dir; the record that goes into the ring instead names it."""
    name = f"w{worker}.{seq}.spill"
    path = os.path.join(run_dir, name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.unlink(path)  # half a record is none, and takes room
        raise
    finally:
        os.close(fd)
    return Spilled(name, len(data))


def load_spill(run_dir: str, spilled: Spilled, limit: int) -> bytes:
    """Return the record that a Spilled names. PageInvalid if it is not there whole, is too big, or names another place."""
    if os.path.basename(spilled.name) != spilled.name or not spilled.name.endswith(".spill"):
        raise PageInvalid(f"{spilled.name!r} is no name of a spill file")
    try:
        fd = os.open(os.path.join(run_dir, spilled.name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise PageInvalid(f"{spilled.name} cannot be read: {error}") from error
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size != spilled.size or size > limit:
            raise PageInvalid(f"{spilled.name} has {size} bytes; {spilled.size} were written, {limit} are allowed")
        return file.read()


def finite(number: float) -> float:
    """Return a number as the store can keep it: 0 for NaN and for the infinite."""
    return number if math.isfinite(number) else 0.0
