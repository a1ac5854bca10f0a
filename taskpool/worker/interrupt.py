"""Cancelled and SoftTimeout are raised inside a body, and nowhere else.

The supervisor names the job on the page and sends a signal. The handler of that signal raises only if the page's target is the
job whose body runs now, and if the frame of `call_body` is among the frames that it interrupted. So the exception always
unwinds through `call_body` into the `try` around its call: it cannot hit the worker's own loop, however late or early the signal
comes and whichever thread the kernel gave it to. docs/adr/0002 has the reasons and what was rejected.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from taskpool.errors import Cancelled, SoftTimeout
from taskpool.wire.page import CANCEL, CANCEL_KIND, CANCEL_SOFT_TIMEOUT, CURRENT, Page

INTERRUPT_SIGNAL = signal.SIGRTMIN + 1
STACK_SIGNAL = signal.SIGRTMIN + 2


def call_body(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a handler; this frame marks where its body begins. Nothing else may be done in it."""
    return fn(*args, **kwargs)


def whole(deed: Callable[[], None]) -> None:
    """Call what must not be broken off in the midst of a body: Cancelled and SoftTimeout come when it is done."""
    global _put_off
    _undisturbed(deed)
    if _put_off:
        _put_off = False
        signal.raise_signal(INTERRUPT_SIGNAL)


def _undisturbed(deed: Callable[[], None]) -> None:
    """Call it; this frame marks where nothing is raised."""
    deed()


_put_off = False
_BODY = call_body.__code__
_WHOLE = _undisturbed.__code__
_get_context = vars(BaseException)["__context__"].__get__  # past what a class may define in its place


class Interrupter:
    """The handler of INTERRUPT_SIGNAL."""

    def __init__(self, page: Page) -> None:
        self._words = page.words
        self._soft = 0  # the last job that got its SoftTimeout: it gets one only

    def install(self) -> None:
        """Begin to obey the signal."""
        signal.signal(INTERRUPT_SIGNAL, self)

    def __call__(self, _signo: int, frame: FrameType | None) -> None:
        """Raise in the body that runs, if it is the one that is meant."""
        words = self._words
        n = words[CANCEL]
        if n == 0 or n != words[CURRENT] or not _in_body(frame):
            return
        if words[CANCEL_KIND] == CANCEL_SOFT_TIMEOUT:
            if self._soft != n:
                self._soft = n
                raise SoftTimeout("the soft timeout of this attempt is over")
        elif not _is_handling_cancel():
            raise Cancelled("this task was cancelled")


def _in_body(frame: FrameType | None) -> bool:
    global _put_off
    while frame is not None:
        if frame.f_code is _WHOLE:
            _put_off = True
            return False
        if frame.f_code is _BODY:
            return True
        frame = frame.f_back
    return False


def _is_handling_cancel() -> bool:
    """Return whether what was interrupted is cleaning up after a Cancelled already: the repeated signal must not break that."""
    handled = sys.exception()
    for _ in range(100):
        if handled is None:
            return False
        if issubclass(type(handled), Cancelled):
            return True
        handled = _get_context(handled)
    return False
