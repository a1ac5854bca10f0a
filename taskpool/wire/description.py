"""What is known of a function before it runs: its name, what it takes, what it gives back.

A name is `pkg.mod:qualname`; for functions of `__main__` the module is the script's stem, so that two scripts on one store do not
meet and a worker (where the script is imported as `__mp_main__`) finds them.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from taskpool.errors import ArgTypeError, InvalidHandler
from taskpool.model import Controller
from taskpool.wire.annotations import Check, exact, misfit, plain_scalar, spelled
from taskpool.wire.arity import Arity, Slot
from taskpool.wire.unpicklable import FUTURES_STAY, is_future

MAIN_NAMES = ("__main__", "__mp_main__")
NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})

_main_stem = ""


class Parameter(NamedTuple):
    """One parameter as a caller sees it (the controller is none). annotation: Any where nothing is known."""

    name: str
    annotation: Any
    required: bool
    default: Any
    positional: bool
    keyword: bool


class Description:
    """A function's name and signature, and the tests made from it.

    parameters: those a caller fills, None where the signature is unknown (some builtins); arg_types: their annotations;
    has_result: False only if the function says it returns None; msgpack: whether all parameters and the result are annotated with
    types that msgspec round-trips; registered: whether it is a handler (its annotations are promises, so arguments are checked).
    """

    arg_types: tuple[Any, ...]
    has_result: bool
    result_type: Any

    def __init__(self, fn: Callable[..., Any], name: str = "", registered: bool = False) -> None:
        self.fn = fn
        self.name = name or canonical_name(fn)
        self.registered = registered
        hints = _hints(fn)
        self.result_type = hints.get("return", Any)
        self.has_result = self.result_type not in (None, type(None), typing.NoReturn, typing.Never)
        self.wants_controller = False
        self.open_ended = False  # *args or **kwargs
        self._kinds: frozenset[inspect._ParameterKind] = frozenset()
        self.parameters = self._read_parameters(hints)
        known = self.parameters or ()
        self.arg_types = tuple(p.annotation for p in known)
        self._positional = tuple(p for p in known if p.positional)
        self._required = sum(p.required for p in self._positional)
        self._needs_names = any(p.required for p in known if not p.positional)
        checks = [exact(t) for t in self.arg_types]
        self.exact_result: Check | None = exact(self.result_type) if "return" in hints else None
        self.msgpack = self.parameters is not None and not self.open_ended and None not in checks and self.exact_result is not None
        self._checks = typing.cast("list[Check]", checks)
        self._by_name = {p.name: check for p, check in zip(known, self._checks, strict=True)}

    def _read_parameters(self, hints: Mapping[str, Any]) -> tuple[Parameter, ...] | None:
        try:
            raw = list(inspect.signature(self.fn).parameters.values())
        except (ValueError, TypeError):
            return None
        self._kinds = frozenset(p.kind for p in raw)
        if raw and _is_controller(hints.get(raw[0].name, raw[0].annotation)):
            self.wants_controller = True
            raw = raw[1:]
        found = []
        for p in raw:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                self.open_ended = True
                continue
            annotation = hints.get(p.name, Any)
            if p.default is None:
                annotation = _or_none(annotation)
            positional, keyword = p.kind is not p.KEYWORD_ONLY, p.kind is not p.POSITIONAL_ONLY
            found.append(Parameter(p.name, annotation, p.default is p.empty, p.default, positional, keyword))
        return tuple(found)

    # ---- checks --------------------------------------------------------------------------------------------------------

    def check_count(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgCountError unless the function can be called with so many arguments of these names."""
        if self.parameters is None:
            return
        given = len(args)
        if not kwargs and self._required <= given <= len(self._positional) and not self._needs_names:
            return
        assert self.arity is not None
        self.arity.check(given, kwargs)

    def validate_args(self, args: Sequence[Any], kwargs: Mapping[str, Any] = NO_KEYWORDS) -> None:
        """Raise ArgCountError or ArgTypeError, naming the argument, unless the function can be called so."""
        self.check_count(args, kwargs)
        for p, value in zip(self._positional, args, strict=False):
            self._check_type(p, value)
        for p in self.parameters or ():
            if p.keyword and p.name in kwargs:
                self._check_type(p, kwargs[p.name])

    def _check_type(self, p: Parameter, value: Any) -> None:
        place = misfit(value, p.annotation)
        if place is None:
            return
        shown = _shown(value)
        where = f" ({place} of it does not fit)" if place else ""
        words = f"must be {spelled(p.annotation)}, but is {type(value).__qualname__}: {shown}{where}"
        hint = f"it {FUTURES_STAY}" if is_future(value) else ""
        raise ArgTypeError(f"argument {p.name!r} of {self.name} {words}", hint=hint)

    def is_exact(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether msgpack gives these arguments back as they are. Only for descriptions with msgpack, after check_count."""
        for check, value in zip(self._checks, args, strict=False):
            if not check(value):
                return False
        return not kwargs or all(self._by_name[name](value) for name, value in kwargs.items())

    def plain(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with numpy's scalars as the bool, int or float that is annotated."""
        places = [p.annotation for p in self._positional] + [Any] * (len(args) - len(self._positional))
        names = {p.name: p.annotation for p in self.parameters or ()}
        return (
            tuple(plain_scalar(value, annotation) for value, annotation in zip(args, places, strict=False)),
            {name: plain_scalar(value, names.get(name, Any)) for name, value in kwargs.items()},
        )

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any] = NO_KEYWORDS) -> Any:
        """Check the arguments, then call the function in this process (without a controller)."""
        self.validate_args(args, kwargs)
        return self.fn(*args, **kwargs)

    @functools.cached_property
    def arity(self) -> Arity | None:
        """Return how many arguments it takes, and of which names; None where the signature is unknown."""
        if self.parameters is None:
            return None
        slots = tuple(Slot(p.name, p.required, p.positional, p.keyword) for p in self.parameters)
        more, more_named = (kind in self._kinds for kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD))
        return Arity(self.name, slots, more, more_named, self.usage)

    # ---- decoding ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def positional_struct(self) -> type[msgspec.Struct]:
        """Return an array-like Struct of the positional parameters; absent trailing ones are UNSET."""
        fields = [(f"a{i}", p.annotation, msgspec.UNSET) for i, p in enumerate(self._positional)]
        return msgspec.defstruct("Arguments", fields, array_like=True, forbid_unknown_fields=True)

    @functools.cached_property
    def keyword_struct(self) -> type[msgspec.Struct]:
        """Return a Struct of the parameters that may be given by name; absent ones are UNSET."""
        known = [p for p in self.parameters or () if p.keyword]
        fields = [(f"k{i}", p.annotation, msgspec.UNSET) for i, p in enumerate(known)]
        return msgspec.defstruct(
            "Keywords",
            fields,
            rename={f"k{i}": p.name for i, p in enumerate(known)},
            omit_defaults=True,
            forbid_unknown_fields=True,
        )

    @functools.cached_property
    def no_keywords(self) -> msgspec.Struct:
        """Return what keyword_struct is when nothing was given by name."""
        return self.keyword_struct()

    @functools.cached_property
    def call_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        """Return the decoder of [args, kwargs]."""
        return msgspec.msgpack.Decoder(tuple[self.positional_struct, self.keyword_struct])  # type: ignore[name-defined]

    @functools.cached_property
    def result_decoder(self) -> msgspec.msgpack.Decoder[Any]:
        """Return the decoder of a msgpack result."""
        return msgspec.msgpack.Decoder(self.result_type)

    # ---- words ---------------------------------------------------------------------------------------------------------

    @property
    def usage(self) -> str:
        """Return how the function is called, as people write it."""
        if self.parameters is None:
            return f"{self.name}(…)"
        words = [p.name + ("" if p.annotation is Any else f": {spelled(p.annotation)}") for p in self.parameters]
        by_place = [word for word, p in zip(words, self.parameters, strict=True) if not p.keyword]
        by_name = [word for word, p in zip(words, self.parameters, strict=True) if not p.positional]
        either = [word for word, p in zip(words, self.parameters, strict=True) if p.positional and p.keyword]
        parts = [*by_place, *["/"][: len(by_place)], *either, *["*"][: len(by_name)], *by_name, *["…"][: self.open_ended]]
        return f"it is called as {self.name.rpartition(':')[2]}({', '.join(parts)})"


_described: weakref.WeakKeyDictionary[types.FunctionType, Description] = weakref.WeakKeyDictionary()


def describe(fn: Callable[..., Any], *, name: str = "", registered: bool = False) -> Description:
    """Return what is known of a function; kept, so the second time is cheap. A given name or `registered` replaces what was kept.

    InvalidHandler if it is not callable.
    """
    fn = unwrapped(fn)
    if not isinstance(fn, types.FunctionType):
        if not callable(fn):
            raise InvalidHandler(f"{fn!r:.80} of type {type(fn).__qualname__} cannot be called")
        return Description(fn, name, registered)
    found = _described.get(fn)
    if found is None:
        _refuse_lazy(fn)
    if found is None or name or registered:
        found = _described[fn] = Description(fn, name, registered)
    return found


def _refuse_lazy(fn: types.FunctionType) -> None:
    """Raise InvalidHandler for a function that would only return something still to be run."""
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidHandler(f"{canonical_name(fn)} is an async function", hint="let a plain function call asyncio.run")
    if inspect.isgeneratorfunction(fn):
        raise InvalidHandler(f"{canonical_name(fn)} is a generator function, whose result cannot be sent", hint="return a list")


def unwrapped(fn: Any) -> Any:
    """Return the function inside of what `@task` made of it; any other object as it is."""
    return (
        fn.__wrapped__
        if not isinstance(fn, types.FunctionType) and hasattr(fn, "__taskpool__") and hasattr(fn, "__wrapped__")
        else fn
    )


# ---- names ----------------------------------------------------------------------------------------------------------


def canonical_name(fn: Any) -> str:
    """Return the stable name of a callable: `module:qualname`."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    module = getattr(fn, "__module__", None) or type(fn).__module__
    qualname = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return f"{main_stem() if module in MAIN_NAMES else module}:{qualname}"


def main_stem() -> str:
    """Return what stands for `__main__` in names: the script's file name without its end, or the package run by -m."""
    if _main_stem:
        return _main_stem
    path: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    if not path or path.startswith("<"):  # nobody's file: "<stdin>"
        return "__main__"
    stem = os.path.splitext(os.path.basename(path))[0]
    return os.path.basename(os.path.dirname(os.path.abspath(path))) if stem == "__main__" else stem


def set_main_stem(stem: str) -> None:
    """Let this process call its `__main__` so ("": by its own file), as the process whose tasks it runs does."""
    global _main_stem
    _main_stem = stem


def main_is_importable() -> bool:
    """Return whether workers can import this process's `__main__`: a script, or a module run by -m, but no session or package."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if not path or os.path.basename(path) == "__main__.py" or hasattr(main, "get_ipython"):
        return False
    return os.path.isfile(path)  # a script that is read from stdin calls its file "<stdin>"


def look_up(name: str) -> Any:
    """Return the object of that canonical name, importing its module if need be. LookupError, or whatever the import raises."""
    module_name, colon, path = name.partition(":")
    if not colon or not path or "<" in path:
        raise LookupError(f"{name!r} is no name of the form module:function")
    main = sys.modules.get("__main__")
    candidates: list[Callable[[], Any]] = [lambda: main] if module_name == main_stem() else []
    candidates.append(lambda: _import(module_name))
    problem = ""
    for candidate in candidates:
        try:
            found = candidate()
            for part in path.split("."):
                found = getattr(found, part)
            return found
        except (AttributeError, ModuleNotFoundError) as error:
            problem = problem or str(error)
        except Exception:
            if not problem:
                raise
            # The script once more, under its own name: what goes wrong in that says nothing of the function.
    if len(candidates) > 1:
        problem = f"the script has no {path} when it is imported; is that under `if __name__ == '__main__':`?"
    raise LookupError(problem)


def _import(module_name: str) -> Any:
    import importlib

    return importlib.import_module(module_name)


def is_importable(fn: Any) -> bool:
    """Return whether a worker finds this very function under its canonical name."""
    module = getattr(fn, "__module__", None) or type(fn).__module__
    if isinstance(fn, functools.partial) or (module in MAIN_NAMES and not main_is_importable()):
        return False
    try:
        return unwrapped(look_up(canonical_name(fn))) is unwrapped(fn)
    except Exception:
        return False


# ---- reading signatures ---------------------------------------------------------------------------------------------


def _hints(fn: Any) -> dict[str, Any]:
    """Return the annotations of a function, resolved where that is possible; what is not is left out."""
    target = fn.__func__ if isinstance(fn, types.MethodType) else fn
    if not isinstance(target, types.FunctionType):
        return {}
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # a forward reference that only a type checker can follow: resolve each alone
        found = {}
        for name, annotation in target.__annotations__.items():
            if isinstance(annotation, str):
                try:
                    annotation = eval(annotation, target.__globals__)
                except Exception:
                    continue
            found[name] = annotation
        return found


def _is_controller(annotation: Any) -> bool:
    return annotation is Controller or (isinstance(annotation, str) and annotation in ("Controller", "taskpool.Controller"))


def _or_none(annotation: Any) -> Any:
    """Return the annotation of a parameter whose default is None, whether or not it says so itself."""
    try:
        return typing.Optional[annotation]  # noqa: UP045  # the annotation is a value here
    except TypeError:  # such as `callback: callable = None`
        return Any


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return "(its repr fails)"
    return text if len(text) <= 80 else text[:77] + "…"
