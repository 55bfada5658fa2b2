"""Where things are published: ``<prefix>/<node>/<kind>``."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["state", "progress", "faults", "report"]
KINDS: tuple[Kind, ...] = ("state", "progress", "faults", "report")
RETAINED: tuple[Kind, ...] = ("state", "progress", "report")
"""Kinds that a broker keeps for whoever comes later; faults are news, not a state."""
# What a topic level must not hold: wildcards, separators, NUL, and control characters that brokers refuse (MQTT 5, 1.5.4).
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f+#/]")
_MAX_LEVEL = 128


def level(name: str) -> str:
    """A name as one level of a topic: what a level may not hold becomes ``-``; never empty, never beginning with ``$``."""
    clean = _FORBIDDEN.sub("-", name.encode("utf-8", "replace").decode())[:_MAX_LEVEL]
    return re.sub(r"^\$", "-", clean) or "-"


class Topics(NamedTuple):
    """The topics of one machine. ``prefix`` may have several levels, ``node`` is one."""

    prefix: str
    node: str

    def of(self, kind: Kind) -> str:
        """Where this kind is published."""
        return f"{self.prefix}/{self.node}/{kind}"

    @property
    def command(self) -> str:
        """Where commands are heard, if they are allowed."""
        return f"{self.prefix}/{self.node}/command"

    @property
    def answer(self) -> str:
        """Where commands without a response topic are answered."""
        return f"{self.prefix}/{self.node}/answer"

    def may_answer(self, topic: str) -> bool:
        """Whether a response topic is ours to publish on.

        The sender of a command chooses it, but we publish with our own rights: nobody may forge through us what others say.
        """
        return topic == self.answer or (topic.startswith(f"{self.answer}/") and not _WILD.search(topic))


_WILD = re.compile(r"[\x00-\x1f\x7f-\x9f+#]")


def parse(prefix: str, topic: str) -> tuple[str, str] | None:
    """Node and kind of a topic of ours, ``None`` for any other."""
    if not topic.startswith(f"{prefix}/"):
        return None
    node, slash, kind = topic[len(prefix) + 1 :].partition("/")
    return (node, kind) if node and slash else None
