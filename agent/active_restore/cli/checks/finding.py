"""What a check found, and what follows from all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Need = Literal["any", "fanotify", "bpf", "advised"]
"""Who cannot do without it: every restore, one interceptor, or nobody (it makes things better)."""

PRE_CONTENT = "pre-content events"


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


def by_range(findings: Sequence[Finding]) -> str:
    """What would let tasks wait for ranges of files (``--ranges``); empty where they wait for whole files."""
    if any(finding.present for finding in findings if finding.name == PRE_CONTENT):
        return "pre-content events, for which --interceptor auto takes fanotify"
    return "BPF programs" if "bpf" in usable(findings) else ""
