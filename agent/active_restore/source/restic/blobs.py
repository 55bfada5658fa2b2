"""One blob by its id, verified: re-read once, then every other copy, before it counts as damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from active_restore.errors import ContentError
from active_restore.source.restic import pack as packs
from active_restore.store.base import ObjectNotFound, ObjectTruncated

if TYPE_CHECKING:
    from active_restore.source.restic.index import BlobIndex, Location
    from active_restore.source.restic.runs import Run
    from active_restore.source.restic.seal import Box
    from active_restore.store.base import Store

# A bit may flip on the way (bus, cable, proxy): what is damaged is read a second time before it is believed.
_READS = 2


class BlobLoader:
    """Reads blobs of one repository through one store. Used by one thread at a time."""

    def __init__(self, store: Store, index: BlobIndex, box: Box) -> None:
        self.store = store
        self.index = index
        self.box = box
        self._paths: dict[int, str] = {}

    def load(self, blob_id: bytes, limit_bytes: int) -> bytes:
        """The plaintext. Raises ``ContentError`` when no copy is good, ``SourceUnavailable``."""
        fault = ContentError(f"blob {blob_id.hex()[:16]} is not in the index")
        for location in self.index.copies(blob_id):
            if (location.plain_length or location.length) > limit_bytes + 32:
                fault = ContentError(f"blob {blob_id.hex()[:16]} is larger than any that restic makes")
                continue
            try:
                return self._copy(location, blob_id)
            except ContentError as error:
                fault = error
        raise fault

    def fetch(self, run: Run) -> memoryview | None:
        """The sealed bytes of a run, ``None`` where the pack is damaged. Raises ``SourceUnavailable``."""
        try:
            return self.store.get_range(self.path(run.pack), run.offset, run.length)
        except (ObjectNotFound, ObjectTruncated):
            # One bad blob spoils the whole range: the caller tries each of them alone.
            return None

    def open_sealed(self, run: Run, sealed: memoryview | None, ids: dict[int, bytes]) -> dict[int, bytes]:
        """Verified blobs of a run by index row. Damaged ones are left out."""
        plain: dict[int, bytes] = {}
        if sealed is None:
            return plain
        blob = self.box.blob
        for row, start, length, plain_length in zip(run.rows, run.starts, run.lengths, run.plain_lengths, strict=True):
            try:
                plain[row] = blob(sealed[start : start + length], plain_length, ids[row])
            except ContentError:
                continue
        return plain

    def open_run(self, run: Run, ids: dict[int, bytes]) -> dict[int, bytes]:
        """Fetch and open: one job for a thread."""
        return self.open_sealed(run, self.fetch(run), ids)

    def path(self, pack: int) -> str:
        """Name of a pack in the store."""
        if (found := self._paths.get(pack)) is None:
            found = self._paths[pack] = packs.path(self.index.pack_name(pack))
        return found

    def _copy(self, location: Location, blob_id: bytes) -> bytes:
        path = self.path(location.pack)
        fault = ContentError("")
        for _ in range(_READS):
            try:
                sealed = self.store.get_range(path, location.offset, location.length)
                return self.box.blob(sealed, location.plain_length, blob_id)
            except ObjectNotFound:
                raise ContentError(f"pack {path[8:16]} is missing") from None
            except (ObjectTruncated, ContentError) as error:
                fault = ContentError(f"pack {path[8:16]}: {error}", "restic check --read-data tells more")
        raise fault
