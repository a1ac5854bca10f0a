"""The example of docs/schedules.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "schedules.md").read_text(), re.S)
    (tmp_path / "reports.py").write_text(example)
    done = subprocess.run([sys.executable, "reports.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Every 1s"
    assert lines[-1] == "2"
    assert "reports:nightly 0 3 * * MON-FRI 0 0" in lines
