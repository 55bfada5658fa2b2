"""The contract of sources, on a directory and on every kind of restic repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgpack
import pytest

from active_restore.errors import SnapshotError
from active_restore.model import FileRef, Kind, Node
from active_restore.source.dir import DirSource
from active_restore.source.open import attach
from tests.source import trees

if TYPE_CHECKING:
    from tests.source.conftest import Backup
    from tests.source.repositories import Repositories


def _walk(backup: Backup, subfolder: bytes = b"") -> list[Node]:
    return trees.nodes(backup.source.walk(backup.source.select("latest"), subfolder))


def test_equals_the_original_and_what_restic_restores(backup: Backup, expected: dict[bytes, object]) -> None:
    restored = DirSource(str(backup.expected))
    by_restic = trees.fingerprint(restored, trees.nodes(restored.walk(restored.select("latest"))))
    ours = trees.fingerprint(backup.source, _walk(backup))
    assert ours == by_restic
    assert ours == expected


def test_sockets_are_nodes(backup: Backup) -> None:
    # restic does not store them, so only a directory can have one.
    sockets = [node.path for node in _walk(backup) if node.kind is Kind.SOCKET]
    assert sockets == ([b"socket"] if backup.name == "dir" else [])


def test_root_is_first_and_the_order_is_always_the_same(backup: Backup) -> None:
    first = _walk(backup)
    assert (first[0].path, first[0].kind) == (b"", Kind.DIR)
    assert [node.path for node in first] == [node.path for node in _walk(backup)]
    assert first == _walk(backup)


def test_read_many_gives_the_same_as_read(backup: Backup) -> None:
    files = [node for node in _walk(backup) if node.kind is Kind.FILE]
    reader = backup.source.reader()
    together = trees.contents(reader, files)
    for node in files:
        place = backup.expected / os.fsdecode(node.path)
        assert together[node.path] == trees.content(reader, node) == place.read_bytes()
    reader.close()


def test_read_many_takes_a_file_twice(backup: Backup) -> None:
    files = {node.path: trees.ref(node) for node in _walk(backup) if node.path in (b"one", b"random")}
    refs = [files[b"random"], files[b"one"], files[b"random"]]
    reader = backup.source.reader()
    sizes = dict.fromkeys(range(3), 0)
    for position, item in reader.read_many(refs):
        sizes[position] += len(item.data) if isinstance(item, tuple) else 0
    reader.close()
    assert [sizes[position] for position in range(3)] == [ref.size for ref in refs]


def test_large_holes_are_left_out(backup: Backup) -> None:
    sparse = next(node for node in _walk(backup) if node.path == b"sparse")
    reader = backup.source.reader()
    assert sum(len(piece.data) for piece in reader.read(trees.ref(sparse))) < sparse.size // 2
    reader.close()


def test_a_read_that_is_left_early_costs_nothing_later(backup: Backup) -> None:
    files = [trees.ref(node) for node in _walk(backup) if node.kind is Kind.FILE]
    reader = backup.source.reader()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        stream = reader.read_many(files)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) <= before + 20
    random = next(node for node in _walk(backup) if node.path == b"random")
    assert len(trees.content(reader, random)) == random.size
    reader.close()


def test_subfolder_becomes_the_root(backup: Backup, expected: dict[bytes, tuple[object, ...]]) -> None:
    found = _walk(backup, b"/small/")
    assert len(found) == trees.SMALL_FILES + 2
    assert (found[0].path, found[0].mtime_ns) == (b"", 1_600_000_000_123_456_789)
    prints = trees.fingerprint(backup.source, found)
    for path, what in prints.items():
        assert what[-1] == expected[b"small/" + path][-1]
    deep = _walk(backup, b"deep/" + b"/".join([b"d"] * 30))
    reader = backup.source.reader()
    assert trees.content(reader, deep[1]) == b"down here"
    reader.close()


@pytest.mark.parametrize("subfolder", [b"nowhere", b"small/f000", b"symlink", b"../tree", b"small/../small"], ids=repr)
def test_subfolder_that_is_none(backup: Backup, subfolder: bytes) -> None:
    if backup.name == "dir" and b".." in subfolder:
        subfolder = b"no/such"
    with pytest.raises(SnapshotError) as caught:
        _walk(backup, subfolder)
    assert caught.value.hint


def test_unknown_snapshot_has_a_hint(backup: Backup) -> None:
    for name in ("0123456789abcdef", "no hexadecimal", ""):
        with pytest.raises(SnapshotError) as caught:
            backup.source.select(name)
        assert caught.value.hint


def test_select_by_id_and_prefix(backup: Backup) -> None:
    (info,) = backup.source.snapshots()
    assert backup.source.select(info.id) == backup.source.select("latest") == info
    if backup.name != "dir":
        assert backup.source.select(info.id[:8]) == info


def test_another_process_opens_it_by_handover(backup: Backup) -> None:
    files = [node for node in _walk(backup) if node.path.startswith(b"small/")]
    handover = backup.source.handover()
    recipe = msgpack.unpackb(msgpack.packb(handover.recipe), strict_map_key=False)
    child, parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        # As a new process would: only the recipe and duplicates of the descriptors.
        status = 1
        try:
            source = attach(recipe, [os.dup(fd) for fd in handover.fds])
            found = trees.contents(source.reader(), files) if backup.name not in ("s3", "rest") else {}
            os.write(parent, b"%d" % sum(len(one) for one in found.values() if isinstance(one, bytes)))
            status = 0
        finally:
            os._exit(status)
    os.close(parent)
    with os.fdopen(child, "rb") as result:
        total = int(result.read())
    assert os.waitpid(pid, 0)[1] == 0
    assert total == (sum(node.size for node in files) if backup.name not in ("s3", "rest") else 0)


def test_attached_source_reads(backup: Backup) -> None:
    files = [node for node in _walk(backup) if node.path.startswith(b"small/")]
    handover = backup.source.handover()
    other = attach(handover.recipe, [os.dup(fd) for fd in handover.fds])
    reader = other.reader()
    for path, found in trees.contents(reader, files).items():
        assert found == (backup.expected / os.fsdecode(path)).read_bytes()
    reader.close()
    other.close()
    assert trees.content(backup.source.reader(), files[0])


def test_order_key_tells_the_order_of_reading(backup: Backup) -> None:
    files = [node for node in _walk(backup) if node.path.startswith(b"small/")]
    reader = backup.source.reader()
    order = [position for position, item in reader.read_many([trees.ref(node) for node in files]) if item is None]
    reader.close()
    keys = [backup.source.order_key(files[position].content) for position in order]
    assert keys == sorted(keys)


def test_url_names_the_source_without_secrets(backup: Backup, repositories: Repositories) -> None:
    assert backup.source.url.startswith("dir:" if backup.name == "dir" else "restic:")
    assert "pass" not in backup.source.url.replace("/password", "")
    assert str(repositories.tree) in backup.source.url or backup.name != "dir"


def test_empty_batch(backup: Backup) -> None:
    reader = backup.source.reader()
    empty = next(node for node in _walk(backup) if node.path == b"empty")
    assert list(reader.read_many([])) == []
    assert list(reader.read_many([trees.ref(empty)])) == [(0, None)]
    assert list(reader.read(trees.ref(empty))) == []
    reader.close()


def test_wrong_size_is_a_content_error(backup: Backup) -> None:
    one = trees.ref(next(node for node in _walk(backup) if node.path == b"random"))
    small = trees.ref(next(node for node in _walk(backup) if node.path == b"one"))
    reader = backup.source.reader()
    for size in (one.size + 1, one.size - 1, 0):
        lie = FileRef(one.path, size, one.mtime_ns, one.content)
        ends = [(position, item) for position, item in reader.read_many([lie, small]) if not isinstance(item, tuple)]
        assert sorted((position, item is None) for position, item in ends) == [(0, False), (1, True)]
    reader.close()
