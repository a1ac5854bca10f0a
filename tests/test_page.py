"""The page and ring: whole or absent at any instant, in order, and told apart from damage."""

from __future__ import annotations

import mmap
import os
import random
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpool import faults
from taskpool.model import Progress
from taskpool.wire import barrier, page
from taskpool.wire.jobs import Spilled
from taskpool.wire.page import (
    CURRENT,
    CURRENT_ATTEMPT,
    CURRENT_TASK,
    EXTEND,
    EXTEND_N,
    HEAD,
    HEADER_BYTES,
    LIMIT,
    NO_LIMIT,
    PAGE_BYTES,
    PROGRESS_DONE,
    PROGRESS_N,
    PROGRESS_SEQ,
    PROGRESS_TOTAL,
    RECORD_BYTES_MAX,
    RING_BYTES,
    TAIL,
    Page,
    PageInvalid,
    RingReader,
    RingWriter,
    load_spill,
    write_spill,
)


@pytest.fixture
def shared(tmp_path: Path):
    made = Page.create(tmp_path / "w7.page", worker=7, epoch=3)
    yield made
    made.close()


# ---- the file -------------------------------------------------------------------------------------------------------


def test_a_page_is_private_whole_and_says_whose_it_is(shared: Page) -> None:
    found = os.stat(shared.path)
    assert found.st_size == PAGE_BYTES
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 >= PAGE_BYTES, "its space is reserved, so that writing cannot fail later"
    again = Page.open(shared.path)
    words = again.words
    assert (words[page.WORKER], words[page.EPOCH], words[page.BOOT], words[LIMIT]) == (7, 3, page.boot_word(), NO_LIMIT)
    again.close()
    again.close()


def test_both_mappings_see_each_others_words(shared: Page) -> None:
    other = Page.open(os.open(shared.path, os.O_RDWR))
    assert other.path == shared.path
    shared.words[CURRENT] = 2**64 - 1
    other.words[LIMIT] = 5
    assert (other.words[CURRENT], shared.words[LIMIT]) == (2**64 - 1, 5)
    other.close()


@pytest.mark.parametrize("content", [b"", b"x" * PAGE_BYTES, b"x" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.page"
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PageInvalid):
        Page.open(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the mapping's own descriptor goes with the mapping


def test_an_existing_file_is_never_taken_over(shared: Page) -> None:
    with pytest.raises(FileExistsError):
        Page.create(shared.path, worker=8)
    assert shared.words[page.WORKER] == 7


# ---- words ----------------------------------------------------------------------------------------------------------


def test_current_names_the_body_that_has_begun(shared: Page) -> None:
    assert shared.current() == (0, 0, 0)
    shared.words[CURRENT_TASK], shared.words[CURRENT_ATTEMPT] = 11, 2
    assert shared.current() == (0, 0, 0)
    shared.words[CURRENT] = 9
    assert shared.current() == (9, 11, 2)


def test_an_extension_counts_for_its_own_job_only(shared: Page) -> None:
    shared.words[EXTEND], shared.words[EXTEND_N] = 5_000, 3
    assert (shared.extended_ns(3), shared.extended_ns(4)) == (5_000, 0)


def test_progress_that_is_being_written_is_not_read(shared: Page) -> None:
    assert shared.progress() is None
    shared.words[PROGRESS_SEQ] = 1
    shared.floats[PROGRESS_DONE], shared.floats[PROGRESS_TOTAL] = 2.5, 10.0
    shared.set_progress_text("käse".encode())
    shared.words[PROGRESS_N] = 4
    assert shared.progress() is None
    shared.words[PROGRESS_SEQ] = 2
    assert shared.progress() == (4, Progress(2.5, 10.0, "käse"))


# ---- the ring -------------------------------------------------------------------------------------------------------


@given(
    records=st.lists(st.one_of(st.binary(max_size=200), st.integers(0, RECORD_BYTES_MAX).map(lambda n: b"r" * n)), max_size=60),
    reads=st.randoms(use_true_random=False),
    offset=st.integers(0, RING_BYTES // 8 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_records_arrive_whole_and_in_order_however_the_reader_lags(
    records: list[bytes], reads: random.Random, offset: int
) -> None:
    """Wherever in the ring it begins, and whenever the reader reads and releases."""
    shared = Page.anonymous()
    shared.words[HEAD] = shared.words[TAIL] = offset * 8
    writer, reader = RingWriter(shared), RingReader(shared)
    seen: list[bytes] = []
    for record in records:
        while not writer.push(record):
            got = reader.read()
            assert got or reader.unreleased, "a ring without room has something to read or to release"
            seen += got
            reader.release()
        if reads.random() < 0.3:
            seen += reader.read()
        if reads.random() < 0.3:
            reader.release()
    seen += reader.read()
    assert seen == records
    assert not reader.damaged
    reader.release()
    assert not reader.unreleased
    shared.close()


@given(records=st.lists(st.binary(max_size=3000), min_size=1, max_size=100), released=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_whoever_reads_after_a_crash_finds_all_that_was_not_released(records: list[bytes], released: int) -> None:
    shared = Page.anonymous()
    writer, reader = RingWriter(shared), RingReader(shared)
    kept: list[bytes] = []
    for i, record in enumerate(records):
        while not writer.push(record):
            kept.clear()
            reader.read()
            reader.release()
        kept.append(record)
        reader.read()
        if i < released:
            reader.release()
            kept.clear()
    assert RingReader(shared).read() == kept
    shared.close()


def test_a_record_whose_writer_died_before_the_head_word_is_never_seen(shared: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = RingWriter(shared), RingReader(shared)
    writer.push(b"first")

    def die(point: str) -> None:
        assert point == "result.half"
        raise KeyboardInterrupt

    monkeypatch.setattr(faults, "point", die)
    with pytest.raises(KeyboardInterrupt):
        writer.push(b"torn" * 100)
    monkeypatch.undo()
    assert reader.read() == [b"first"]
    assert RingReader(shared).read() == [b"first"]
    writer.push(b"second")
    assert reader.read() == [b"second"]


@given(size=st.integers(1, 500), at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_of_a_record_is_found(size: int, at: int, bit: int) -> None:
    shared = Page.anonymous()
    writer, reader = RingWriter(shared), RingReader(shared)
    writer.push(b"before")
    start = shared.words[HEAD]
    record = bytes(i % 251 for i in range(size))
    writer.push(record)
    position = HEADER_BYTES + start + at % (8 + size)
    shared.map[position] ^= 1 << bit
    assert reader.read() == [b"before"]
    assert reader.damaged
    shared.map[position] ^= 1 << bit
    assert reader.read() == [record], "what was only late is read after all"
    assert not reader.damaged
    shared.close()


@pytest.mark.parametrize("head", [RING_BYTES + 8, 12, 2**63])
def test_an_impossible_head_is_found(shared: Page, head: int) -> None:
    RingWriter(shared).push(b"x")
    reader = RingReader(shared)
    shared.words[HEAD] = head
    assert reader.read() in ([], [b"x"])
    assert reader.damaged


def test_too_big_a_record_is_refused(shared: Page) -> None:
    with pytest.raises(ValueError, match="at most"):
        RingWriter(shared).push(bytes(RECORD_BYTES_MAX + 1))
    assert RingReader(shared).read() == []


def test_records_survive_a_sigkill_of_their_writer(shared: Page) -> None:
    pid = os.fork()
    if pid == 0:
        writer = RingWriter(shared)
        n = 0
        while True:
            n += writer.push(n.to_bytes(4, "little") * (n % 50 + 1))
            if n == 500:
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert RingReader(shared).read() == [n.to_bytes(4, "little") * (n % 50 + 1) for n in range(500)]


# ---- spilled records ------------------------------------------------------------------------------------------------


def test_a_spilled_record_comes_back(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    spilled = write_spill(str(tmp_path), 3, 1, data)
    assert load_spill(str(tmp_path), spilled, 1 << 20) == data
    assert os.stat(tmp_path / spilled.name).st_mode & 0o777 == 0o600


def test_a_spill_that_is_torn_too_big_or_elsewhere_is_refused(tmp_path: Path) -> None:
    spilled = write_spill(str(tmp_path), 3, 1, b"x" * 1000)
    with pytest.raises(PageInvalid):
        load_spill(str(tmp_path), spilled, 999)
    os.truncate(tmp_path / spilled.name, 500)
    for wrong in (spilled, Spilled("w3.2.spill", 10), Spilled("../w3.1.spill", 500), Spilled("w7.page", PAGE_BYTES)):
        with pytest.raises(PageInvalid):
            load_spill(str(tmp_path), wrong, 1 << 20)
    os.symlink("/etc/passwd", tmp_path / "w9.1.spill")
    with pytest.raises(PageInvalid):
        load_spill(str(tmp_path), Spilled("w9.1.spill", os.stat("/etc/passwd").st_size), 1 << 20)


# ---- taking back ----------------------------------------------------------------------------------------------------

ROUNDS = 30_000
BEGUN, PASSED = 1, 2


@pytest.mark.skipif(not barrier.available(), reason="this kernel has no membarrier: mailboxes hold one job there")
def test_what_was_taken_back_never_begins(shared: Page) -> None:
    """The race itself: a store and a load on either side, as the worker and the engine do them, without anything around."""
    size = ROUNDS * 100
    marks = mmap.mmap(-1, size)
    words = shared.words
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            marks[0] = barrier.register()
            body = range(20)
            for n in range(1, size):
                words[CURRENT] = n
                if words[LIMIT] >= n:
                    sum(body)
                    marks[n] = BEGUN
                    words[CURRENT] = 0
                else:
                    words[CURRENT] = 0
                    marks[n] = PASSED
                    while words[LIMIT] < n and os.getppid() == me:
                        os.sched_yield()
        finally:
            os._exit(0)
    above = passed = 0
    try:
        while not marks[0]:
            os.sched_yield()
        for _ in range(ROUNDS):
            limit = max(words[CURRENT], passed)
            words[LIMIT] = limit
            barrier.everywhere()
            above = max(limit, words[CURRENT])
            while marks[above + 1] == BEGUN:  # begun and ended before: its record is there to be read
                above += 1
            if above + 2 >= size:
                break
            while not marks[above + 1] and (marks[above] != PASSED or above == passed):
                os.sched_yield()
            passed = above + 1 if marks[above + 1] else above
            assert marks[passed] == PASSED
            words[LIMIT] = NO_LIMIT
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert marks[1:passed].count(0) == 0
