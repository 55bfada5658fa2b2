"""What the ledger says of rows whose content may be lost."""

from __future__ import annotations

import contextlib

from active_restore.intercept.ledger import Ledger
from active_restore.presence import Presence

_SIZE = 1 << 20


def test_what_is_doubted() -> None:
    """Readers wait again; a whole file was complete once, a file by range was not."""
    with contextlib.closing(Ledger.create()) as ledger:
        ledger.make_readable(1)
        held = ledger.hold_range(2, _SIZE)
        assert held is not None
        Presence(held[0], _SIZE).add(0, 10)
        ledger.doubt_all(3)
        assert not ledger.is_readable(1)
        assert ledger.was_readable(1)
        assert not ledger.is_by_range(2)
        assert not ledger.was_readable(2)
        assert not ledger.was_readable(0)
        again = ledger.hold_range(2, _SIZE)
        assert again is not None
        assert again[1]
        assert not any(again[0])
        assert ledger.is_by_range(2)
