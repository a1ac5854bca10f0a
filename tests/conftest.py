"""Makes `tests` importable from its folders; workers get the same search path."""

import signal

import pytest

pytest.register_assert_rewrite("tests.engine_rig")

# A shell starts what it puts in the background with SIGINT ignored, which children inherit: tests that press Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
