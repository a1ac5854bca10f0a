"""The client over one connection: what it sends, what it makes of answers, and how it ends."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from peer import Peer, echo, succeeded

from taskpool import Flow, TaskFuture, errors
from taskpool.doors.client import connect, current_pool
from taskpool.doors.link import Link
from taskpool.doors.options import NOTHING_SAID
from taskpool.doors.outbox import Bundle, draw_uids
from taskpool.doors.selection import filter_of
from taskpool.model import Filter, Options, Progress, Stats, Status, Task, TaskSpec
from taskpool.wire import messages as wire
from taskpool.wire.frames import FrameWriter

WAIT_S = 10


def work(*args: Any, **kwargs: Any) -> Any:
    return args


# ---- submitting -----------------------------------------------------------------------------------------------------------


def test_submit_returns_when_the_task_is_stored(connected: Any) -> None:
    """Not before the supervisor says so."""
    held: list[wire.Submit] = []
    client, peer = connected(lambda peer, request: held.append(request))
    futures: list[Any] = []
    thread = threading.Thread(target=lambda: futures.append(client.submit(work, 1, b=2)))
    thread.start()
    (request,) = peer.wait_for(wire.Submit)
    assert not futures
    peer.accept(request)
    thread.join(WAIT_S)
    assert futures[0].id == 1


def test_a_task_that_cannot_be_encoded_costs_itself_alone(connected: Any) -> None:
    """It keeps back neither what comes after it nor the goodbye."""
    client, peer = connected()
    bundle = Bundle(client._link)
    spec = TaskSpec(next(draw_uids()), "f", 1, b"", priority=2**70)
    future: TaskFuture[Any] = TaskFuture(bundle, spec.uid)
    bundle.tasks.append((spec, future))
    client._link.send(bundle)
    bundle.wait()
    with pytest.raises(errors.InvalidTask, match="cannot be sent"):
        future.result(WAIT_S)
    assert client.submit(work, 1).id == 1
    assert len(peer.wait_for(wire.Submit)) == 1


@pytest.mark.parametrize("parent", [2**63, 2**70, 0, -1, True, "x"])
def test_what_is_no_task_to_depend_on_is_refused_at_once(parent: Any) -> None:
    with pytest.raises(errors.InvalidTask, match="ids of tasks"):
        NOTHING_SAID.plus({"after": parent})
    with pytest.raises(errors.InvalidTask, match="ids of tasks"):
        Flow("f").step(work, after=[parent])


@pytest.mark.parametrize("name", [None, 5, b"x", ["x"], "a\n", "x" * 201])
def test_what_a_flow_cannot_be_called(name: Any) -> None:
    with pytest.raises(errors.InvalidTask, match="flow's name must be a text"):
        Flow(name)
    if name is not None:
        with pytest.raises(errors.InvalidTask, match="label must be a text"):
            Flow("f").step(work, label=name)


def test_submit_nowait_is_sent_without_anybody_waiting(connected: Any) -> None:
    """The io thread sends what nobody flushes, in order, in few frames."""
    client, peer = connected()
    futures = [client.submit_nowait(work, n) for n in range(1000)]
    peer.wait_specs(1000)
    assert [future.id for future in futures] == list(range(1, 1001))
    assert len(peer.wait_for(wire.Submit)) < 200
    uids = [peer.specs[n].uid for n in range(1, 1001)]
    assert [uuid.UUID(bytes=uid).version for uid in uids] == [7] * 1000
    assert len(set(uids)) == 1000
    assert [future.uid for future in futures] == [str(uuid.UUID(bytes=uid)) for uid in uids]


def test_uids_rise_within_a_moment() -> None:
    drawn = draw_uids()
    uids = [next(drawn) for _ in range(10_000)]
    assert uids == sorted(uids)
    assert {len(uid) for uid in uids} == {16}
    assert {uid[8] >> 6 for uid in uids} == {2}


def test_threads_share_the_connection(connected: Any) -> None:
    """Every task gets its own id and its own result, whoever submits."""
    client, _ = connected(echo)
    wrong: list[Any] = []

    def go() -> None:
        for _ in range(50):
            future = client.submit(work)
            if future.result(WAIT_S) != future.id:
                wrong.append(future)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong
    assert client._link.open_count == 0


def test_what_gathers_behind_a_bundle_leaves_with_its_answer(connected: Any) -> None:
    """One task leaves at once; those after it wait for its answer together, also if a callback reads that answer."""
    held: list[wire.Submit] = []
    client, peer = connected(
        lambda peer, request: held.append(request) if isinstance(request, wire.Submit) else desk(peer, request)
    )
    first = client.submit_nowait(work)
    peer.wait_for(wire.Submit)
    rest = [client.submit_nowait(work) for _ in range(10)]
    assert [len(request.specs) for request in held] == [1]
    reading = threading.Event()

    def read_on(future: Any) -> None:
        reading.set()
        assert last.id == 12

    first.add_done_callback(read_on)
    peer.accept(held[0])
    peer.wait_for(wire.Submit, 2)
    assert [len(request.specs) for request in held] == [1, 10]
    last = client.submit_nowait(work)
    peer.succeed(1)
    assert reading.wait(WAIT_S)
    peer.wait_for(wire.Submit, 3)  # `last.id` waited for it
    later = client.submit_nowait(work)
    peer.accept(held[1])
    peer.accept(held[2])
    assert len(peer.wait_for(wire.Submit, 4)) == 4
    peer.accept(held[3])
    assert [future.id for future in [first, *rest, last, later]] == list(range(1, 14))


def test_an_interrupted_send_is_made_up_for(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between taking a bundle and writing it loses nothing: it leaves with whatever is sent next."""
    client, _ = connected(echo)
    outbox = client._link.outbox
    write = outbox._write

    def interrupted(frame: bytes) -> None:
        monkeypatch.setattr(outbox, "_write", write)
        raise KeyboardInterrupt

    monkeypatch.setattr(outbox, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.submit_nowait(work)
    assert client.submit_nowait(work).result(WAIT_S) == 2
    assert client._link.join(WAIT_S)


def test_submit_many_and_large_payloads_travel_in_several_frames(connected: Any) -> None:
    client, peer = connected(echo)
    futures = client.submit_many(work, range(1500))
    assert [future.result(WAIT_S) for future in futures] == list(range(1, 1501))
    assert len(peer.wait_for(wire.Submit, 3)) == 3
    big = [client.submit_nowait(work, bytes(3 << 20)) for _ in range(8)]
    assert [future.result(WAIT_S) for future in big] == list(range(1501, 1509))
    assert len(peer.wait_for(wire.Submit)) >= 5


def test_submit_many_sends_nothing_if_one_item_cannot_be_sent(connected: Any) -> None:
    client, peer = connected()
    with pytest.raises(errors.InvalidPayload):
        client.submit_many(work, [1, 2, (n for n in ())])
    assert client.submit(work).id == 1
    assert len(peer.specs) == 1


def test_a_refused_submit_raises_what_it_is_refused_with(connected: Any) -> None:
    def full(peer: Peer, request: wire.Request) -> None:
        peer.send(wire.Refused(request.seq, "queue_full", "no room", "wait"))

    client, _ = connected(full)
    with pytest.raises(errors.QueueFull, match=r"no room \(wait\)"):
        client.submit(work)
    future = client.submit_nowait(work)
    with pytest.raises(errors.QueueFull):
        future.result(WAIT_S)
    with pytest.raises(errors.QueueFull):
        _ = future.id
    with pytest.raises(errors.QueueFull):
        client.submit_many(work, [1])
    assert not future.cancel()


def test_a_peer_that_does_not_read_holds_up_nobody(connected: Any) -> None:
    """What the socket does not take is sent later, by the io thread, in order."""
    gate = threading.Event()

    def slow(peer: Peer, request: wire.Request) -> None:
        gate.wait(WAIT_S)
        echo(peer, request)

    client, peer = connected(slow)
    futures = [client.submit_nowait(work, bytes(100_000)) for _ in range(100)]
    assert not futures[-1].done()
    gate.set()
    assert [future.result(WAIT_S) for future in futures] == list(range(1, 101))
    assert not peer._reader.eof


# ---- options --------------------------------------------------------------------------------------------------------------


def test_options_travel_packed(connected: Any) -> None:
    import msgspec

    client, peer = connected()
    view = client.options(queue="cpu", priority=5, max_attempts=3, timeout=60, tags=["a"]).options(timeout=30)
    view.submit(work)
    client.submit(work)
    spec = peer.specs[1]
    assert (spec.queue, spec.priority, spec.scheduled_at) == ("cpu", 5, 0)
    assert msgspec.msgpack.decode(spec.options, type=Options) == Options(max_attempts=3, timeout_s=30.0, tags=("a",))
    assert (peer.specs[2].options, peer.specs[2].queue) == (b"", "default")
    view.submit_many(work, [1, 2])
    assert peer.specs[3].options == peer.specs[4].options == spec.options


# ---- requests ---------------------------------------------------------------------------------------------------------------


def a_task(task_id: int, status: Status = Status.QUEUED) -> Task:
    return Task(id=task_id, uid="u", name="m:f", queue="default", priority=0, status=status, version=1)


def desk(peer: Peer, request: wire.Request) -> None:
    """Answer readings."""
    if isinstance(request, wire.Get):
        if request.id == 404:
            peer.send(wire.Refused(request.seq, "not_found", "no task 404"))
        else:
            peer.send(wire.Reply(request.seq, tasks=[a_task(request.id)]))
    elif isinstance(request, wire.List):
        peer.send(wire.Reply(request.seq, tasks=[a_task(2), a_task(1)]))
    elif isinstance(request, wire.Count):
        peer.send(wire.Reply(request.seq, next=17))
    elif isinstance(request, wire.GetStats):
        peer.send(wire.Reply(request.seq, stats=Stats(1, 1, "x.db", {"queued": 2})))
    elif isinstance(request, wire.GetAttempts):
        peer.send(wire.Reply(request.seq, attempts=[]))
    elif isinstance(request, wire.Cancel | wire.Retry):
        peer.send(wire.Reply(request.seq, ids=[1], refused=[2]))
    elif isinstance(request, wire.Watch):
        peer.send(wire.Reply(request.seq), wire.Settled([succeeded(i) for i in request.ids]))
    elif isinstance(request, wire.Follow):
        peer.send(wire.Reply(request.seq), wire.News({7: Progress(1, 2, "half")}, [(7, b"out")]))
    else:
        peer.accept(request)


def test_requests_and_their_answers(connected: Any) -> None:
    client, peer = connected(desk)
    assert client.get(5).id == 5
    assert client.future(5) is not client.future(6)
    assert [task.id for task in client.list(status="queued", limit=2, before=9)] == [2, 1]
    assert client.count(queue=["a", "b"]) == 17
    assert client.stats().counts == {"queued": 2}
    assert client.attempts(5) == []
    assert client.cancel(name="m:f", reason="why") == ([1], [2])
    assert client.retry([1, 2], force=True) == ([1], [2])
    assert client.wait(5, WAIT_S).id == 5
    (listing,) = peer.wait_for(wire.List)
    assert (listing.filter, listing.limit, listing.before) == (Filter(statuses=("queued",)), 2, 9)
    assert peer.wait_for(wire.Retry)[0].filter == Filter(ids=(1, 2))
    with pytest.raises(errors.NotFound, match="no task 404"):
        client.future(404)


def test_bulk_verbs_do_not_guess_what_is_meant(connected: Any) -> None:
    client, peer = connected(desk)
    for verb in (client.cancel, client.retry):
        with pytest.raises(errors.InvalidTask, match="which tasks"):
            verb()
        assert verb(Filter()) == ([1], [2])
        assert verb([]) == ([], [])
    assert all(r.filter.ids == () for r in peer.requests if isinstance(r, wire.Cancel | wire.Retry))


def test_filters_are_checked() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert filter_of(3, {"status": [Status.FAILED, "queued"], "tag": "t", "since": noon, "error": "disk"}) == Filter(
        ids=(3,), statuses=("failed", "queued"), tags=("t",), since=1_767_268_800_000_000, error_contains="disk"
    )
    with pytest.raises(errors.InvalidTask, match="no status 'done'"):
        filter_of(None, {"status": "done"})
    with pytest.raises(errors.InvalidTask, match="colour"):
        filter_of(None, {"colour": "red"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(errors.InvalidTask, match="time zone"):
        filter_of(None, {"since": datetime(2026, 1, 1)})


def test_following_calls_back_until_told_to_stop(connected: Any) -> None:
    client, peer = connected(desk)
    news: list[wire.News] = []
    came = threading.Event()
    unfollow = client.follow(lambda n: (news.append(n), came.set()), [7])
    assert came.wait(WAIT_S)
    assert news[0].progress[7].text == "half"
    unfollow()
    peer.send(wire.News({}, []))
    client.stats()
    assert len(news) == 1


def test_callbacks_may_use_the_client(connected: Any) -> None:
    """They run in the io thread; what they call of the pool goes on reading, and further callbacks wait their turn."""
    depths: list[int] = []
    depth = 0

    def script(peer: Peer, request: wire.Request) -> None:
        first = peer._next_id == 1  # is left open, so that the chain begins in the io thread
        echo(peer, request) if isinstance(request, wire.Submit) and not first else desk(peer, request)

    client, peer = connected(script)
    chain = threading.Event()
    ids: list[int] = []

    def follow_up(future: Any) -> None:
        nonlocal depth
        depth += 1
        depths.append(depth)
        ids.append(future.result())
        client.get(1)
        assert client.submit(work).result(WAIT_S)
        if len(ids) < 50:
            client.submit(work).add_done_callback(follow_up)
        else:
            chain.set()
        depth -= 1

    client.submit(work).add_done_callback(follow_up)
    peer.succeed(1)
    assert chain.wait(WAIT_S)
    assert len(ids) == 50
    assert max(depths) == 1


def test_join_waits_for_all_futures(connected: Any) -> None:
    client, peer = connected()
    assert client._link.join(WAIT_S)
    futures = client.submit_many(work, range(10))
    assert not client._link.join(0.001)
    threading.Timer(0.01, lambda: peer.send(wire.Settled([succeeded(future.id) for future in futures]))).start()
    assert client._link.join(WAIT_S)
    assert all(future.done() for future in futures)


# ---- the end ------------------------------------------------------------------------------------------------------------------


def test_who_is_refused_before_saying_hello_is_told_why() -> None:
    """A supervisor that finds the store locked answers, and is gone, while the client is still about to speak."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            FrameWriter(theirs).send(wire.encoder.encode(wire.Refused(0, "store_locked", "owned by process 7")))
        with pytest.raises(errors.StoreLocked, match="owned by process 7"):
            Link(ours, name="test")


@pytest.mark.parametrize("how", ["goodbye", "silence", "close", "nonsense"])
def test_the_end_of_the_connection_settles_everything(connected: Any, how: str) -> None:
    """Open futures, waiting threads and pending requests get PoolStopped with the cause; so does whoever comes later."""
    client, peer = connected(lambda peer, request: peer.accept(request) if isinstance(request, wire.Submit) else None)
    waited, watched = client.submit(work), client.submit(work)
    called = threading.Event()
    watched.add_done_callback(lambda f: called.set())
    failures: list[BaseException] = []

    def wait_for(call: Callable[[], Any]) -> None:
        try:
            call()
        except errors.PoolStopped as error:
            failures.append(error)

    calls = [waited.result, client.stats, lambda: client._link.join() and client.stats()]
    threads = [threading.Thread(target=wait_for, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    peer.wait_for(wire.GetStats)
    if how == "goodbye":
        peer.send(wire.Goodbye("the disk is full"))
    elif how == "silence":
        peer.close()
    elif how == "nonsense":
        peer._sock.sendall(b"\xff\xff\xff\xff")
    else:
        client.close()
    for thread in threads:
        thread.join(WAIT_S)
    cause = {
        "goodbye": "the disk is full",
        "silence": "gone without a word",
        "close": "client was closed",
        "nonsense": "frame of 4294967295 bytes",
    }[how]
    assert len(failures) == 3
    assert all(cause in str(failure) for failure in failures)
    assert called.wait(WAIT_S)
    with pytest.raises(errors.PoolStopped, match=cause):
        watched.result(WAIT_S)
    for late in (
        lambda: client.submit(work),
        lambda: client.submit_nowait(work),
        client.stats,
        lambda: client.submit_many(work, [1]),
    ):
        with pytest.raises(errors.PoolStopped, match=cause):
            late()
    client.close()
    client.close()


def test_a_callback_may_close_its_client(connected: Any) -> None:
    client, peer = connected()
    future = client.submit(work)
    closed = threading.Event()
    future.add_done_callback(lambda f: (client.close(), closed.set()))
    peer.succeed(1)
    assert closed.wait(WAIT_S)
    client._link._thread.join(WAIT_S)
    assert client._link._sock.fileno() < 0


def test_a_refused_hello_raises() -> None:
    peer = Peer(greeting=wire.Refused(0, "store_locked", "pid 77 owns it", "connect()"))
    with peer.ours, pytest.raises(errors.StoreLocked, match="pid 77"):
        Link(peer.ours)
    peer.close()


def test_a_forked_child_is_told_and_its_parent_goes_on(connected: Any) -> None:
    """The child drops the connection at once: the parent's goes on, and ends when the parent ends it."""
    client, _ = connected(echo)
    stored = client.submit(work)
    pending = client.submit_nowait(work)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            refused = 0
            calls: list[Callable[[], Any]] = [
                lambda: client.submit(work),
                lambda: client.submit_nowait(work),
                client.stats,
                lambda: stored.task(),
                lambda: client.future(1),
            ]
            client.close()
            for call in calls:
                try:
                    call()
                except errors.PoolStopped as error:
                    refused += "forked" in str(error)
            code = 0 if refused == len(calls) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pending.result(WAIT_S) == 2
    assert client.submit(work).result(WAIT_S) == 3


# ---- connecting ----------------------------------------------------------------------------------------------------------------


class Listener:
    """A socket where one scripted supervisor waits."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=lambda: Peer(echo, sock=self._listener.accept()[0]), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(WAIT_S)
        self._listener.close()


def test_connect_by_path_and_by_socket(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    for target in (tmp_path / "x.db", f"unix:{tmp_path}/x.db.d/run/sock"):
        listener = Listener(tmp_path / "x.db.d" / "run" / "sock")
        with connect(target) as client:
            assert current_pool() is client
            assert client.submit(work).result(WAIT_S) == 1
            assert client.store == "/nowhere/x.db"
        listener.close()
        (tmp_path / "x.db.d" / "run" / "sock").unlink()
    with pytest.raises(errors.PoolStopped, match="no pool is open"):
        current_pool()


def test_connect_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(errors.NoServer, match="nobody serves"):
        connect(tmp_path / "x.db")
    with pytest.raises(errors.NoServer, match="serve"):
        connect("unix:" + str(tmp_path / ("x" * 200)))


def test_connect_to_one_that_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    with pytest.raises(errors.NoServer, match="does not answer"):
        connect(f"unix:{path}", timeout=0.05)
    listener.close()
