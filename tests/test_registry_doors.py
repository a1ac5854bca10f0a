"""The registry as callers meet it: handlers by name, by type, by queue and type; what arrives in them, and where answers go."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import registry_handlers as handlers

from taskpool import (
    AlreadyExists,
    ArgCountError,
    ArgTypeError,
    Consumer,
    DuplicateHandler,
    HandlerNotFound,
    InvalidHandler,
    InvalidPayload,
    InvalidQueueName,
    InvalidTask,
    InvalidTaskType,
    Pool,
    Publisher,
    Queue,
    QueueNotRegistered,
    TaskCancelled,
    TaskFailed,
    canonical_name,
    connect,
    describe,
    marshal_payload,
    register,
    task,
    unmarshal_payload,
)
from taskpool.core.directory import Directory
from taskpool.core.registry import Registry
from taskpool.wire.zygote import HandlerInfo


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    path = tmp_path_factory.mktemp("registry") / "x.db"
    with Pool(path, workers=2, durability="process", preload=["registry_handlers"]) as pool:
        yield pool


# ---- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["registry_handlers:total", "total", "old_total"])
def test_a_handler_is_found_by_its_name_its_short_form_and_its_aliases(pool: Pool, name: str) -> None:
    future = pool.submit(name, {"item": "pen", "count": 3}, price=1.5)
    assert future.result() == 4.5
    stored = future.task()
    assert stored.name == "registry_handlers:total", "it is stored under its name, whatever it was called"
    assert stored.options.tags == ("orders",), "what its decorator says holds for callers that know but its name"


def test_a_name_in_a_view_takes_the_views_options(pool: Pool) -> None:
    future = pool.options(tags=["mine"], owner_type="user", owner_id="7").submit("trace")
    assert future.result()["owner"] == "7"
    assert (future.task().options.tags, future.task().options.owner_type) == (("mine",), "user")


@pytest.mark.parametrize(
    ("name", "near"), [("totl", "total"), ("registry_handlers:totall", "registry_handlers:total"), ("send_male", "send_mail")]
)
def test_a_misspelt_name_is_refused_with_the_nearest_before_anything_is_stored(pool: Pool, name: str, near: str) -> None:
    before = pool.count()
    with pytest.raises(HandlerNotFound, match=near):
        pool.submit(name, 1)
    assert pool.count() == before


def test_no_name_is_no_short_form(pool: Pool) -> None:
    """Not of a handler whose name has no colon, such as those of queues."""
    with pytest.raises(HandlerNotFound, match="no handler is called ''"):
        pool.submit("", 1)
    registry = Registry()
    registry.register(lambda: 1, name="plain")
    assert registry.find("") is None


def test_a_short_form_that_means_two_handlers_names_both(pool: Pool) -> None:
    directory = Directory([HandlerInfo("a:run", canonical="a:run"), HandlerInfo("b:run", canonical="b:run")])
    with pytest.raises(HandlerNotFound, match="'a:run' and 'b:run'"):
        directory.find("run")
    registry = Registry()
    registry.register(lambda: 1, name="a:run")
    assert registry.get("run").name == "a:run"
    registry.register(lambda: 2, name="b:run")
    with pytest.raises(HandlerNotFound, match="'a:run' and 'b:run'"):
        registry.get("run")


def test_what_was_bound_stays_when_the_modules_are_imported_anew() -> None:
    """Such as by a second zygote, when the first has died."""
    directory = Directory([HandlerInfo("a:run", canonical="a:run")])
    directory.bind("q/t", "run")
    directory.learn([HandlerInfo("a:run", canonical="a:run"), HandlerInfo("a:more", canonical="a:more")])
    assert (directory.find("q/t").name, directory.find("more").name) == ("a:run", "a:more")


def test_a_function_of_a_module_that_nobody_has_loaded_is_left_to_the_worker(pool: Pool) -> None:
    future = pool.submit("json:loads", "[1]")
    with pytest.raises(TaskFailed) as caught:
        future.result()
    assert caught.value.error is not None
    assert caught.value.error.kind == "unknown_handler"


def test_handlers_are_listed_with_what_is_known_of_them(pool: Pool) -> None:
    known = dict(pool.handlers())
    total = known["registry_handlers:total"]
    assert total.aliases == ("old_total",)
    assert total.usage == "total(order: Order, price: float)"
    assert total.summary == "Return what an order costs."
    assert known["send_mail"].canonical == "registry_handlers:SendMail.run"
    assert known["mail/welcome"].said is not None


def test_canonical_names_are_module_and_qualified_name() -> None:
    assert canonical_name(handlers.total.__wrapped__) == "registry_handlers:total"
    assert canonical_name(handlers.SendMail.run) == "registry_handlers:SendMail.run"


# ---- describe ---------------------------------------------------------------------------------------------------------


def by_name(a: Any, /, b: int, *, c: int) -> None: ...


def test_describe_tells_a_signature_without_registration() -> None:
    found = describe(handlers.plain)
    assert (found.name, found.arg_types, found.has_result, found.result_type) == ("registry_handlers:plain", (int,), True, int)
    assert not found.registered
    assert found.call((1,), {}) == 1
    with pytest.raises(ArgCountError):
        found.validate_args((), {})
    with pytest.raises(ArgTypeError, match="'n'"):
        found.validate_args(("1",), {})

    assert found.call([1]) == 1
    with pytest.raises(ArgCountError, match=r"called as by_name\(a, /, b: int, \*, c: int\)"):
        describe(by_name).validate_args([1])

    def nothing() -> None: ...

    assert (describe(nothing).has_result, describe(nothing).result_type) == (False, type(None))


def test_arguments_are_checked_before_anything_is_stored(pool: Pool) -> None:
    before = pool.count()
    with pytest.raises(ArgCountError, match="price"):
        pool.submit(handlers.total, handlers.Order("pen", 1))  # type: ignore[call-arg]
    with pytest.raises(ArgTypeError, match="order"):
        pool.submit(handlers.total, 7, 1.0)  # type: ignore[arg-type]
    assert pool.count() == before


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "misses 'order', 'price'"),
        (({}, 1.0, 2), {}, "takes 2 positional arguments, 3 were given"),
        (({},), {"order": {}, "price": 1.0}, "'order' twice"),
        (({},), {"price": 1.0, "prize": 1.0}, "no parameter 'prize'"),
    ],
)
def test_so_is_the_number_of_arguments_of_a_handler_that_is_known_by_name(
    pool: Pool, args: tuple[object, ...], kwargs: dict[str, object], words: str
) -> None:
    before = pool.count()
    with pytest.raises(ArgCountError, match=words) as caught:
        pool.submit("total", *args, **kwargs)
    assert caught.value.hint == "it is called as total(order: Order, price: float)"
    assert pool.count() == before


@pytest.mark.parametrize("order", [{"item": "pen", "count": "x"}, {"item": "pen", "count": "3"}])
def test_a_worker_refuses_what_only_annotations_can_tell(pool: Pool, order: object) -> None:
    future = pool.submit("total", order, 1.0)
    with pytest.raises(TaskFailed) as caught:
        future.result()
    assert caught.value.error is not None
    assert caught.value.error.kind == "arg_type"
    assert not caught.value.error.retryable


def test_annotations_decide_what_arrives_and_what_comes_back(pool: Pool) -> None:
    order = handlers.Order("pen", 2, datetime(2026, 1, 2, tzinfo=UTC), handlers.Kind.FANCY)
    assert pool.submit(handlers.echo_order, order).result() == order
    given = {"item": "pen", "count": 2, "at": "2026-01-02T00:00:00Z", "kind": "fancy"}
    assert pool.submit("echo_order", given).result() == order
    assert pool.submit("by_number", {7: "seven"}, {datetime(2026, 1, 2, tzinfo=UTC): 1}).result() == {7: "seven"}


def test_headers_and_trace_context_arrive_in_the_handler(pool: Pool) -> None:
    traced = pool.options(headers={"a": "b"}, trace_ctx={"traceparent": "00-1-2-01"})
    assert traced.submit("trace").result() == {"headers": {"a": "b"}, "trace_ctx": {"traceparent": "00-1-2-01"}, "owner": ""}


# ---- handler objects --------------------------------------------------------------------------------------------------


def test_a_handler_object_runs_the_tasks_of_its_type(pool: Pool) -> None:
    future = pool.submit("send_mail", {"to": "ann", "copies": 2})
    assert future.result() == [f"{future.id}:ann"] * 2
    assert future.task().max_attempts == 2
    typed = pool.submit(handlers.send_mail, handlers.Mail("bob"))
    assert typed.result() == [f"{typed.id}:bob"]
    assert pool.submit("mailer", {"to": "eve"}).task().name == "send_mail"


def test_two_handler_objects_of_one_type_are_refused() -> None:
    registry = Registry()

    class Other:
        type = "send_mail"

        def run(self, task: object, ctl: object) -> None: ...

    registry.register(handlers.SendMail())
    registry.register(handlers.SendMail()), "the same again is fine"
    with pytest.raises(DuplicateHandler, match="send_mail"):
        registry.register(Other())
    with pytest.raises(InvalidHandler):
        registry.register(object())  # type: ignore[arg-type]


def test_register_is_the_decorator_as_a_call() -> None:
    registry = Registry()

    def one(n: int) -> int:
        return n

    def other() -> None: ...

    made = register(one, name="p", aliases=["q"], registry=registry)
    assert made(1) == 1
    assert registry.get("q").name == "p"
    with pytest.raises(DuplicateHandler):
        register(other, name="p", registry=registry)


# ---- queue and type ---------------------------------------------------------------------------------------------------


def test_a_publisher_knows_but_queue_and_type(pool: Pool) -> None:
    assert isinstance(pool, Publisher)
    stored = pool.publish("mail", "welcome", "ann", headers={"x": "y"}, delay=0.01)
    assert (stored.name, stored.queue, stored.options.headers) == ("mail/welcome", "mail", {"x": "y"})
    assert pool.future(stored.id).result() == "welcome, ann"
    with pytest.raises(HandlerNotFound, match="mail/welcome"):
        pool.publish("mail", "welcom", "ann")
    for type_, queue, error in (("", "mail", InvalidTaskType), ("a/b", "mail", InvalidTaskType), ("a", " ", InvalidQueueName)):
        with pytest.raises(error):
            pool.publish(queue, type_, None)
    with pytest.raises(InvalidPayload, match="JSON"):
        pool.publish("mail", "welcome", object())


def test_a_consumer_binds_handlers_to_queues_that_are_registered(pool: Pool) -> None:
    assert isinstance(pool, Consumer)
    with pytest.raises(QueueNotRegistered):
        pool.register_handler("orders", "new", handlers.echo_order)
    pool.register_queue(Queue("orders", concurrency=1))
    pool.register_handler("orders", "new", handlers.echo_order)
    pool.register_handler("orders", "new", "echo_order"), "the same again changes nothing"
    with pytest.raises(DuplicateHandler, match="echo_order already"):
        pool.register_handler("orders", "new", handlers.total)
    with pytest.raises(InvalidHandler, match="plain function"):
        pool.register_handler("orders", "other", handlers.plain)
    with pytest.raises(HandlerNotFound):
        pool.register_handler("orders", "other", "echo_ordre")
    stored = pool.publish("orders", "new", {"item": "pen", "count": 1})
    assert (stored.name, stored.queue) == ("registry_handlers:echo_order", "orders")
    assert pool.future(stored.id).result() == handlers.Order("pen", 1)


def test_type_and_name_exclude_each_other() -> None:
    with pytest.raises(InvalidTask):
        task(name="a", type="b", registry=Registry())(handlers.plain)


def test_payloads_are_json_both_ways() -> None:
    data = marshal_payload(handlers.Order("pen", 2, None, handlers.Kind.FANCY))
    assert unmarshal_payload(data, handlers.Order) == handlers.Order("pen", 2, None, handlers.Kind.FANCY)
    assert unmarshal_payload(data)["kind"] == "fancy"
    with pytest.raises(InvalidPayload):
        unmarshal_payload(b'{"item": 5}', handlers.Order)
    with pytest.raises(InvalidPayload):
        marshal_payload(lambda: 1)
    with pytest.raises(InvalidPayload):
        unmarshal_payload(None)  # type: ignore[arg-type]
    assert marshal_payload([None, "null", 1.5]) == b'[null,"null",1.5]'


@pytest.mark.parametrize("payload", [math.nan, {"a": [1.0, -math.inf]}, handlers.Order("pen", math.inf)])  # type: ignore[arg-type]
def test_a_number_that_json_has_not_is_refused_and_becomes_no_null(pool: Pool, payload: Any) -> None:
    before = pool.count()
    with pytest.raises(InvalidPayload, match=r"JSON, which has no (nan|inf|-inf)"):
        marshal_payload(payload)
    with pytest.raises(InvalidPayload, match="JSON, which has no"):
        pool.submit("echo_order", payload)
    assert pool.count() == before


# ---- mailboxes --------------------------------------------------------------------------------------------------------


def test_a_response_lies_in_its_mailbox_until_it_is_acknowledged(pool: Pool) -> None:
    box = pool.options(reply_to="results")
    good = box.submit(handlers.total, handlers.Order("pen", 2), 1.5)
    bad = box.options(max_attempts=2).submit("fail", "retryable")
    good.result()
    with pytest.raises(Exception, match="busy"):
        bad.result()
    responses = pool.replies("results")
    assert [(one.task_id, one.status, one.attempts) for one in responses] == [(good.id, "succeeded", 1), (bad.id, "failed", 2)]
    first, second = responses
    assert (first.result, first.error, first.value()) == (3.0, None, 3.0)
    assert second.result is None
    assert second.error is not None
    assert second.error.kind == "handler"
    with pytest.raises(Exception, match="busy"):
        second.value()
    assert first.completed_at.timestamp() * 1e6 == pytest.approx(good.task().finished_at, abs=2)
    assert pool.mailboxes() == {"results": 2}
    assert [one.seq for one in pool.replies("results", after=first.seq)] == [second.seq]
    assert pool.acknowledge("results", [first]) == 1
    assert pool.acknowledge("results", [first, 10_000]) == 0, "once is enough"
    assert pool.acknowledge("others", [second]) == 0, "each mailbox has its own"
    assert [one.task_id for one in pool.replies("results")] == [bad.id]
    assert pool.acknowledge("results", pool.replies("results")) == 1
    assert pool.mailboxes() == {}


def test_every_way_to_end_leaves_a_response_and_a_new_round_another(pool: Pool) -> None:
    box = pool.options(reply_to="ends", delay=60)
    waiting = box.submit("trace")
    pool.cancel(waiting.id, reason="no need")
    with pytest.raises(TaskCancelled):
        waiting.result()
    expired = pool.options(reply_to="ends", delay=0.02, expires=0.01).submit("trace")
    with pytest.raises(TaskCancelled):
        expired.result()
    pool.retry(waiting.id)
    assert pool.wait(waiting.id).status == "succeeded"
    assert [(one.task_id, one.status) for one in pool.replies("ends")] == [
        (waiting.id, "cancelled"), (expired.id, "cancelled"), (waiting.id, "succeeded"),
    ]  # fmt: skip
    pool.acknowledge("ends", pool.replies("ends"))


def test_replies_can_be_waited_for(pool: Pool) -> None:
    assert pool.replies("later", wait=0.01) == []
    assert not pool._link._calls, "nothing is kept of who gave up"
    found: list[int] = []
    with connect(pool.store) as other:
        waiter = threading.Thread(target=lambda: found.extend(one.task_id for one in other.replies("later", wait=60)))
        waiter.start()
        future = pool.options(reply_to="later").submit("trace")
        waiter.join(60)
        assert found == [future.id]


@pytest.mark.parametrize("wait", ["", "1", -1, math.nan, 1e11, []])
def test_what_is_no_time_to_wait_is_refused_and_not_waited_for_ever(pool: Pool, wait: Any) -> None:
    with pytest.raises(InvalidTask, match="wait must be a number of seconds"):
        pool.replies("later", wait=wait)


def test_responses_outlive_the_pool(tmp_path: object) -> None:
    with Pool(f"{tmp_path}/x.db", workers=1, preload=["registry_handlers"]) as pool:
        pool.options(reply_to="box").submit("trace").result()
    db = sqlite3.connect(f"{tmp_path}/x.db")
    assert db.execute("SELECT mailbox, status FROM reply").fetchall() == [("box", "succeeded")]
    db.close()
    with Pool(f"{tmp_path}/x.db", workers=1) as pool:
        (response,) = pool.replies("box")
        assert response.result["headers"] == {}


def test_a_submit_of_many_is_stored_whole_or_not_at_all(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pool.submit(handlers.plain, 1)
    stored.result()
    before = pool.count()
    outbox = pool._link.outbox
    uids = outbox._uids
    monkeypatch.setattr(outbox, "_uids", iter([next(uids), stored._uid, next(uids)]))
    with pytest.raises(AlreadyExists):
        pool.submit_many(handlers.plain, [1, 2, 3])
    assert pool.count() == before
    monkeypatch.setattr(outbox, "_uids", uids)


def test_what_an_error_was_raised_from_decides_on_a_retry(pool: Pool) -> None:
    future = pool.options(max_attempts=3).submit("fail", "chained")
    with pytest.raises(ValueError, match="outer"):
        future.result()
    assert future.task().charged == 1, "its cause says that no attempt can help"
