"""What is worth remembering: how a unit starts, not what it does for the rest of its days, and not who reads everything."""

from __future__ import annotations

import time
from enum import Enum, auto
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from active_restore.predict.units import Who

# Ourselves: an agent and its helpers fill files, verify reads them.
_OURS = ("active-restore*", "ar-*")
_MOST_OF_A_UNIT = 20_000
_MOST_UNITS = 10_000


class Worth(Enum):
    """``LEARNED``: it does not count any more, and neither would the next open. ``IGNORED``: somebody else's would."""

    NOTED = auto()
    LEARNED = auto()
    IGNORED = auto()


class Everything:
    """Every first open counts, whoever it is."""

    def of(self, who: Who) -> Worth:
        """Always ``NOTED``."""
        del who
        return Worth.NOTED


class Learning:
    """Of each unit what it opens in its first ``seconds`` (0: always), but for units and programs that match ``ignored``.

    A process that has ended before we look is of no known unit and program, so it is not recognised, and counts.
    A unit's time begins with the first open that is seen of it. One that opens very many files is a crawler: what it opens
    beyond that is not learned.
    """

    def __init__(self, seconds: float, ignored: Sequence[str]) -> None:
        self._seconds = seconds
        self._patterns = (*_OURS, *ignored)
        self._ignored: dict[Who, bool] = {}
        self._began: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def of(self, who: Who) -> Worth:
        """Whether an open by this process counts."""
        if self._is_ignored(who):
            return Worth.IGNORED
        if len(self._began) >= _MOST_UNITS:
            # Sessions come and go; whoever is still there is learned once more.
            self._began.clear()
            self._counts.clear()
        now = time.monotonic()
        began = self._began.setdefault(who.unit, now)
        count = self._counts.get(who.unit, 0)
        if count >= _MOST_OF_A_UNIT or (self._seconds and now - began > self._seconds):
            return Worth.LEARNED
        self._counts[who.unit] = count + 1
        return Worth.NOTED

    def _is_ignored(self, who: Who) -> bool:
        if len(self._ignored) >= _MOST_UNITS:
            self._ignored.clear()
        if who not in self._ignored:
            self._ignored[who] = any(fnmatchcase(name, one) for name in who for one in self._patterns)
        return self._ignored[who]
