"""Being told by the kernel what happens to a file: inotify, which the standard library does not offer."""

from __future__ import annotations

import os
from ctypes import c_char_p

from taskpool.engines.linux import _checked, _libc

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
READ_BYTES = 1 << 14


class FileWatch:
    """`fd` is readable once one of `events` has happened, until `drain`. OSError if the kernel has no more watches to give."""

    def __init__(self, path: str, events: int = IN_MODIFY) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        try:
            _checked(_libc.inotify_add_watch(self.fd, c_char_p(os.fsencode(path)), events), "inotify_add_watch")
        except OSError:
            self.close()
            raise

    def drain(self) -> None:
        """Forget all that was told so far."""
        try:
            while len(os.read(self.fd, READ_BYTES)) > READ_BYTES // 2:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)
