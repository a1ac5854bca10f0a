"""One contender, one round: `python -m bench.once ROW CONTENDER PARAMS` prints its figures as the last line, in JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict


def main() -> None:
    """Measure what the command line says."""
    from bench.rows import find

    row_id, contender, params = sys.argv[1:4]
    measured = find(row_id).measure(contender, json.loads(params))
    print(json.dumps({**asdict(measured), "facts": dict(measured.facts or {})}), flush=True)


if __name__ == "__main__":
    main()
