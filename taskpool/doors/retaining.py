"""How long tasks are kept: the part of a Client that prunes by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from taskpool.doors.amending import Amending
from taskpool.retention import ENDED, check_ended, retention_for
from taskpool.wire.messages import Prune


class Retaining(Amending):
    """Deletes what has ended and is not needed any more."""

    def prune(
        self, older: float | timedelta | None = None, *, statuses: Sequence[str] | str = ENDED, dry_run: bool = False
    ) -> dict[str, int]:
        """Delete tasks that ended longer ago than that, and return how many, by status; blocks until it is done.

        older: seconds or a timedelta; None: what the pool would prune by itself some time. statuses: of succeeded, cancelled,
        failed, interrupted. A task with a `retention` of its own goes by that. What others still need stays (docs/retention.md).
        dry_run: only count. Raises InvalidTask, InvalidSettings.
        """
        wanted = [statuses] if isinstance(statuses, str) else [str(status) for status in statuses]
        check_ended(wanted)
        kept = None if older is None else retention_for(older, wanted)
        return self._link.request(lambda seq: Prune(seq, wanted, kept, dry_run)).pruned or {}
