"""Which handlers there are, as a supervisor knows them: names only, for it imports no code of the user's. Pure.

A caller may name a handler by its name, an old name (alias), its canonical name, its short form (what follows the colon, while that
means one handler only), or by queue and type (`queue/type`), once somebody has bound that. The task is stored under its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from taskpool.errors import DuplicateHandler, HandlerNotFound, InvalidTaskType
from taskpool.model import check_queue_name
from taskpool.wire.zygote import HandlerInfo

NEAREST_MAX = 3
LIKENESS_MIN = 0.5  # as difflib measures it


class Directory:
    """The handlers of one pool."""

    def __init__(self, infos: Iterable[HandlerInfo] = ()) -> None:
        self._routes: dict[str, HandlerInfo] = {}
        self.learn(infos)

    def learn(self, infos: Iterable[HandlerInfo]) -> None:
        """Take what modules have registered, instead of what they had; what was bound stays."""
        self._infos: dict[str, HandlerInfo] = {}
        self._modules: set[str] = set()
        for info in infos:
            for name in (info.name, *info.aliases, info.canonical):
                self._infos.setdefault(name, info)
            self._modules.add(info.canonical.partition(":")[0])

    def all(self) -> list[tuple[str, HandlerInfo]]:
        """Return (name, handler) by name, those bound to a queue and type under that."""
        named = {info.name: info for info in self._infos.values()} | self._routes
        return sorted(named.items())

    def find(self, name: str) -> HandlerInfo:
        """Return the handler that is meant. HandlerNotFound, with the nearest names.

        A function of a module that has registered nothing may well be a handler: its module is imported by the worker.
        """
        found = self._infos.get(name) or self._routes.get(name)
        if found is not None:
            return found
        module, colon, _ = name.partition(":")
        if name and not colon:
            same = {info.name: info for info in self._infos.values() if info.name.partition(":")[2] == name}
            if len(same) == 1:
                return next(iter(same.values()))
            if same:
                raise HandlerNotFound(f"{name!r} is {' and '.join(map(repr, sorted(same)))}", hint="say which")
        if not colon or module in self._modules:
            raise HandlerNotFound(f"no handler is called {name!r}", hint=nearest(name, {**self._infos, **self._routes}))
        return HandlerInfo(name, canonical=name)

    def bind(self, route: str, name: str) -> HandlerInfo:
        """Let a handler run the tasks of a queue and type as well. HandlerNotFound; DuplicateHandler if another one does."""
        handler = self.find(name)
        bound = self._infos.get(route) or self._routes.get(route)
        if bound is not None and bound.canonical != handler.canonical:
            raise DuplicateHandler(f"{route!r} is {bound.name} already", hint="another type, or another queue")
        self._routes[route] = handler
        return handler


def route(queue: str, type: str) -> str:
    """Return the name of the handler for tasks of one type in one queue. InvalidQueueName, InvalidTaskType."""
    check_queue_name(queue)
    words: Any = type
    if "/" in queue or not isinstance(words, str) or not words or "/" in words or words != words.strip() or not words.isprintable():
        raise InvalidTaskType(f"{type!r:.80} of queue {queue!r} is no type of tasks: printable text without a slash is")
    return f"{queue}/{type}"


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint with the names most like one that nobody has."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=NEAREST_MAX, cutoff=LIKENESS_MIN)
    short = name.rpartition(":")[2]
    near += [one for one in known if one.rpartition(":")[2] == short and one not in near]
    shorts = {one.rpartition(":")[2]: one for one in known}
    near += [shorts[one] for one in difflib.get_close_matches(short, list(shorts), n=NEAREST_MAX, cutoff=0.7)]
    near = list(dict.fromkeys(near))[:NEAREST_MAX]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return "" if known else "no handler is registered: is its module imported or preloaded?"
