"""`import taskpool` is a facade: it loads what is asked of it, when it is asked."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"sqlite3", "sqlite_utils", "rich", "click", "multiprocess", "dill", "psutil", "platformdirs", "asyncio"}


def _loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not _loaded_by("import taskpool") & HEAVY


def test_the_supervisor_never_loads_what_only_people_need() -> None:
    assert not _loaded_by("import taskpool.supervisor") & {"rich", "click", "dill", "multiprocess"}
