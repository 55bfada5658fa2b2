"""What every source offers; the contract suite in tests/source runs against each implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from active_restore.errors import ContentError
    from active_restore.model import FileRef, Node, Piece, Problem


class SnapshotInfo(NamedTuple):
    """A snapshot for people and for selection. ``id`` is the full identifier, ``time_ns`` since the epoch."""

    id: str
    time_ns: int
    hostname: str
    paths: tuple[str, ...]
    tags: tuple[str, ...]


class Handover(NamedTuple):
    """All that another process needs to open the same source at once: no key derivation, no index download.

    ``recipe`` is plain msgpack-able data and may hold secrets: it goes through a pipe, never over a command line.
    ``fds`` are inherited descriptors that the recipe refers to by position (the shared index).
    """

    recipe: dict[str, Any]
    fds: tuple[int, ...]


class Reader(Protocol):
    """One connection to the content. Used by one thread at a time; close it when done."""

    def read(self, ref: FileRef) -> Iterator[Piece]:
        """Yield the verified content of one file in ascending order; zero ranges may be left out.

        Raises ``ContentError`` where content is damaged, missing or changed (after bounded re-reads) and
        ``SourceUnavailable`` where the source cannot be reached now. Every piece that was yielded is verified.
        """

    def read_many(self, refs: Sequence[FileRef]) -> Iterator[tuple[int, Piece | ContentError | None]]:
        """Yield ``(position in refs, piece)`` in whatever order is cheapest; coalesces neighbouring ranges.

        The pieces of one file come together, in ascending order, and end with ``(position, None)``; a file whose
        content cannot be had ends with ``(position, ContentError)`` instead and the others go on.
        Memory stays bounded (tens of MiB) whatever the sizes. Raises ``SourceUnavailable``.
        """

    def bounds(self, ref: FileRef) -> Sequence[int] | None:
        """Ascending offsets, from 0 to the size of the file, between which content can be read and verified on its own.

        ``None`` where only the whole file can be verified, or where its parts are not known.
        """

    def read_part(self, ref: FileRef, bounds: Sequence[int], first: int, last: int) -> Iterator[Piece]:
        """As ``read``, of the bytes from ``bounds[first]`` to ``bounds[last]`` alone."""

    def close(self) -> None:
        """Give back connections and descriptors."""


class Source(Protocol):
    """A backup. ``url`` is how the user named it, without secrets."""

    url: str

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network: then many reads at once are quicker."""

    @property
    def immutable(self) -> bool:
        """Whether a snapshot is for ever what it was: named by a hash of all that is in it, which reading verifies."""

    def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots, oldest first."""

    def select(self, name: str) -> SnapshotInfo:
        """The snapshot for ``latest``, a full id or a unique prefix. Raises ``SnapshotError``."""

    def walk(self, snapshot: SnapshotInfo, subfolder: bytes = b"") -> Iterator[Node | Problem]:
        """The nodes of a snapshot, root first (path ``b""``), parents before children, in an order that is always the same.

        ``subfolder`` makes that folder the root. Raises ``SnapshotError`` where it does not exist.
        """

    def order_key(self, content: bytes) -> int:
        """Where content lies in the source: files sorted by this key are read with the fewest requests."""

    def reader(self) -> Reader:
        """A new connection."""

    def handover(self) -> Handover:
        """What a worker process needs; ``source.attach`` is the other end. The descriptors stay ours."""

    def close(self) -> None:
        """Give back everything."""
