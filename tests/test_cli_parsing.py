"""What people type, and what a terminal may be shown: durations, moments, sizes, TASKS, commands, escapes, JSON."""

from __future__ import annotations

import json
import math
import pickle
import uuid

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpool.cli import quantity
from taskpool.cli.command_line import fill
from taskpool.cli.escape import many_lines, one_line
from taskpool.cli.labels import label
from taskpool.cli.output import portable, to_json
from taskpool.cli.select import IDS_MAX, parse_tasks, select
from taskpool.cli.values import is_json, shown, to_bytes
from taskpool.model import Codec, Options, Status, Task

NOW = 1_700_000_000_000_000

# ---- durations, moments, sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("3d", 259200),
        ("1w", 604800),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("7", 7),
        ("0.5", 0.5),
        ("0", 0),
        ("10 min", 600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert quantity.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5x", "5m5", "1h-3m", "nan", "inf", "1e3s", "5 m x", "9999999w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|hundred years"):
        quantity.parse_duration(text)


@given(st.floats(min_value=0, max_value=1e9))
def test_a_shown_duration_is_short(seconds: float) -> None:
    assert 2 <= len(quantity.show_duration(seconds)) <= 10


def test_shown_durations() -> None:
    shown_as = {0.0: "0ms", 0.25: "250ms", 4.2: "4.2s", 59.97: "1m00s", 200: "3m20s", 7500: "2h05m", 273600: "3d04h"}
    assert {seconds: quantity.show_duration(seconds) for seconds in shown_as} == shown_as
    assert quantity.show_duration(None) == ""


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("in 10m", NOW + 600_000_000),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T23:13:20+01:00", NOW),
        ("2023-11-14T22:13:20.5Z", NOW + 500_000),
    ],
)
def test_moments(text: str, at: int) -> None:
    assert quantity.parse_moment(text, NOW) == at


def test_a_deadline_is_a_duration_from_now_or_a_moment_and_since_is_one_ago() -> None:
    assert quantity.parse_deadline("5m", NOW) == NOW + 300_000_000
    assert quantity.parse_deadline("2023-11-14T22:13:20Z", 0) == NOW
    assert quantity.parse_since("2h", NOW) == NOW - 7_200_000_000
    assert quantity.parse_since("2023-11-14T22:13:20Z", 0) == NOW


@pytest.mark.parametrize("text", ["tomorrow", "in a while", "12:61", ""])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|duration"):
        quantity.parse_moment(text, NOW)


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000))
def test_a_moment_shown_in_json_reads_back_exactly(at: int) -> None:
    text = quantity.rfc3339(at)
    assert text is not None
    assert quantity.parse_moment(text, 0) == at


def test_sizes() -> None:
    assert [quantity.parse_size(text) for text in ("0", "512", "1K", "2M", "2G", "2GiB", "1.5k", "3 GB")] == [
        0,
        512,
        1024,
        2 << 20,
        2 << 30,
        2 << 30,
        1536,
        3 << 30,
    ]
    assert [quantity.show_size(size) for size in (0, 1023, 1024, 3_500_000)] == ["0 B", "1023 B", "1.0 KiB", "3.3 MiB"]
    with pytest.raises(ValueError, match="size"):
        quantity.parse_size("2X")


# ---- TASKS -----------------------------------------------------------------------------------------------------------


def test_tasks_by_number_list_and_range() -> None:
    assert parse_tasks(("42",)).ids == (42,)
    assert parse_tasks(("1,3,5-8",)).ids == (1, 3, 5, 6, 7, 8)
    assert parse_tasks(("5-8", "6", "1")).ids == (5, 6, 7, 8, 1)


def test_a_task_named_singly_must_exist_and_a_range_may_have_holes() -> None:
    assert parse_tasks(("1,5-8",)).required == {1}


def test_the_words_last_and_all_and_a_uuid() -> None:
    some = uuid.uuid4()
    assert parse_tasks(("last",)).last
    assert parse_tasks(("all",)).every
    assert parse_tasks((str(some), some.hex)).uids == (some.bytes,)
    assert parse_tasks(()).empty


@pytest.mark.parametrize(
    "word", ["x", "1-", "-1", "1-2-3", "8-5", "0x10", "1.5", "²", "9" * 30, f"1-{IDS_MAX + 1}", "all,3", "last,all", "1 2"]
)
def test_what_names_no_tasks_is_a_usage_error(word: str) -> None:
    with pytest.raises(click.UsageError):
        parse_tasks((word,))


@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1))
def test_any_list_of_ids_reads_back(ids: list[int]) -> None:
    assert parse_tasks((",".join(map(str, ids)),)).ids == tuple(dict.fromkeys(ids))


def test_filters_join_the_words() -> None:
    selection = select(("3-4",), status=("failed",), tag=("a",), error="boom")
    assert selection.ids == (3, 4)
    assert (selection.filter.statuses, selection.filter.tags, selection.filter.error_contains) == (("failed",), ("a",), "boom")
    with pytest.raises(click.UsageError):
        select((), since="yesterday-ish")


# ---- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "filled"),
    [
        (["gzip", "-k", "{}"], ["gzip", "-k", "/d/a b.tar.gz"]),
        (["gzip"], "gzip '/d/a b.tar.gz'"),
        (["mv", "{}", "{.}.old"], ["mv", "/d/a b.tar.gz", "/d/a b.tar.old"]),
        (["echo", "{/}", "{//}", "{/.}", "{#}"], ["echo", "a b.tar.gz", "/d", "a b.tar", "7"]),
        (["gzip -c {} > {/.}"], "gzip -c '/d/a b.tar.gz' > 'a b.tar'"),
        (["wc", "-l"], ["wc", "-l", "/d/a b.tar.gz"]),
        (["wc -l"], "wc -l '/d/a b.tar.gz'"),
        (["echo ${HOME} {}"], "echo ${HOME} '/d/a b.tar.gz'"),
        (["awk", "{print $1}", "{}"], ["awk", "{print $1}", "/d/a b.tar.gz"]),
    ],
)
def test_placeholders(words: list[str], filled: str | list[str]) -> None:
    assert fill(words, ["/d/a b.tar.gz"], {}, 7) == filled


def test_columns_are_placeholders_by_number_and_name() -> None:
    assert fill(["convert", "{1}", "-resize", "{size}"], ["x.png", "10"], {"file": "x.png", "size": "10"}, 1) == [
        "convert",
        "x.png",
        "-resize",
        "10",
    ]
    with pytest.raises(KeyError):
        fill(["echo", "{3}"], ["a"], {}, 1)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_an_input_can_never_break_out_of_a_shell_line(value: str) -> None:
    import shlex

    line = fill(["printf %s {}"], [value], {}, 1)
    assert isinstance(line, str)
    assert shlex.split(line) == ["printf", "%s", value]


# ---- terminals and JSON --------------------------------------------------------------------------------------------------

NASTY = "a\x1b[31mred\x07\x9b2J\u202egpj\u2066\u2028end\x7f\r\n\ud800"


def test_controls_of_strangers_are_shown_not_obeyed() -> None:
    assert one_line(NASTY) == r"a\x1b[31mred\x07\x9b2J\u202egpj\u2066\u2028end\x7f ⏎ \ud800"
    assert many_lines("x\ty\r\nz\rw\x1b]0;t\x07") == "x\ty\nz\nw\\x1b]0;t\\x07"


@given(st.text())
def test_no_control_character_survives(text: str) -> None:
    for kept in (one_line(text), many_lines(text)):
        assert not any((c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029\u202e" for c in kept)
    assert "\n" not in one_line(text)


def test_one_line_is_cut_to_its_limit() -> None:
    assert one_line("x" * 100, 10) == "x" * 9 + "…"
    assert len(one_line("\x1b" * 1_000_000, 50)) == 50


def test_json_is_ascii_and_big_integers_come_as_text_too() -> None:
    document = {"id": 2**53 + 1, "small": 2**53, "list": [1, 2**60], "deep": {"n": -(2**63)}, "text": "\x9b\u202e"}
    text = to_json(document)
    assert text.isascii()
    read = json.loads(text)
    assert read["id_str"] == str(2**53 + 1)
    assert "small_str" not in read
    assert read["list_str"] == [1, str(2**60)]
    assert read["deep"]["n_str"] == str(-(2**63))
    assert read["text"] == "\x9b\u202e"


def test_what_json_lacks_becomes_null() -> None:
    assert portable({"a": math.nan, "b": [math.inf, 1.5]}) == {"a": None, "b": [None, 1.5]}


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists)
)
def test_a_value_that_counts_as_json_comes_back_as_it_was(value: object) -> None:
    assert is_json(value)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("value", [(1,), {1: 2}, {1}, math.nan, b"x", [(1,)]])
def test_what_json_would_change_does_not_count(value: object) -> None:
    assert not is_json(value)
    assert shown(value).json is None


def test_a_file_holds_bytes_and_text_as_they_are() -> None:
    assert to_bytes(b"\0\xff") == (b"\0\xff", "bytes")
    assert to_bytes("é") == ("é".encode(), "text")
    assert to_bytes([1, 2]) == (b"[1, 2]\n", "JSON")
    assert to_bytes((1, 2))[1] == "pickle"


def test_a_value_whose_repr_raises_is_described() -> None:
    class Sulky:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Sulky" in shown(Sulky()).repr


# ---- labels ----------------------------------------------------------------------------------------------------------------


class Tripwire:
    """Tells when somebody rebuilds it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a payload was run",))


def _task(codec: Codec, payload: bytes, label: str = "") -> Task:
    return Task(
        id=1, uid="u", name="m:f", queue="q", priority=0, status=Status.QUEUED, version=1, codec=codec, payload=payload,
        options=Options(label=label),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "payload", "shown_as"),
    [
        (Codec.MSGPACK, msgspec.msgpack.encode(([7, "x"], {"k": 1.5})), "m:f(7, 'x', k=1.5)"),
        (Codec.JSON, b'{"args": [7], "kwargs": {}}', "m:f(7)"),
        (Codec.PICKLE, pickle.dumps(((7, [1, 2]), {"k": None})), "m:f(7, [1, 2], k=None)"),
        (Codec.PICKLE, b"", "m:f()"),
        (Codec.PICKLE, pickle.dumps(((Tripwire(),), {})), "m:f()"),
        (Codec.CALL, pickle.dumps((print, (Tripwire(),), {})), "m:f()"),
        (Codec.PICKLE, b"\x80\x05garbage", "m:f()"),
        (Codec.PICKLE, pickle.dumps((("x" * 5000,), {})), "m:f()"),
        (Codec.PICKLE, pickle.dumps((("x" * 1000,), {})), "m:f('xxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx')"),
    ],
)
def test_a_call_is_shown_by_its_plain_arguments_and_no_payload_is_run(codec: Codec, payload: bytes, shown_as: str) -> None:
    assert label(_task(codec, payload)) == shown_as


def test_what_the_caller_said_wins() -> None:
    assert label(_task(Codec.PICKLE, pickle.dumps(((7,), {})), "seven")) == "m:f(seven)"
