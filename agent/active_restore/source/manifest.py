"""The manifest of a directory: the SHA-256 of every file, so that ``dir:`` content can be verified like a backup's.

Format: records that end with NUL, so that every path can be written. The first is ``active-restore-manifest 1 sha256``,
then ``<64 hex digits>  <path>`` for each regular file, sorted by path, and last ``end <number of files>``.
``tr '\\0' '\\n'`` makes it readable.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

from active_restore.errors import ContentError, NoRepository, RepositoryDamaged, SourceUnavailable
from active_restore.model import Kind, Problem
from active_restore.source import extents, folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NAME = ".active-restore-manifest"
_HEADER = b"active-restore-manifest 1 sha256"
_FAMILY = b"active-restore-manifest "
_HINT = "make it anew: active-restore manifest DIR"


def paths(directory: str) -> tuple[str, str]:
    """Where the manifest of a directory may lie: in it, or next to it where the directory is read-only."""
    directory = os.path.abspath(directory)
    return os.path.join(directory, NAME), directory + NAME


def create(directory: str) -> tuple[str, int]:
    """Hash every regular file of a directory and save the manifest; the path that it has, and the number of files.

    Raises ``NoRepository``, ``SourceUnavailable``, and ``ContentError`` for a file that cannot be read or that changes.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoRepository(f"{directory}: {error.strerror}", "check the path; is it mounted?") from error
    try:
        digests = list(_digests(root))
        return save(directory, digests), len(digests)
    except OSError as error:
        raise SourceUnavailable(f"the manifest of {directory} cannot be written: {error.strerror}") from error
    finally:
        os.close(root)


def save(directory: str, digests: Iterable[tuple[bytes, bytes]]) -> str:
    """Write the manifest (path and SHA-256 of each file) durably and all at once; the path that it has.

    Raises ``OSError`` where neither place can be written, and whatever ``digests`` raises.
    """
    inside, beside = paths(directory)
    records = sorted(digests)
    try:
        _replace(inside, records)
    except OSError:
        _replace(beside, records)
        return beside
    return inside


def load(directory: str) -> Mapping[bytes, bytes] | None:
    """SHA-256 by path, ``None`` where there is no manifest. Raises ``RepositoryDamaged``, ``SourceUnavailable``."""
    for path in paths(directory):
        try:
            with open(path, "rb") as file:
                return parse(file.read())
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise NoRepository(f"{directory} is not a directory") from None
        except OSError as error:
            raise SourceUnavailable(f"{path}: {error.strerror}") from error
    return None


def parse(text: bytes) -> dict[bytes, bytes]:
    """SHA-256 by path. Raises ``RepositoryDamaged`` for what is no complete manifest."""
    records = text.split(b"\0")
    if records[0] != _HEADER:
        known = "of an unknown version" if records[0].startswith(_FAMILY) else "damaged"
        raise RepositoryDamaged(f"the manifest is {known}", _HINT)
    if len(records) < 3 or records[-1] or records[-2] != b"end %d" % (len(records) - 3):
        raise RepositoryDamaged("the manifest is incomplete", _HINT)
    digests = {}
    try:
        for record in records[1:-2]:
            digest, path = bytes.fromhex(record[:64].decode("ascii")), record[66:]
            if len(digest) != 32 or record[64:66] != b"  " or not path or path in digests:
                raise ValueError
            digests[path] = digest
    except ValueError:
        raise RepositoryDamaged("the manifest holds a malformed line", _HINT) from None
    return digests


def _digests(root: int) -> Iterator[tuple[bytes, bytes]]:
    for item in folder.walk(root):
        name = item.node.path if isinstance(item, folder.Entry) else item.path
        if isinstance(item, Problem):
            raise ContentError(f"{name.decode(errors='backslashreplace')}: {item.detail}")
        if item.node.kind is not Kind.FILE:
            continue
        parent = folder.open_folder(root, name.rpartition(b"/")[0])
        try:
            descriptor = os.open(name.rpartition(b"/")[2], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            digest = digest_stream(extents.pieces(descriptor, item.node.size, item.node.mtime_ns), item.node.size)
        except ContentError as error:
            raise ContentError(f"{name.decode(errors='backslashreplace')} {error}", error.hint) from None
        finally:
            os.close(descriptor)
        yield name, digest


def _replace(path: str, records: list[tuple[bytes, bytes]]) -> None:
    with _replacement(path) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(_HEADER + b"\0")
        for name, digest in records:
            file.write(digest.hex().encode() + b"  " + name + b"\0")
        file.write(b"end %d\0" % len(records))


@contextlib.contextmanager
def _replacement(path: str) -> Iterator[int]:
    """A descriptor whose content replaces the file durably at the end, or leaves it alone when something fails."""
    draft = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest_stream(pieces: Iterable[tuple[int, bytes]], size: int) -> bytes:
    """SHA-256 of a file of ``size`` bytes given as ascending (offset, data); what lies between is zero."""
    running = Digest()
    for offset, data in pieces:
        running.feed(offset, data)
    return running.finish(size)


class Digest:
    """SHA-256 over pieces with holes between them."""

    _ZEROS = bytes(1 << 20)

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._position = 0

    def feed(self, offset: int, data: bytes) -> None:
        """Add a piece at ``offset``, not before the end of the last one."""
        self._zeros(offset - self._position)
        self._hash.update(data)
        self._position = offset + len(data)

    def finish(self, size: int) -> bytes:
        """The digest of a file of that size."""
        self._zeros(size - self._position)
        return self._hash.digest()

    def _zeros(self, count: int) -> None:
        zeros = memoryview(self._ZEROS)
        while count > 0:
            self._hash.update(zeros[: min(count, len(zeros))])
            count -= len(zeros)
