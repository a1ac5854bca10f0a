"""Handlers by name: one function per name, found under aliases, told apart from its twin, suggested when misspelt."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from taskpool import task
from taskpool.core.registry import Registry
from taskpool.doors.options import NOTHING_SAID
from taskpool.errors import ArgTypeError, DuplicateHandler, HandlerNotFound, InvalidHandler
from taskpool.wire import description


def price(item: int) -> float:
    return 1.0


def prize(item: int) -> float:
    return 2.0


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_a_handler_has_its_canonical_name_its_own_name_and_aliases(registry: Registry) -> None:
    handler = registry.register(price, aliases=["old_price", "older"])
    assert handler.name == "test_registry:price"
    assert registry.get("old_price") is handler
    assert registry.names() == ("test_registry:price",)
    renamed = registry.register(prize, name="shop.prize")
    assert (renamed.description.name, registry.resolve("shop.prize").fn) == ("shop.prize", prize)


def test_a_registry_of_ones_own_renames_no_handler_for_the_workers(registry: Registry) -> None:
    registry.register(price)
    known = description.describe(price)
    there = Registry()
    assert there.register(price, name="there", aliases="elsewhere").description.name == "there"
    assert there.find("elsewhere") is there.get("there")
    assert description.describe(price) is known


@pytest.mark.parametrize("aliases", [["a\n"], [""], [7], "x" * 201])
def test_aliases_are_names(registry: Registry, aliases: Any) -> None:
    """A single text is one of them."""
    with pytest.raises(InvalidHandler, match="is no name"):
        registry.register(price, aliases=aliases)
    with pytest.raises(InvalidHandler, match="is no name"):
        task(aliases=aliases, registry=registry)(prize)


def test_what_decorators_said_is_told_by_name_and_alias(registry: Registry) -> None:
    registry.register(price, options=NOTHING_SAID.plus({"queue": "cpu"}), aliases=["old_price"])
    registry.register(prize, options=NOTHING_SAID)
    assert {name: told.queue for name, told in registry.said().items()} == {"test_registry:price": "cpu", "old_price": "cpu"}


def test_a_name_belongs_to_one_function(registry: Registry) -> None:
    registry.register(price, name="p")
    with pytest.raises(DuplicateHandler, match="'p' is test_registry:price already"):
        registry.register(prize, name="p")
    with pytest.raises(DuplicateHandler):
        registry.register(prize, aliases=["p"])
    assert registry.names() == ("p",), "a refused registration leaves nothing behind"


def twin(module: str) -> Any:
    """Return a function as a second import of a module makes it."""
    made = types.FunctionType(price.__code__, price.__globals__, "price")
    made.__module__ = module
    made.__qualname__ = "price"
    return made


def test_the_same_function_may_be_registered_again(registry: Registry) -> None:
    registry.register(price, name="p")
    newer = twin("test_registry")
    assert registry.register(newer, name="p").fn is newer
    assert registry.resolve("p").fn is newer, "after a reload the newest counts"


def test_a_script_imported_twice_is_one_script(registry: Registry) -> None:
    registry.register(twin("__main__"), name="p")
    registry.register(twin("__mp_main__"), name="p")


def test_two_lambdas_are_two_functions(registry: Registry) -> None:
    registry.register(lambda: 1, name="l")
    with pytest.raises(DuplicateHandler):
        registry.register(
            lambda: 2,
            name="l",
        )


@pytest.mark.parametrize("name", ["", " x", "x\n", "a" * 201, "\x1b[31m"])
def test_names_are_short_and_printable(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidHandler):
        registry.register(price, name=name)


def test_what_cannot_be_called_cannot_be_registered(registry: Registry) -> None:
    with pytest.raises(InvalidHandler):
        registry.register(5)  # type: ignore[arg-type]


def test_a_wrapper_made_by_a_decorator_is_looked_through(registry: Registry) -> None:
    class Wrapper:
        def __init__(self) -> None:
            self.__taskpool__ = "options"
            self.__wrapped__ = price

        def __call__(self, item: int) -> float:
            return price(item)

    assert registry.register(Wrapper()).fn is price


def test_an_unknown_name_suggests_the_nearest(registry: Registry) -> None:
    with pytest.raises(HandlerNotFound, match="no handler is registered"):
        registry.get("test_registry:price")
    registry.register(price)
    registry.register(prize, name="other.module:price")
    with pytest.raises(HandlerNotFound, match="did you mean 'test_registry:price'"):
        registry.get("test_registry:prise")
    with pytest.raises(HandlerNotFound, match=r"'other\.module:price'"):
        registry.get("wrong:price")
    assert registry.find("nothing") is None


def test_a_plain_function_is_found_by_its_name(registry: Registry) -> None:
    found = registry.resolve("test_registry:prize")
    assert found.fn is prize
    assert registry.resolve("test_registry:prize") is found


def test_importing_a_module_may_register_what_is_looked_for(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_handlers.py").write_text("def f(): return 5\nregistry.register(f, name='late_handlers:g')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import builtins

    monkeypatch.setattr(builtins, "registry", registry, raising=False)
    with pytest.raises(HandlerNotFound, match="no attribute 'h'"):
        Registry().resolve("late_handlers:h")
    assert registry.resolve("late_handlers:g").fn() == 5


@pytest.mark.parametrize(
    ("source", "words"),
    [("import nowhere_to_be_found", "nowhere_to_be_found"), ("1/0", "ZeroDivisionError"), ("f = 5", "is a int, no function")],
)
def test_a_module_that_cannot_serve_says_why(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    (tmp_path / "broken_handlers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_handlers", raising=False)
    with pytest.raises(HandlerNotFound, match=words):
        registry.resolve("broken_handlers:f")
    monkeypatch.delitem(sys.modules, "broken_handlers", raising=False)


@pytest.mark.parametrize("name", ["", "os", "os:", ":system", "os:system:x", "../x:y", "a b:c", "os:<lambda>"])
def test_what_is_no_name_is_not_found(registry: Registry, name: str) -> None:
    with pytest.raises(HandlerNotFound):
        registry.resolve(name)


def test_arguments_are_checked_by_name(registry: Registry) -> None:
    registry.register(price, name="p")
    registry.validate_args("p", (1,), {})
    with pytest.raises(ArgTypeError):
        registry.validate_args("p", ("1",), {})
    assert registry.describe(price).arg_types == (int,)


def test_functions_of_a_script_are_named_after_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    main.price = price  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert (description.main_stem(), description.main_is_importable()) == ("__main__", False)
    (tmp_path / "package").mkdir()
    for path, stem, importable in (
        (tmp_path / "report.py", "report", True),
        (tmp_path / "report", "report", True),
        (tmp_path / "package" / "__main__.py", "package", False),
        ("<stdin>", "__main__", False),
    ):
        if path != "<stdin>":
            Path(path).touch()
        main.__file__ = str(path)
        assert (description.main_stem(), description.main_is_importable()) == (stem, importable)
    main.__file__ = "/x/report.py"
    assert description.canonical_name(twin("__main__")) == "report:price"
    assert description.look_up("report:price") is price
    with pytest.raises(LookupError, match="__main__"):
        description.look_up("report:guarded")
    broken = types.ModuleType("report")
    broken.__getattr__ = lambda name: 1 / 0  # type: ignore[method-assign]  # as a script does that is imported a second time
    monkeypatch.setitem(sys.modules, "report", broken)
    with pytest.raises(LookupError, match="__main__"):
        description.look_up("report:guarded")
    description.set_main_stem("other")
    try:
        assert description.canonical_name(twin("__mp_main__")) == "other:price"
    finally:
        description.set_main_stem("")
