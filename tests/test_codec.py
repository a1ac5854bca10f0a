"""Calls and results as bytes: what goes in comes out, or an error says which argument and why."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import math
import operator
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import typing
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpool.core.registry import Registry
from taskpool.errors import ArgCountError, ArgTypeError, HandlerNotFound, InvalidHandler, InvalidPayload
from taskpool.model import Codec, Controller
from taskpool.wire import codec as codec_module
from taskpool.wire.annotations import exact, misfit
from taskpool.wire.codec import CallEncoder, DecodeError, decode_args, decode_call, decode_result, encode_call, encode_result
from taskpool.wire.description import Description, canonical_name, describe, look_up


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = field(default_factory=list)


@dataclass
class Tree:
    value: int
    children: "list[Tree]"  # noqa: UP037  # a forward reference is what is tested


@dataclass
class Doubled:
    x: int

    def __post_init__(self) -> None:
        self.x *= 2


class Line(msgspec.Struct):
    start: Point
    end: Point | None = None


class Pair(NamedTuple):
    left: int
    right: str


class MyInt(int):
    pass


class MyList(list[int]):
    pass


def there_and_back(fn: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    registry = Registry()
    name, codec, payload = encode_call(fn, args, kwargs)
    found, got, named = decode_call(name, codec, payload, registry.resolve)
    assert found is fn
    return tuple(got), dict(named)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal and of the same types all the way down; NaN is NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, decimal.Decimal) and a.is_nan():
        return str(a) == str(b)
    if hasattr(a, "__dict__") and not isinstance(a, enum.Enum | type):
        return same(vars(a), vars(b))
    if isinstance(a, datetime.datetime):
        return a == b and repr(a.tzinfo) == repr(b.tzinfo) and a.fold == b.fold
    return bool(a == b)


# ---- which types survive msgpack ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        int, float, str, bytes, bool, None, bytearray, decimal.Decimal, uuid.UUID, datetime.datetime, datetime.date, datetime.time,
        datetime.timedelta, Colour, Level, Point, Tree, Line, Pair, list[int], list[Point], dict[str, float], dict[int, list[str]],
        tuple[int, str], tuple[int, ...], set[int], frozenset[str], int | None, int | str | None, typing.Optional[Point],  # noqa: UP045
        Literal["a", 2],
    ],
)  # fmt: skip
def test_these_annotations_travel_by_msgpack(annotation: Any) -> None:
    assert exact(annotation) is not None


@pytest.mark.parametrize(
    "annotation",
    [
        Any, object, list, dict, tuple, list[Any], dict[str, object], typing.Sequence[int], typing.Iterable[int], Doubled, Flags,
        int | Colour, list[int] | tuple[int, ...], str | datetime.datetime, "Unknown", typing.Callable[[], int], types.ModuleType,
        type, complex, dict[Colour, int], typing.TypeVar("T"),
    ],
)  # fmt: skip
def test_these_annotations_travel_by_pickle(annotation: Any) -> None:
    """What msgspec would accept and change (a tuple for a Sequence, a dataclass whose __post_init__ runs twice), or not know."""
    assert exact(annotation) is None


VALUES: list[tuple[Any, Any]] = [
    (int, st.integers() | st.booleans() | st.floats() | st.integers().map(MyInt)),
    (float, st.floats() | st.integers()),
    (str, st.text() | st.just("\ud800")),
    (bytes, st.binary() | st.binary().map(bytearray)),
    (bool, st.booleans() | st.integers()),
    (datetime.datetime, st.datetimes(timezones=st.none() | st.just(datetime.UTC) | st.timezones(), allow_imaginary=False)),
    (datetime.timedelta, st.timedeltas()),
    (datetime.date, st.dates() | st.datetimes()),
    (datetime.time, st.times()),
    (decimal.Decimal, st.decimals()),
    (uuid.UUID, st.uuids()),
    (list[int], st.lists(st.integers() | st.booleans()) | st.lists(st.integers()).map(MyList) | st.tuples(st.integers())),
    (list[float], st.lists(st.floats() | st.integers())),
    (dict[str, list[int]], st.dictionaries(st.text(), st.lists(st.integers()) | st.tuples())),
    (dict[int, str], st.dictionaries(st.integers(), st.text())),
    (tuple[int, str], st.tuples(st.integers(), st.text()) | st.builds(Pair, st.integers(), st.text())),
    (tuple[int, ...], st.lists(st.integers()).map(tuple) | st.lists(st.integers())),
    (int | str | None, st.integers() | st.text() | st.none() | st.floats()),
    (Point, st.builds(Point, st.integers() | st.floats(), st.floats() | st.integers(), st.lists(st.text()))),
    (Pair, st.builds(Pair, st.integers(), st.text()) | st.tuples(st.integers(), st.text())),
    (Literal[1, "a"], st.sampled_from([1, "a", True, 1.0, "b"])),
    (Level, st.sampled_from([Level.LOW, 1])),
]


@pytest.mark.parametrize(("annotation", "values"), VALUES, ids=[str(pair[0]) for pair in VALUES])
def test_what_a_type_lets_through_comes_back_as_it_was(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    check = exact(annotation)
    assert check is not None
    decoder = msgspec.msgpack.Decoder(annotation)
    passed = []

    @given(values)
    @settings(max_examples=60, deadline=None)
    def run(value: Any) -> None:
        if check(value):
            try:
                data = msgspec.msgpack.encode(value)
            except (OverflowError, UnicodeEncodeError):
                return  # the encoder falls back to pickle
            passed.append(value)
            assert same(decoder.decode(data), value)

    run()
    assert passed


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_value_reaches_an_unregistered_function_as_it_was(value: Any) -> None:
    args, kwargs = there_and_back(plain, value, b=value)
    assert same(args, (value,))
    assert same(kwargs, {"b": value})
    assert same(decode_result(*encode_result(value)), value)


def plain(a: Any, b: Any = None) -> Any:
    return a


# ---- handlers -------------------------------------------------------------------------------------------------------


def typed(a: int, b: float = 0.5, *, c: str = "c", p: Point | None = None) -> list[int]:
    return [a]


def half_typed(a: int, b=None) -> int:
    return a


def positional(a: int, /, b: int) -> None: ...


def starred(*xs: int, **named: int) -> int:
    return sum(xs)


def controlled(ctl: Controller, a: int) -> int:
    return a


def controlled_by_name(ctl: "Controller", a):  # noqa: UP037
    return a


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    for fn in (typed, half_typed, positional, starred, controlled):
        made.register(fn)
    yield made
    for fn in (typed, half_typed, positional, starred, controlled):
        codec_module.describe.__globals__["_described"].pop(fn, None)


@pytest.mark.parametrize(
    ("args", "kwargs", "codec"),
    [
        ((1,), {}, Codec.MSGPACK),
        ((1, 2.5), {"c": "x", "p": Point(1, 2.0, ["t"])}, Codec.MSGPACK),
        ((), {"a": -128}, Codec.MSGPACK),
        ((1,), {"b": -128.0}, Codec.MSGPACK),
        ((2**63,), {}, Codec.MSGPACK),
        ((2**64,), {}, Codec.PICKLE),
        ((1, 2), {}, Codec.PICKLE),  # an int where a float is promised stays an int
        ((1,), {"c": "\ud800"}, Codec.PICKLE),
        ((MyInt(1),), {}, Codec.PICKLE),
        ((1,), {"p": Point("no")}, Codec.PICKLE),  # type: ignore[arg-type]  # it is a Point; its fields are its own matter
        ((1, math.nan), {}, Codec.MSGPACK),
    ],
)
def test_a_call_of_a_handler_arrives_as_it_was_made(registry: Registry, args: Any, kwargs: Any, codec: Codec) -> None:
    name, used, payload = encode_call(typed, args, kwargs)
    assert used == codec
    found, got, named = decode_call(name, used, payload, registry.resolve)
    assert found is typed
    assert same(tuple(got), args)
    assert same(dict(named), kwargs)


def test_no_arguments_are_no_bytes(registry: Registry) -> None:
    registry.register(nothing)
    assert encode_call(nothing)[1:] == (Codec.MSGPACK, b"")
    assert encode_call(plain_nothing)[1:] == (Codec.PICKLE, b"")
    for codec in (Codec.MSGPACK, Codec.PICKLE, Codec.JSON):
        assert decode_args(describe(nothing), codec, b"") == ((), {})
    assert encode_result(None) == (Codec.PICKLE, None)
    assert decode_result(Codec.PICKLE, None) is None


def nothing() -> None: ...


def plain_nothing(): ...


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        ((), {}, ArgCountError, "misses 'a'"),
        ((1, 2.0, 3), {}, ArgCountError, "takes 2 positional arguments, 3 were given"),
        ((1,), {"z": 1}, ArgCountError, "no parameter 'z'"),
        ((1,), {"a": 1}, ArgCountError, "'a' twice"),
        (("1",), {}, ArgTypeError, "argument 'a' of test_codec:typed must be int, but is str: '1'"),
        ((True,), {}, ArgTypeError, "must be int, but is bool"),
        ((1.0,), {}, ArgTypeError, "must be int, but is float"),
        ((1, "2"), {}, ArgTypeError, "argument 'b'"),
        ((1,), {"p": (1, 2)}, ArgTypeError, "argument 'p'"),
        ((1,), {"p": None}, None, ""),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_stored(
    registry: Registry, args: Any, kwargs: Any, error: type[Exception] | None, words: str
) -> None:
    if error is None:
        encode_call(typed, args, kwargs)
        return
    with pytest.raises(error, match=words):
        encode_call(typed, args, kwargs)
    with pytest.raises(error, match=words):
        describe(typed).validate_args(args, kwargs)
    with pytest.raises(error):
        decode_args(describe(typed), Codec.PICKLE, pickle.dumps((args, kwargs), 5))
    with pytest.raises(error):
        decode_args(describe(typed), Codec.MSGPACK, msgspec.msgpack.encode((args, kwargs)))


def test_counts_follow_the_signature_whatever_its_form(registry: Registry) -> None:
    for fn, args, kwargs in (
        (positional, (1, 2), {}),
        (positional, (1,), {"b": 2}),
        (starred, (), {}),
        (starred, (1, 2, 3), {"z": 1}),
        (controlled, (1,), {}),
        (half_typed, (1, object), {}),
    ):
        name, codec, payload = encode_call(fn, args, kwargs)
        _, got, named = decode_call(name, codec, payload, registry.resolve)
        assert (tuple(got), dict(named)) == (args, kwargs)
    with pytest.raises(ArgCountError):
        encode_call(positional, (), {"a": 1, "b": 2})
    with pytest.raises(ArgCountError):
        encode_call(controlled, (None, 1))
    with pytest.raises(ArgTypeError):
        encode_call(half_typed, ("x",))


def test_an_unregistered_functions_annotations_are_no_promise() -> None:
    """`submit(f, …)` takes what a process pool takes; only the count is known to be wrong."""
    assert there_and_back(typed, "a") == (("a",), {})
    with pytest.raises(ArgCountError):
        encode_call(typed, ())


def test_a_payload_of_an_older_signature_says_what_does_not_fit(registry: Registry) -> None:
    described = describe(typed)
    with pytest.raises(ArgCountError, match="3 were given"):
        decode_args(described, Codec.MSGPACK, msgspec.msgpack.encode(([1, 2.0, 3], {})))
    with pytest.raises(ArgCountError, match="no parameter 'old'"):
        decode_args(described, Codec.MSGPACK, msgspec.msgpack.encode(([1], {"old": 1})))
    with pytest.raises(ArgTypeError, match="Expected `int`"):
        decode_args(described, Codec.MSGPACK, msgspec.msgpack.encode((["x"], {})))


@pytest.mark.parametrize(
    "garbage", [b"\xff", b"\x91" * 100_000, msgspec.msgpack.encode(5), msgspec.msgpack.encode([[1]]), b"\xdd\xff\xff\xff\xff"]
)
def test_garbage_is_a_decode_error(registry: Registry, garbage: bytes) -> None:
    for codec in (Codec.MSGPACK, Codec.PICKLE, Codec.JSON, 9):
        with pytest.raises(DecodeError):
            decode_args(describe(typed), codec, garbage)
    with pytest.raises(DecodeError):
        decode_call("x:y", Codec.CALL, garbage, Registry().resolve)


def test_a_payload_that_raises_anything_while_it_is_unpickled_is_a_decode_error() -> None:
    for error in (SystemExit, KeyboardInterrupt, ValueError, RecursionError):
        with pytest.raises(DecodeError):
            decode_args(describe(plain), Codec.PICKLE, pickle.dumps(((Raises(error),), {}), 5))


class Raises:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_it, (self.error,)


def raise_it(error: type[BaseException]) -> None:
    raise error("from a payload")


def test_json_is_converted_by_the_annotations(registry: Registry) -> None:
    described = describe(typed)
    payload = b'{"args": [1, 2], "kwargs": {"c": "x", "p": {"x": 3}}}'
    assert decode_args(described, Codec.JSON, payload) == ((1, 2.0), {"c": "x", "p": Point(3)})
    with pytest.raises(ArgTypeError, match="'a'"):
        decode_args(described, Codec.JSON, b'{"args": [{}]}')
    with pytest.raises(ArgCountError):
        decode_args(described, Codec.JSON, b'{"args": []}')
    with pytest.raises(DecodeError, match="deeper"):
        decode_args(described, Codec.JSON, b'{"args": [' + b"[" * 200 + b"]" * 200 + b"]}")
    with pytest.raises(DecodeError):
        decode_args(described, Codec.JSON, b"[" * 1_000_000)


def test_json_never_reaches_a_function_that_is_no_handler(registry: Registry) -> None:
    with pytest.raises(HandlerNotFound):
        decode_call("os:system", Codec.JSON, b'{"args": ["true"]}', registry.resolve)


# ---- numpy ----------------------------------------------------------------------------------------------------------


class Generic:
    """Stands for numpy.generic: what matters is the type's module and item()."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def item(self) -> Any:
        return self.held


@pytest.fixture
def numpy(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("numpy")
    module.generic = Generic  # type: ignore[attr-defined]
    kinds = {"bool_": (Generic,), "number": (Generic,)}
    for name, bases in kinds.items():
        setattr(module, name, type(name, bases, {"__module__": "numpy", "__slots__": ()}))
    for name in ("integer", "floating"):
        setattr(module, name, type(name, (module.number,), {"__module__": "numpy", "__slots__": ()}))
    monkeypatch.setitem(sys.modules, "numpy", module)
    return module


def test_numpy_scalars_are_what_they_hold(registry: Registry, numpy: Any) -> None:
    name, codec, payload = encode_call(typed, (numpy.integer(7), numpy.floating(0.5)))
    assert codec == Codec.MSGPACK
    _, args, _ = decode_call(name, codec, payload, registry.resolve)
    assert same(tuple(args), (7, 0.5))
    _, codec, payload = encode_call(half_typed, (numpy.integer(7),))
    args, _ = decode_args(describe(half_typed), codec, payload)
    assert same(tuple(args), (7,))
    with pytest.raises(ArgTypeError):
        encode_call(typed, (numpy.floating(1.0),))
    with pytest.raises(ArgTypeError):
        encode_call(typed, (numpy.bool_(True),))
    assert encode_result(numpy.integer(7), describe(half_typed))[1] == pickle.dumps(7, 5)


def odd_annotations(a: callable = None, b: Nowhere = None, c: 5 = None, d: typing.Callable[[int], int] = max) -> Nowhere:  # noqa
    return a


def test_annotations_that_mean_nothing_are_no_obstacle() -> None:
    described = Description(odd_annotations, registered=True)
    described.validate_args((1, 2, 3), {"d": min})
    assert not described.msgpack
    assert there_and_back(odd_annotations, 1, 2) == ((1, 2), {})


# ---- callables that travel by value ---------------------------------------------------------------------------------


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n

    def add(self, x: int) -> int:
        return x + self.n


def make_counter(start: int) -> Any:
    def count(n: int) -> int:
        return start if n == 0 else 1 + count(n - 1)

    return count


@pytest.mark.parametrize(
    ("fn", "args", "result"),
    [
        (lambda x: x + 1, (1,), 2),
        (make_counter(10), (5,), 15),
        (functools.partial(plain, 4), (), 4),
        (functools.partial(lambda a, b: a - b, b=1), (4,), 3),
        (Adder(2), (3,), 5),
        (Adder(2).add, (3,), 5),
        (math.sqrt, (9,), 3.0),
        (str.upper, ("a",), "A"),
        (operator.itemgetter(1), ([1, 2],), 2),
        (Point, (1,), Point(1)),
        (len, ([1],), 1),
        (max, (1, 2), 2),
    ],
)
def test_all_that_can_be_called_can_be_sent(fn: Any, args: Any, result: Any) -> None:
    name, codec, payload = encode_call(fn, args)
    found, got, named = decode_call(name, codec, payload, Registry().resolve)
    assert found(*got, **named) == result


class Guarded:
    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.changed = threading.Condition(self.lock)


@pytest.mark.parametrize("make", [threading.RLock, threading.Lock])
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_lock_that_is_sent_along_can_be_taken(is_taken: bool, make: typing.Callable[[], Any]) -> None:
    """Also if somebody has it in the process that it comes from."""
    mine = Guarded(make())
    if is_taken:
        taker = threading.Thread(target=mine.lock.acquire)
        taker.start()
        taker.join()
    name, codec, payload = encode_call(plain, (mine, mine.lock))
    _, (there, lock), _ = decode_call(name, codec, payload, Registry().resolve)
    assert there.lock is lock, "what was one lock is one lock"
    assert lock.acquire(blocking=False)
    there.changed.notify_all()  # it is this lock's


def test_a_lambda_among_the_arguments_is_sent_too() -> None:
    name, codec, payload = encode_call(plain, (lambda: 5,))
    found, (inner,), _ = decode_call(name, codec, payload, Registry().resolve)
    assert (codec, inner()) == (Codec.CALL, 5)
    assert found is plain


@pytest.mark.parametrize("wrong", [5, None, "print"])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidHandler, match="cannot be called"):
        encode_call(wrong)


async def asynchronous() -> None: ...


def generating() -> Any:
    yield 1


async def generating_later() -> Any:
    yield 1


@pytest.mark.parametrize("wrong", [asynchronous, generating, generating_later])
def test_a_function_that_only_begins_something_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidHandler):
        encode_call(wrong)


def test_a_script_without_a_file_sends_its_functions_and_classes_by_value() -> None:
    """As in an interactive session: nothing of `__main__` can be imported elsewhere."""
    script = textwrap.dedent("""
        import sys, pickle
        from taskpool.wire.codec import encode_call
        factor = 3
        class Box:
            def __init__(self, v): self.v = v
        def helper(x): return x * factor
        def f(box): return Box(helper(box.v))
        sys.stdout.buffer.write(pickle.dumps(encode_call(f, (Box(2),))))
    """)
    sent = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    name, codec, payload = pickle.loads(sent)
    assert (name, codec) == ("__main__:f", Codec.CALL)
    found, args, _ = decode_call(name, codec, payload, Registry().resolve)
    assert found(*args).v == 6


# ---- errors that name the place -------------------------------------------------------------------------------------


def test_what_cannot_be_pickled_is_named_with_its_place() -> None:
    generator = (i for i in range(3))
    with pytest.raises(InvalidPayload, match=r"argument 'b' of test_codec:plain cannot be sent: a generator at \['x'\]\[1\]"):
        encode_call(plain, (1,), {"b": {"x": [0, generator]}})
    with pytest.raises(InvalidPayload, match=r"the result cannot be sent: a generator at \[0\]"):
        encode_result([generator])
    holder = Adder(1)
    holder.inner = {"deep": generator}  # type: ignore[attr-defined]
    with pytest.raises(InvalidPayload, match=r"a generator at \.inner\['deep'\]"):
        encode_result(holder)


def test_limits_are_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "PAYLOAD_BYTES_MAX", 1 << 20)
    with pytest.raises(InvalidPayload, match=r"1\.1 MiB, the limit is 1 MiB"):
        encode_call(plain, (bytes(1_200_000),))
    with pytest.raises(InvalidPayload, match=r"the result, a bytes, takes 1\.1 MiB"):
        encode_result(bytes(1_200_000), limit=1 << 20)


def test_too_deep_a_value_is_refused_and_nothing_breaks() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for refused in (lambda: encode_call(plain, (deep,)), lambda: encode_result(deep)):
        with pytest.raises(InvalidPayload, match="deep"):
            refused()


# ---- results --------------------------------------------------------------------------------------------------------


def returns_points() -> list[Point]: ...


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        ([Point(1)], Codec.MSGPACK),
        ((Point(1),), Codec.PICKLE),
        ([Point(1.5)], Codec.PICKLE),
        (5, Codec.PICKLE),
        (math.nan, Codec.PICKLE),
    ],
)
def test_a_result_is_what_was_returned_whatever_was_annotated(value: Any, codec: Codec) -> None:
    described = Description(returns_points, registered=True)
    used, data = encode_result(value, described)
    assert used == codec
    assert same(decode_result(used, data, described), value)


def test_a_result_by_value_comes_back() -> None:
    used, data = encode_result(lambda x: x + 1)
    assert decode_result(used, data)(1) == 2


def test_a_result_that_is_no_pickle_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode_result(Codec.PICKLE, b"garbage")
    with pytest.raises(DecodeError):
        decode_result(Codec.MSGPACK, b"\xc1")


# ---- descriptions ---------------------------------------------------------------------------------------------------


def test_a_description_says_what_is_known() -> None:
    found = Description(controlled)
    assert (found.wants_controller, found.arg_types, found.has_result, found.result_type) == (True, (int,), True, int)
    assert Description(controlled_by_name).wants_controller
    assert not Description(nothing).has_result
    assert Description(typed).msgpack
    assert not Description(half_typed).msgpack
    assert not Description(starred).msgpack
    assert Description(len).name == "builtins:len"
    assert CallEncoder(typed).name == "test_codec:typed"
    assert describe(typed).call((1,), {}) == [1]


def test_names_lead_back_to_what_they_name() -> None:
    for thing in (typed, Adder.add, str.upper, Point):
        assert look_up(canonical_name(thing)) is thing
    for wrong in ("typed", "test_codec:nowhere", "no.such.module:f", "test_codec:make.<locals>.f", ":", "a:"):
        with pytest.raises(LookupError):
            look_up(wrong)


@pytest.mark.parametrize(
    ("value", "annotation", "place"),
    [
        (1, int, None), ("a", int, ""), ([1, "a"], list[int], "[1]"), ({"k": [1.5]}, dict[str, list[int]], "['k'][0]"),
        (None, int | None, None), ("a", int | None, ""), ((1, "a"), tuple[int, int], "[1]"), ((1,), tuple[int, int], ""),
        ([1], tuple[int, ...], ""), ((1,), list[int], ""), (1, float, None), (True, float, ""), (1, complex, None),
        (1, "anything", None), (Adder(1), typing.Callable[[int], int], None), (1, typing.Annotated[str, "doc"], ""),
        (1, typing.NewType("Id", int), None), ("x", Literal["x", "y"], None), ("z", Literal["x", "y"], ""),
        ([], typing.Sequence[int], None),
    ],
)  # fmt: skip
def test_misfits_are_placed(value: Any, annotation: Any, place: str | None) -> None:
    assert misfit(value, annotation) == place
