"""Several whole objects at once, where each request has to wait for a network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from active_restore.store.base import ObjectNotFound, ObjectTruncated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from active_restore.store.base import Store

THREADS = 8
Outcome = memoryview | ObjectNotFound | ObjectTruncated


def get_several(store: Store, names: Sequence[str], limit_bytes: int) -> Iterator[tuple[str, Outcome]]:
    """Each name with its object, or with why there is none; in the order of ``names``.

    At most ``THREADS`` objects of ``limit_bytes`` each are held. Raises ``SourceUnavailable``.
    """

    def fetch(name: str) -> Outcome:
        try:
            return store.get(name, limit_bytes)
        except (ObjectNotFound, ObjectTruncated) as error:
            return error

    if not store.remote:
        # A local disk answers at once, and its descriptors are not shared between threads.
        for name in names:
            yield name, fetch(name)
        return
    with ThreadPoolExecutor(THREADS, "several") as pool:
        for first in range(0, len(names), THREADS):
            some = names[first : first + THREADS]
            yield from zip(some, pool.map(fetch, some), strict=True)
