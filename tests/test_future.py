"""TaskFuture is a concurrent.futures.Future in all that callers and the standard library do with one."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from peer import Peer, succeeded

from taskpool import errors
from taskpool.doors.client import Client
from taskpool.doors.future import RemoteTraceback, TaskFuture, exception_for
from taskpool.doors.link import Link
from taskpool.model import TaskError
from taskpool.wire import messages as wire

WAIT_S = 10


def work(*args: Any) -> Any:
    return args


class Unloadable(Exception):
    """It pickles, and cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class Explosive(Exception):
    """Unpickling it exits the process."""

    def __reduce__(self) -> Any:
        return _exit, ()


def _exit() -> None:
    raise SystemExit(3)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def client(peer: Peer) -> Iterator[Client]:
    client = Client(Link(peer.ours))
    yield client
    client.close()


def submitted(client: Client, count: int) -> list[TaskFuture[Any]]:
    """Return futures of stored tasks 1..count."""
    return [client.submit(work) for _ in range(count)]


# ---- results ------------------------------------------------------------------------------------------------------------


def test_a_result_is_decoded_once_and_stays(client: Client, peer: Peer) -> None:
    (future,) = submitted(client, 1)
    assert not future.done()
    peer.succeed(1, {"a": [1, 2]})
    value = future.result(WAIT_S)
    assert value == {"a": [1, 2]}
    assert future.result() is value
    assert future.exception() is None
    assert future.done()
    assert not future.cancelled()
    assert not future.running()
    assert future.status == "succeeded"


def test_a_result_of_none(client: Client, peer: Peer) -> None:
    (future,) = submitted(client, 1)
    peer.succeed(1, None)
    assert future.result(WAIT_S) is None
    assert future.result() is None


def test_time_running_out_is_a_plain_timeout(client: Client) -> None:
    """result(timeout=) running out says nothing of the task: it is not done, and goes on."""
    (future,) = submitted(client, 1)
    for call in (future.result, future.exception):
        with pytest.raises(TimeoutError) as caught:
            call(0.001)
        assert type(caught.value) is TimeoutError
    with pytest.raises(TimeoutError):
        future.result(0)
    assert not future.done()


def test_futures_are_not_pickled(client: Client) -> None:
    with pytest.raises(TypeError, match=r"pool\.future\(id\)"):
        pickle.dumps(submitted(client, 1)[0])


def test_repr_names_the_task(client: Client, peer: Peer) -> None:
    (future,) = submitted(client, 1)
    assert repr(future) == "<TaskFuture task 1: pending>"
    peer.succeed(1)
    future.result(WAIT_S)
    assert repr(future) == "<TaskFuture task 1: succeeded>"


# ---- failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "leaf", "also"),
    [
        ("cancelled", "cancelled", errors.TaskCancelled, cf.CancelledError),
        ("expired", "cancelled", errors.TaskCancelled, cf.CancelledError),
        ("upstream", "cancelled", errors.TaskCancelled, cf.CancelledError),
        ("panic", "failed", errors.TaskPanicked, BrokenProcessPool),
        ("node_lost", "failed", errors.TaskPanicked, BrokenProcessPool),
        ("timeout", "failed", errors.TaskTimeout, TimeoutError),
        ("deadline", "failed", errors.TaskTimeout, TimeoutError),
        ("heartbeat", "failed", errors.TaskTimeout, TimeoutError),
        ("memory", "failed", errors.TaskMemory, MemoryError),
        ("interrupted", "interrupted", errors.TaskInterrupted, errors.TaskFailed),
        ("decode", "failed", errors.TaskFailed, errors.TaskpoolError),
        ("handler", "failed", errors.TaskFailed, errors.TaskpoolError),
        ("a kind of tomorrow", "failed", errors.TaskFailed, errors.TaskpoolError),
    ],
)
def test_each_kind_has_its_exception(
    client: Client, peer: Peer, kind: str, status: str, leaf: type[Exception], also: type[BaseException]
) -> None:
    (future,) = submitted(client, 1)
    error = TaskError(kind, "as it happened", type_name="Odd", traceback="far away", output_tail="last words")
    peer.fail(1, error, status)
    with pytest.raises(leaf) as caught:
        future.result(WAIT_S)
    assert type(caught.value) is leaf
    assert isinstance(caught.value, also)
    assert isinstance(caught.value, errors.TaskFailed)
    assert caught.value.error == error
    assert caught.value.task_id == 1
    assert "Odd: as it happened" in str(caught.value)
    assert "far away" in str(caught.value.__cause__)
    assert "last words" in str(caught.value.__cause__)
    assert future.cancelled() is (status == "cancelled")
    if status == "cancelled":
        with pytest.raises(cf.CancelledError):
            future.exception()
    else:
        assert future.exception() is caught.value


def test_the_handlers_own_exception_comes_back(client: Client, peer: Peer) -> None:
    """It is raised as itself, with its remote traceback as cause."""
    (future,) = submitted(client, 1)
    peer.fail(1, TaskError("handler", "'k'", type_name="KeyError", traceback="tb\n", exception=pickle.dumps(KeyError("k"))))
    with pytest.raises(KeyError) as caught:
        future.result(WAIT_S)
    assert caught.value.args == ("k",)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert str(caught.value.__cause__) == '\n"""\ntb\n"""'


@pytest.mark.parametrize(
    "pickled",
    [b"", b"not a pickle", pickle.dumps("no exception"), pickle.dumps(Unloadable("1", "2")), pickle.dumps(Explosive())],
    ids=["empty", "garbage", "a text", "unloadable", "exits"],
)
def test_an_exception_that_cannot_be_rebuilt_is_told_in_words(client: Client, peer: Peer, pickled: bytes) -> None:
    """Whatever unpickling does, the caller gets TaskFailed with all the text."""
    (future,) = submitted(client, 1)
    peer.fail(1, TaskError("handler", "it broke", type_name="Odd", traceback="line 7", exception=pickled))
    with pytest.raises(errors.TaskFailed, match="Odd: it broke") as caught:
        future.result(WAIT_S)
    assert "line 7" in str(caught.value.__cause__)


def test_a_deadline_chains_the_last_real_error() -> None:
    own = TaskError("handler", "disk full", type_name="OSError", exception=pickle.dumps(OSError("disk full")))
    failed = exception_for(TaskError("deadline", "no time was left", cause=own), 7)
    assert isinstance(failed, errors.TaskTimeout)
    assert isinstance(failed.__cause__, OSError)


def test_task_errors_survive_pickling() -> None:
    """They are raised in callers that may themselves be workers of another pool."""
    for kind in ("panic", "cancelled", "timeout", "memory"):
        error = exception_for(TaskError(kind, "so"), 7)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.error, again.task_id) == (type(error), str(error), error.error, 7)  # type: ignore[attr-defined]


def test_a_result_that_cannot_be_decoded_raises(client: Client, peer: Peer) -> None:
    (future,) = submitted(client, 1)
    peer.send(wire.Settled([wire.Outcome(1, "succeeded", 1, 1, b"garbage", None, 0)]))
    with pytest.raises(errors.TaskpoolError, match=r"task 1 succeeded, but what it returned cannot be rebuilt here: .*unpickled"):
        future.result(WAIT_S)


# ---- with the standard library --------------------------------------------------------------------------------------------


def test_wait_for_all_first_and_first_exception(client: Client, peer: Peer) -> None:
    futures = submitted(client, 4)
    stock: cf.Future[int] = cf.Future()
    done, rest = cf.wait([*futures, stock], timeout=0)
    assert not done
    assert len(rest) == 5
    peer.succeed(2, "b")
    done, rest = cf.wait([*futures, stock], timeout=WAIT_S, return_when=cf.FIRST_COMPLETED)
    assert done == {futures[1]}
    timer = threading.Timer(0.01, lambda: peer.fail(3, TaskError("handler", "x")))
    timer.start()
    done, rest = cf.wait([f for f in futures if not f.done()], timeout=WAIT_S, return_when=cf.FIRST_EXCEPTION)
    assert done == {futures[2]}
    timer.join()
    peer.send(wire.Settled([succeeded(1), succeeded(4)]))
    stock.set_result(1)
    done, rest = cf.wait([*futures, stock], timeout=WAIT_S)
    assert not rest
    assert len(done) == 5


def test_as_completed_in_the_order_of_ends(client: Client, peer: Peer) -> None:
    futures = submitted(client, 5)
    order = [3, 1, 5, 2, 4]
    peer.succeed(order[0])
    ended = []
    for position, future in enumerate(cf.as_completed(futures, timeout=WAIT_S), 1):
        ended.append(future.id)  # type: ignore[attr-defined]
        if position < len(order):
            peer.succeed(order[position])
    assert ended == order


def test_as_completed_times_out(client: Client) -> None:
    with pytest.raises(TimeoutError):
        list(cf.as_completed(submitted(client, 2), timeout=0.01))


def test_wait_tells_cancelled_ones(client: Client, peer: Peer) -> None:
    futures = submitted(client, 2)
    threading.Timer(0.01, lambda: peer.fail(1, TaskError("cancelled"), "cancelled")).start()
    done, _ = cf.wait(futures, timeout=WAIT_S, return_when=cf.FIRST_COMPLETED)
    assert {future.cancelled() for future in done} == {True}


def test_many_threads_wait_for_one_future(client: Client, peer: Peer) -> None:
    (future,) = submitted(client, 1)
    values: list[Any] = []
    threads = [threading.Thread(target=lambda: values.append(future.result(WAIT_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    peer.succeed(1, "v")
    for thread in threads:
        thread.join(WAIT_S)
    assert values == ["v"] * 8


def test_callbacks_run_in_order_and_errors_in_them_do_no_harm(client: Client, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    (future,) = submitted(client, 1)
    called: list[Any] = []
    ended = threading.Event()
    future.add_done_callback(lambda f: called.append((1, f.result())))
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(lambda f: (called.append((2, f)), ended.set()))
    peer.succeed(1, "v")
    assert ended.wait(WAIT_S)
    assert called == [(1, "v"), (2, future)]
    assert "exception calling callback" in caplog.text
    future.add_done_callback(called.append)
    assert called[-1] is future


def test_callbacks_also_after_somebody_waited(client: Client, peer: Peer) -> None:
    """A future with a condition is settled by another path."""
    (future,) = submitted(client, 1)
    ended = threading.Event()
    cf.wait([future], timeout=0)
    future.add_done_callback(lambda f: ended.set())
    peer.succeed(1)
    assert ended.wait(WAIT_S)
    assert future.result(WAIT_S) is None


def test_asyncio_wraps_it(client: Client, peer: Peer) -> None:
    good, bad, gone = submitted(client, 3)

    async def main() -> list[Any]:
        peer.succeed(1, 7)
        peer.fail(2, TaskError("handler", exception=pickle.dumps(KeyError("k"))))
        peer.fail(3, TaskError("cancelled"), "cancelled")
        wrapped = [asyncio.wrap_future(future) for future in (good, bad, gone)]
        return await asyncio.wait_for(asyncio.gather(*wrapped, return_exceptions=True), WAIT_S)

    value, failure, cancelled = asyncio.run(main())
    assert value == 7
    assert isinstance(failure, KeyError)
    assert isinstance(cancelled, asyncio.CancelledError)


def test_snapshot_as_newer_pythons_take_it(client: Client, peer: Peer) -> None:
    one, two, three = submitted(client, 3)
    assert one._get_snapshot() == (False, False, None, None)
    peer.succeed(1, 5)
    peer.fail(2, TaskError("cancelled"), "cancelled")
    peer.fail(3, TaskError("panic"))
    cf.wait([one, two, three], timeout=WAIT_S)
    assert one._get_snapshot() == (True, False, 5, None)
    assert two._get_snapshot() == (True, True, None, None)
    assert isinstance(three._get_snapshot()[3], errors.TaskPanicked)


# ---- await ----------------------------------------------------------------------------------------------------------------


def test_await_gives_the_result(client: Client, peer: Peer) -> None:
    async def main() -> Any:
        future = client.submit_nowait(work)
        asyncio.get_running_loop().call_later(0.01, peer.succeed, 1, "v")
        return await future

    assert asyncio.run(main()) == "v"


def test_await_raises_the_failure(client: Client, peer: Peer) -> None:
    async def main() -> Any:
        future = client.submit(work)
        peer.fail(1, TaskError("handler", exception=pickle.dumps(KeyError("k"))))
        return await future

    with pytest.raises(KeyError):
        asyncio.run(main())


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not yet stored"])
def test_cancelling_the_scope_cancels_the_task_and_waits_for_its_end(stored: bool) -> None:
    """The awaiting coroutine does not go on before the task's process is idle or dead."""
    asked = threading.Event()

    def script(peer: Peer, request: wire.Request) -> None:
        if isinstance(request, wire.Cancel):
            peer.send(wire.Reply(request.seq, ids=[1]))
            asked.set()
        else:
            peer.accept(request)

    peer = Peer(script)
    client = Client(Link(peer.ours))

    async def main() -> None:
        future = client.submit(work) if stored else client.submit_nowait(work)

        async def scope() -> Any:
            return await future

        waiting = asyncio.create_task(scope())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.to_thread(asked.wait, WAIT_S)
        assert not waiting.done()
        peer.fail(1, TaskError("cancelled"), "cancelled")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert future.cancelled()

    asyncio.run(main())
    client.close()
    peer.close()
    assert [r.filter.ids for r in peer.requests if isinstance(r, wire.Cancel)] == [(1,)]


# ---- the task behind it -----------------------------------------------------------------------------------------------------


def answering(peer: Peer, request: wire.Request) -> None:
    """Accept, and answer cancels: even ids can be cancelled."""
    if isinstance(request, wire.Cancel):
        (task_id,) = request.filter.ids
        done = [task_id] if task_id % 2 == 0 else []
        peer.send(wire.Reply(request.seq, ids=done, refused=[] if done else [task_id]))
    elif isinstance(request, wire.Retry):
        peer.send(wire.Reply(request.seq, ids=list(request.filter.ids), refused=[]))
    elif isinstance(request, wire.Watch):
        peer.send(wire.Reply(request.seq), wire.Settled([succeeded(request.ids[0], "second time")]))
    else:
        peer.accept(request)


def test_cancel_says_whether_it_was_accepted() -> None:
    """True: it is on its way (`cancelled` only when it has come to rest); False: the task had ended."""
    peer = Peer(answering)
    client = Client(Link(peer.ours))
    odd, even = submitted(client, 2)
    assert not odd.cancel()
    assert even.cancel(grace=1.5, reason="no longer needed")
    assert not even.cancelled()
    (_, request) = peer.wait_for(wire.Cancel, 2)
    assert (request.grace_s, request.reason, request.force) == (1.5, "no longer needed", False)
    peer.succeed(1)
    odd.result(WAIT_S)
    assert not odd.cancel(force=True)
    client.close()
    peer.close()


def test_retry_gives_a_new_future() -> None:
    peer = Peer(answering)
    client = Client(Link(peer.ours))
    (future,) = submitted(client, 1)
    peer.fail(1, TaskError("handler"))
    assert future.exception(WAIT_S) is not None
    again = future.retry()
    assert again is not future
    assert again.result(WAIT_S) == "second time"
    assert again.id == future.id
    client.close()
    peer.close()


def test_id_waits_until_the_task_is_stored(client: Client) -> None:
    future = client.submit_nowait(work)
    assert future.id == 1
    assert len(future.uid) == 36
    assert future.uid[14] == "7"
