"""Limits of what travels, each with a name and a default. Sizes in bytes."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

PAYLOAD_BYTES_MAX: Final = 16 * MIB  # encoded arguments of one call
RESULT_BYTES_MAX: Final = 16 * MIB  # encoded result of one attempt
CHECKPOINT_BYTES_MAX: Final = 16 * MIB  # one saved state
DEPTH_MAX: Final = 100  # nesting of JSON arguments
MESSAGE_BYTES_MAX: Final = 16 * 1024  # message of an error
TRACEBACK_BYTES_MAX: Final = 64 * 1024  # traceback text of an error
EXCEPTION_BYTES_MAX: Final = 256 * 1024  # pickled exception of an error
CAUSES_MAX: Final = 8  # links of an error's chain of causes
OUTPUT_TAIL_BYTES_MAX: Final = 8 * 1024  # end of what an attempt printed, as it is kept with the attempt
EFFECTS_MAX: Final = 1_000  # statements that one attempt hands over with on_success
EFFECT_BYTES_MAX: Final = 8 * MIB  # of those and their parameters
CHILDREN_MAX: Final = 10_000  # tasks that one attempt spawns
CHILDREN_BYTES_MAX: Final = 16 * MIB  # arguments and options of those that are stored with its success
