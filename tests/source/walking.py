"""Walk a whole source at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.model import Node, Problem

if TYPE_CHECKING:
    from active_restore.source.restic.repository import ResticSource


def walked(source: ResticSource, subfolder: bytes = b"") -> tuple[dict[bytes, Node], list[Problem]]:
    """Nodes by path, and problems, of the latest snapshot; closes the source."""
    items = list(source.walk(source.select("latest"), subfolder))
    source.close()
    return {item.path: item for item in items if isinstance(item, Node)}, [item for item in items if isinstance(item, Problem)]
