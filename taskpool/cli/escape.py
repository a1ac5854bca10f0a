"""Text of strangers on a terminal: what could move the cursor, recolour or reorder is shown as an escape instead.

Names, arguments, errors and outputs come from tasks. Control characters (C0, DEL, C1), bidirectional overrides, line and paragraph
separators and lone surrogates never reach a terminal raw; a tab and, where lines are meant, a newline do.
"""

from __future__ import annotations

import re

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff\ufeff\U000e0000-\U000e007f]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def one_line(text: str, limit: int = 0) -> str:
    """Return text that stays on one line and does nothing but stand there; cut to `limit` characters if that is given."""
    flat = text.replace("\t", " ").replace("\r\n", "\n").strip().replace("\n", " ⏎ ")
    if limit and len(flat) > 4 * limit:
        flat = flat[: 4 * limit]  # escapes only lengthen: no need to look at megabytes
    safe = _UNSAFE.sub(_escaped, flat)
    return safe if not limit or len(safe) <= limit else safe[: limit - 1] + "…"


def many_lines(text: str) -> str:
    r"""Return text whose lines and tabs stand, and whose other control characters are shown as escapes; \r ends one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("\t".join(_UNSAFE.sub(_escaped, cell) for cell in line.split("\t")) for line in lines)
