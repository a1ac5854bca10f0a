"""Makes `tests` importable from its folders; workers get the same search path."""

import pytest

pytest.register_assert_rewrite("tests.engine_rig")
