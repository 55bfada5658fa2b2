"""Recording which files are opened first, by a BPF program."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

import pytest

from active_restore.linux import bpffs
from active_restore.predict.learning import Everything, Worth
from active_restore.predict.order import FILE_NAME, decode
from active_restore.predict.recorder import Recorder
from tests.vm.inside.territory import Child, python, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.predict.units import Who

_READ = """
    import sys
    for path in sys.argv[1:]:
        open(path, 'rb').read()
"""


class _NotPerl(Everything):
    """What programs of this name open does not count."""

    def of(self, who: Who) -> Worth:
        return Worth.IGNORED if who.program == "perl" else super().of(who)


@pytest.fixture
def tree(disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files to open."""
    monkeypatch.setenv("ACTIVE_RESTORE_RUN", str(tmp_path / "run"))
    tree = disk / "recorded"
    (tree / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "sub/c", "sub/d"):
        (tree / name).write_text(name)
    return tree


@contextlib.contextmanager
def _recording(tree: Path) -> Iterator[Recorder]:
    with contextlib.closing(Recorder(str(tree), _NotPerl())) as recorder:
        assert recorder.opens.name == "bpf"
        yield recorder


def _read(*paths: Path) -> None:
    assert python(_READ, *paths).status() == 0


def _noted(recorder: Recorder, tree: Path) -> list[bytes]:
    recorder.drain()
    recorder.save()
    return [touch.path for touch in decode((tree / os.fsdecode(FILE_NAME)).read_bytes()).touches]


@pytest.mark.ci
def test_order_of_first_opens(tree: Path, disk: Path) -> None:
    (disk / "elsewhere").write_text("not below the directory")
    with _recording(tree) as recorder:
        _read(tree / "sub/c", tree / "a", disk / "elsewhere", tree / "sub/c", tree / "b", tree / "a")
        assert _noted(recorder, tree) == [b"sub/c", b"a", b"b"]
        (tree / "sub").rename(tree / "moved")
        _read(tree / "moved/d", tree / "b")
        assert _noted(recorder, tree) == [b"sub/c", b"a", b"b", b"moved/d"]
    assert not list((bpffs.ROOT / "active_restore").glob("touch_*"))
    (tree / "moved").rename(tree / "sub")


def test_one_event_for_each_file(tree: Path) -> None:
    with _recording(tree) as recorder:
        _read(tree / "a", tree / "a", tree / "a")
        assert [event.name for event in recorder.opens.read()] == [b"a"]
        _read(tree / "a")
        assert not list(recorder.opens.read())
        # A new file under the number of an old one is another file.
        (tree / "a").unlink()
        (tree / "a").write_text("new")
        _read(tree / "a")
        assert [event.name for event in recorder.opens.read()] == [b"a"]


def test_opens_that_do_not_count(tree: Path) -> None:
    """Those of ignored programs, and of files without content: the next one does."""
    (tree / "empty").touch()
    with _recording(tree) as recorder:
        assert Child("perl", "-e", "open(F, $_) or die for @ARGV", tree / "b").status() == 0
        _read(tree / "empty")
        recorder.drain()
        (tree / "empty").write_text("content")
        _read(tree / "b", tree / "empty")
        assert _noted(recorder, tree) == [b"b", b"empty"]
    (tree / "empty").unlink()


def test_who_waits_is_woken(tree: Path) -> None:
    """``fd`` can be polled."""
    with _recording(tree) as recorder:
        assert not select.select([recorder.fd], [], [], 0)[0]
        child = python(_READ, tree / "a")
        until(lambda: select.select([recorder.fd], [], [], 1)[0], "the event")
        assert child.status() == 0
        assert _noted(recorder, tree) == [b"a"]
