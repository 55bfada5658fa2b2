"""What a check found, and what follows from all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Need = Literal["any", "fanotify", "bpf", "advised"]
"""Who cannot do without it: every restore, one interceptor, or nobody (it makes things better)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One capability: whether it is there, why it matters, and what to do where it is not."""

    name: str
    present: bool
    need: Need
    detail: str
    why: str
    todo: str = ""


def usable(findings: Sequence[Finding]) -> list[str]:
    """The interceptors that could hold tasks here."""
    lacking = {finding.need for finding in findings if not finding.present}
    return [name for name in ("bpf", "fanotify") if name not in lacking and "any" not in lacking]
