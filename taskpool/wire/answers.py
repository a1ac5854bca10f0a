"""Reading what a supervisor says. In a room of its own: to make this decoder takes 2 ms, and only clients need it."""

from __future__ import annotations

import msgspec

from taskpool.wire.messages import Answer

answer_decoder = msgspec.msgpack.Decoder(Answer)
