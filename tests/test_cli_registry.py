"""The verbs `handlers` and `replies`, and `submit` by short and by wrong names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from taskpool import Pool
from taskpool.cli.main import main


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    path = tmp_path_factory.mktemp("cli-registry") / "x.db"
    with Pool(path, workers=1, durability="process", preload=["registry_handlers"]) as pool:
        yield pool


@pytest.fixture
def run(pool: Pool, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["-C", pool.store, *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_handlers_are_shown(run: Any) -> None:
    code, out, _ = run("handlers")
    assert code == 0
    assert "registry_handlers:total" in out
    assert "total(order: Order, price: float)" in out
    _, out, _ = run("handlers", "--json")
    items = {item["name"]: item for item in json.loads(out)["items"]}
    assert items["mail/welcome"]["queue"] == "mail"
    assert items["registry_handlers:total"]["aliases"] == ["old_total"]


def test_a_wrong_name_is_refused_with_the_nearest(run: Any, pool: Pool) -> None:
    before = pool.count()
    code, _, err = run("submit", "totel", "1")
    assert (code, "registry_handlers:total" in err) == (3, True)
    assert pool.count() == before


def test_a_response_is_shown_and_taken_out(run: Any, pool: Pool) -> None:
    assert run("replies") == (0, "", "no mailbox holds anything\n")
    assert run("submit", "welcome", "ann", "--reply-to", "box", "-q")[0] == 3, "a type is no short form"
    assert run("submit", "mail/welcome", "ann", "--reply-to", "box", "--wait")[0] == 0
    assert run("submit", "fail", "x", "--reply-to", "box", "--wait")[0] == 1
    assert json.loads(run("replies", "--json")[1])["mailboxes"] == {"box": 2}
    _, out, _ = run("replies", "box", "--json")
    good, bad = json.loads(out)["items"]
    assert (good["status"], good["value"], good["name"]) == ("succeeded", "welcome, ann", "mail/welcome")
    assert (bad["status"], bad["error"]["kind"], bad["value"]) == ("failed", "handler", None)
    assert "welcome, ann" in run("replies", "box", "--limit", "1", "--ack")[1]
    assert [item["seq"] for item in json.loads(run("replies", "box", "--json")[1])["items"]] == [bad["seq"]]
    assert run("replies", "--ack")[0] == 2
    assert run("replies", "box", "--after", str(bad["seq"])) == (0, "", "nothing lies in box\n")
    run("replies", "box", "--ack")


def test_tasks_are_found_by_their_owner_source_and_reference(run: Any, pool: Pool) -> None:
    mine = pool.options(owner_type="user", owner_id="7", source="web", reference_id="order-1").submit("trace")
    pool.options(owner_type="team", owner_id="7").submit("trace").result()
    mine.result()

    def ids(*words: str) -> list[int]:
        return [item["id"] for item in json.loads(run("ls", "--json", *words)[1])["items"]]

    assert ids("--owner", "user:7") == [mine.id]
    assert ids("--owner", "7") == [mine.id + 1, mine.id]
    (found,) = json.loads(run("ls", "--json", "--owner", "user:7")[1])["items"]
    assert (found["owner_type"], found["owner_id"], found["source"], found["reference_id"]) == ("user", "7", "web", "order-1")
    assert (found["failed_attempts"], found["next_attempt_at"], found["reply_to"]) == (0, None, None)
    shown = run("ls", "--columns", "id,owner,source,reference", str(mine.id))[1].splitlines()[1].split()
    assert shown == [str(mine.id), "user:7", "web", "order-1"]
    assert "order-1" in run("show", str(mine.id))[1]
    assert ids("--source", "web") == ids("--reference", "order-1") == [mine.id]
