"""`import taskpool` is a facade: it loads what is asked of it, when it is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"sqlite3", "sqlite_utils", "rich", "click", "multiprocess", "dill", "psutil", "platformdirs", "asyncio"}


def _loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not _loaded_by("import taskpool") & HEAVY


def test_the_supervisor_never_loads_what_only_people_need() -> None:
    assert not _loaded_by("import taskpool.supervisor.process") & {"rich", "click", "dill", "multiprocess"}


def test_a_start_waits_for_nothing_that_few_pools_need() -> None:
    """OpenSSL and the compressors alone are 6 MB of a supervisor's memory and 6 ms of its start."""
    few = {"hashlib", "shutil", "sqlite_utils", "cronsim", "zoneinfo", "asyncio", "logging"}
    assert not _loaded_by("import taskpool.supervisor.process") & few
