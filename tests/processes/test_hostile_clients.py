"""Clients that say nonsense, say nothing, read nothing, hold what others need, die, or are somebody else: nobody else suffers."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from taskpool import InvalidTask, Pool, Queue, TaskpoolError
from taskpool.config import socket_path
from taskpool.model import Codec, Filter, TaskSpec
from taskpool.retention import Retention
from taskpool.supervisor.server import CLIENTS_MAX
from taskpool.wire import messages as wire
from tests.processes import evidence
from tests.processes.evidence import WAIT_S, chance, check, submit
from tests.processes.hostile_requests import frames, requests
from tests.processes.raw_client import RawClient
from tests.waiting import wait_until


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_well(pool: Pool, place: Path, n: int) -> None:
    """The pool takes work and does it."""
    assert submit(pool, place, n, queue="well", priority=100).result(WAIT_S)[0] == n


@pytest.fixture
def pool(place: Path) -> Any:
    with Pool(place / "x.db", workers=2, durability="process", cancel_grace=0.5) as pool:
        is_well(pool, place, 0)
        yield pool


# ---- nonsense -------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_request_cost_their_client_alone(pool: Pool, place: Path) -> None:
    """Garbage, torn frames, lengths of nowhere, other protocols: one refusal or none, and the connection is closed."""
    before = descriptors(pool.pid)
    resident = psutil.Process(pool.pid).memory_info().rss
    luck = chance("bytes")
    for said in frames(luck, 300):
        with RawClient(place / "x.db") as client:
            if luck.random() < 0.5:
                client.greet()
            client.say(said)
    is_well(pool, place, 1)
    wait_until(lambda: descriptors(pool.pid) == before, "the descriptors to be closed")
    assert psutil.Process(pool.pid).memory_info().rss < resident + (32 << 20)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        struct.pack("<I", 1 << 30),
        b"\xff\xff\xff\xff",
        struct.pack("<I", 3) + b"abc",
        struct.pack("<I", 9) + b"\x92\xa5hello\xcf\xff",
        struct.pack("<I", 12) + b"\x94\xa5hello\x01\x01\xa2\xff\xff",
    ],
    ids=["http", "a gigabyte", "four gigabytes", "no msgpack", "cut short", "no text"],
)
def test_what_is_no_request_is_refused_in_words(pool: Pool, place: Path, said: bytes) -> None:
    """Before any of what a header announces has come."""
    with RawClient(place / "x.db") as client:
        client.say(said)
        answer = client.answer()
        assert isinstance(answer, wire.Refused)
        assert answer.code == "protocol"
        assert client.answer() is None


def test_requests_with_odd_values_change_nothing_for_others(pool: Pool, place: Path) -> None:
    """Typed as they should be, but nothing that a client of ours would ask."""
    luck = chance("requests")
    pool.register_queue(Queue("well"))
    for request in requests(luck, 250):
        with RawClient(place / "x.db") as client:
            client.greet()
            client.send(request)
    pool.register_queue(Queue("well"), replace=True)
    pool.resume("well")
    pool.cancel(Filter(), force=True)
    is_well(pool, place, 1)
    assert psutil.Process(pool.pid).status() != psutil.STATUS_ZOMBIE
    assert pool.stats().counts
    evidence.check_file(place / "x.db")


@pytest.mark.parametrize(
    "spec",
    [
        TaskSpec(b"short", "tests.processes.evidence:work", 1, b""),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 9, b""),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 1, b"", priority=-(1 << 63)),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 1, b"", queue="\x1b[2J"),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 1, b"", options=b"\xc1"),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 1, b"", options=b"\x81\xa5label\xa1\xff"),
        TaskSpec(b"u" * 16, "tests.processes.evidence:work", 1, b"x" * (17 << 20)),
    ],
    ids=["uid", "codec", "priority", "queue", "options", "text", "size"],
)
def test_a_task_that_cannot_be_is_refused_and_not_stored(pool: Pool, place: Path, spec: TaskSpec) -> None:
    with RawClient(place / "x.db") as client:
        client.greet()
        client.send(wire.Submit(1, [spec]))
        assert isinstance(client.answer(), wire.Refused)
    assert pool.count() == 1, "but for the one before"
    is_well(pool, place, 1)


@pytest.mark.parametrize(
    "request_",
    [
        wire.Prune(1, ["succeeded", "running"]),
        wire.Prune(1, ["at_least"]),
        wire.Prune(1, ["failed"], Retention(failed=math.nan)),
        wire.Prune(1, ["failed"], Retention(failed=-1.0)),
        wire.Prune(1, ["failed"], Retention(failed=1e300)),
    ],
    ids=["unfinished", "no status", "no number", "the future", "beyond all time"],
)
def test_what_cannot_be_pruned_is_refused(pool: Pool, place: Path, request_: wire.Prune) -> None:
    with RawClient(place / "x.db") as client:
        client.greet()
        client.send(request_)
        assert isinstance(client.answer(), wire.Refused)
    is_well(pool, place, 1)


def test_names_and_payloads_of_strangers_run_nothing(pool: Pool, place: Path) -> None:
    """A name is looked up, for JSON only among handlers; a pickle that does harm does it in a worker, and is charged with it."""

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os._exit, (3,)

    import pickle

    pickled = pickle.dumps(((Harm(),), {}))
    with RawClient(place / "x.db") as client:
        client.greet()
        for n, name in enumerate(["os:system", "../x", "os.system", "builtins:exec", "__main__:x.__class__"]):
            touch = msgspec.json.encode({"args": [f"touch {place}/harm"]})
            client.send(wire.Submit(n, [TaskSpec(os.urandom(16), name, Codec.JSON, touch)], watch=False))
            answer = client.answer()
            assert isinstance(answer, wire.Accepted) or (isinstance(answer, wire.Refused) and answer.code == "handler_not_found")
        for codec in Codec:
            client.send(wire.Submit(100, [TaskSpec(os.urandom(16), "tests.processes.evidence:work", codec, pickled)], watch=False))
            client.answer()
    evidence.finish(pool)
    kinds = [task.error.kind if task.error else str(task.status) for task in reversed(pool.list())]
    first, *named, msgpack, pickle_, call, json = kinds
    assert first == "succeeded"
    assert set(named) == {"unknown_handler"}
    assert (msgpack, pickle_, call) == ("decode", "panic", "panic")
    assert json in ("decode", "unknown_handler")
    assert not (place / "harm").exists()
    is_well(pool, place, 1)


# ---- our own clients ------------------------------------------------------------------------------------------------

ODD: list[Any] = ["5", None, 1.5, True, b"x", {}, float("nan"), 2**63, -(2**63) - 1, 10**30, "\ud800", object()]


@pytest.mark.parametrize("value", ODD, ids=[repr(value)[:12] for value in ODD])
def test_odd_arguments_of_our_verbs_are_told_to_the_caller(pool: Pool, place: Path, value: Any) -> None:
    """They never leave: what the supervisor cannot read ends a connection, and with its owner's the pool."""
    verbs = [pool.get, pool.future, pool.wait, pool.explain, pool.attempts]
    if value is not None and value != "5":  # a name that a queue may have
        verbs.append(pool.pause)
    for verb in verbs:
        with pytest.raises(TaskpoolError):
            verb(value)
    for options in ({"limit": value}, {"before": value or "0"}, {"offset": value}):
        with pytest.raises(TaskpoolError):
            pool.list(**options)
    if not isinstance(value, str | bytes | dict) and value is not None:
        for field in ("name", "queue", "tag", "batch", "owner_type"):
            with pytest.raises(TaskpoolError):
                pool.count(**{field: value})
    if (value is not None and not isinstance(value, int | float)) or value != value:
        with pytest.raises(TaskpoolError):
            pool.cancel(1, grace=value)
        with pytest.raises(TaskpoolError):
            pool.stop(grace=value)
    if value is not True:
        with pytest.raises(TaskpoolError):
            pool.cancel(1, force=value)
    is_well(pool, place, 1)


def test_pages_of_negative_size_are_refused(pool: Pool, place: Path) -> None:
    for ask in (
        lambda: pool.list(limit=-1),
        lambda: pool.list(offset=-1),
        lambda: pool.flows(-1),
        lambda: pool.replies("box", limit=-1),
        lambda: pool.ready(limit=-1),
    ):
        with pytest.raises(InvalidTask, match=r">= 0 - at `(limit|offset)`"):
            ask()
    assert pool.list(limit=0) == []
    is_well(pool, place, 1)


def test_a_pool_is_not_stopped_by_a_filter_that_is_none(pool: Pool, place: Path) -> None:
    for wanted in (Filter(ids=("a",)), Filter(statuses=(3,)), Filter(since="today")):  # type: ignore[arg-type]
        with pytest.raises(InvalidTask):
            pool.list(wanted)
    is_well(pool, place, 1)


def test_one_of_no_statuses_is_no_task(pool: Pool, place: Path) -> None:
    """An empty list must not mean all of them."""
    waiting = submit(pool, place, 1, delay=600)
    for field in ("status", "name", "queue", "tag"):
        assert pool.count(**{field: []}) == 0
        assert pool.cancel(**{field: ()}).ids == []
    assert pool.cancel(status=["pending", "queued"]).ids == [waiting.id]


@pytest.mark.parametrize("option", ["tags", "label", "headers", "retry_on"])
def test_text_that_cannot_be_written_is_told(pool: Pool, place: Path, option: str) -> None:
    """As it comes from the name of a file that is no UTF-8."""
    text = os.fsdecode(b"caf\xe9")
    with pytest.raises(InvalidTask, match=option):
        submit(pool, place, 1, **{option: {text: text} if option == "headers" else text})
    is_well(pool, place, 2)


# ---- readers that do not read ---------------------------------------------------------------------------------------


def big(size: int) -> bytes:
    return b"x" * size


def test_clients_that_do_not_read_are_dropped_and_nobody_waits(pool: Pool, place: Path) -> None:
    """What they have asked for gathers up to a bound."""
    future = pool.submit(big, 8 << 20)
    assert len(future.result(WAIT_S)) == 8 << 20
    stalled = [RawClient(place / "x.db") for _ in range(4)]
    try:
        for client in stalled:
            client.greet()
            for n in range(20):
                client.send(wire.Watch(n, [future.id]))
        is_well(pool, place, 1)
        wait_until(lambda: all(has_hung_up(client.sock) for client in stalled), "the stalled clients to be dropped")
        is_well(pool, place, 2)
    finally:
        for client in stalled:
            client.sock.close()


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the other side has closed, though there is more to read."""
    import select

    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_torn_frames_and_silence_hold_up_nobody(pool: Pool, place: Path) -> None:
    clients = [RawClient(place / "x.db") for _ in range(50)]
    try:
        for n, client in enumerate(clients):
            client.say((struct.pack("<I", 1000) + b"\x93\xa5hello")[: n % 10])
        is_well(pool, place, 1)
    finally:
        for client in clients:
            client.sock.close()


# ---- floods ---------------------------------------------------------------------------------------------------------


def test_a_flood_of_connections(pool: Pool, place: Path) -> None:
    """Those beyond the bound are closed; when they leave, all their descriptors come back."""
    before = descriptors(pool.pid)
    path = str(socket_path(place / "x.db"))
    flood = []
    for _ in range(CLIENTS_MAX + 100):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        flood.append(sock)
    try:
        is_well(pool, place, 1)
        wait_until(lambda: sum(has_hung_up(sock) for sock in flood) >= 100, "those beyond the bound to be closed")
        assert descriptors(pool.pid) <= before + CLIENTS_MAX
    finally:
        for sock in flood:
            sock.close()
    wait_until(lambda: descriptors(pool.pid) == before, "the descriptors to be closed")
    for _ in range(1000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(path)
    is_well(pool, place, 2)
    wait_until(lambda: descriptors(pool.pid) == before, "the descriptors to be closed")
    with RawClient(place / "x.db") as client:
        client.greet()


def test_the_last_descriptors_are_not_for_clients(pool: Pool, place: Path) -> None:
    """They are hung up on, workers that die are replaced, and nobody who is connected notices."""
    import resource

    wait_until(lambda: len([worker for worker in pool.stats().workers if worker.pid]) == 3, "workers")
    soft, hard = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (descriptors(pool.pid) + 12, hard))
    for _ in range(20):
        with RawClient(place / "x.db") as client:
            assert client.is_refused()
    assert pool.submit(os._exit, 1).exception(WAIT_S)
    is_well(pool, place, 1)
    resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (soft, hard))
    with RawClient(place / "x.db") as client:
        client.greet()


# ---- other users ----------------------------------------------------------------------------------------------------

STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.settimeout(30)
try:
    sock.connect(sys.argv[1])
    try:
        sock.sendall(bytes.fromhex(sys.argv[2]))
        print("said", len(sock.recv(100)))
    except OSError as error:
        print("said 0")
except PermissionError:
    print("denied")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("opened", [False, True], ids=["as it is", "with all modes open"])
def test_another_user_is_not_served(pool: Pool, place: Path, opened: bool) -> None:
    path = socket_path(place / "x.db")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    if opened:  # somebody was careless: the kernel still says whose process it is
        path.chmod(0o777)
        for parent in path.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(0o755)
    hello = wire.encoder.encode(wire.Hello(wire.PROTOCOL, 1, "stranger"))
    said = struct.pack("<I", len(hello)) + hello
    done = subprocess.run([sys.executable, "-c", STRANGER, str(path), said.hex()], capture_output=True, text=True, check=True)
    assert done.stdout == ("said 0\n" if opened else "denied\n")
    is_well(pool, place, 1)


# ---- guests of the file ---------------------------------------------------------------------------------------------

GUEST = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for line in sys.stdin:
    db.execute(line).fetchall()
    print("done", flush=True)
"""


class Guest:
    """Another program that has the store's file open."""

    def __init__(self, store: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", GUEST, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)

    def say(self, sql: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{sql}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


def test_a_guest_that_dies_in_its_transaction_leaves_nothing(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        submit(pool, place, 0).result(WAIT_S)
        with Guest(place / "x.db") as guest:
            guest.say("BEGIN EXCLUSIVE")
            guest.say("UPDATE task SET version = 77")
            guest.say("DELETE FROM attempt")
            late = pool.submit_nowait(evidence.work, str(place), 1)
            guest.process.kill()
        assert late.result(WAIT_S) == (1, 1)
        assert 77 not in {task.version for task in pool.list()}
        assert len(pool.attempts(1)) == 1
    check(place, ended=True, again_max=0)


def test_a_guest_that_reads_for_ever_is_told_of_and_hinders_nobody(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its open read transaction keeps the log from being reset: the log grows, which is said once, and shrinks when it leaves."""
    log = Path(f"{place / 'x.db'}-wal")
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        submit(pool, place, 0).result(WAIT_S)
        with Guest(place / "x.db") as guest:
            guest.say("BEGIN")
            guest.say("SELECT COUNT(*) FROM task")
            said = ""
            for _ in range(40):
                assert len(pool.submit(big, 4 << 20).result(WAIT_S)) == 4 << 20
                said += capfd.readouterr().err
                if "read transaction" in said:
                    break
            assert said.count("read transaction") == 1
            assert str(log) in said
            assert log.stat().st_size > 64 << 20
        for _ in range(40):
            assert len(pool.submit(big, 4 << 20).result(WAIT_S)) == 4 << 20
            if log.stat().st_size < 64 << 20:
                break
        assert log.stat().st_size < 64 << 20
    evidence.check_file(place / "x.db")
