"""Whose topics are whose, where several restores of one machine publish: the first is ``<host>``, others ``<host>.2`` and on.

A restore keeps its name until it ends, also over kills and ``resume``; then the next one may have it. Each name is a file
in the run directory: locked while its restore is told, and kept while that is unfinished. After a reboot they are dealt out
anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import os
from typing import TYPE_CHECKING

from active_restore.config import run_root, state_root
from active_restore.control.registry import directory_name
from active_restore.linux.locks import is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from active_restore.mqtt.settings import Settings


@contextlib.contextmanager
def place(settings: Settings, target: str) -> Iterator[Settings]:
    """The settings with topics that are this restore's alone while the block runs.

    Where no note can be kept, all use the same: a restore is not to fail for the sake of those who watch.
    """
    name = directory_name(target)
    with contextlib.ExitStack() as stack:
        number = 1
        with contextlib.suppress(OSError):
            number = stack.enter_context(_numbered(settings, name))
        topics = settings.topics
        node = topics.node if number == 1 else f"{topics.node}.{number}"
        yield dataclasses.replace(settings, topics=topics._replace(node=node))


@contextlib.contextmanager
def _numbered(settings: Settings, name: str) -> Iterator[int]:
    run_root().mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone():
        number, path = _choose(settings, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, name.encode())
    try:
        yield number
    finally:
        with contextlib.suppress(OSError), _alone():
            if not _is_unfinished(name):
                path.unlink()
        os.close(fd)


def _choose(settings: Settings, name: str) -> tuple[int, Path]:
    """The number that this restore has had already, else the lowest that nobody needs."""
    key = hashlib.sha256(f"{settings.broker} {settings.topics.prefix}/{settings.topics.node}".encode()).hexdigest()[:8]
    beginning = f"mqtt-{key}-"
    needed = set()
    for path in run_root().glob(f"{beginning}*"):
        owner, number = path.read_text(), int(path.name.removeprefix(beginning))
        locked = is_locked(path)
        if owner == name and not locked:
            return number, path
        if locked or _is_unfinished(owner):
            needed.add(number)
    free = next(number for number in itertools.count(1) if number not in needed)
    return free, run_root() / f"{beginning}{free}"


def _is_unfinished(name: str) -> bool:
    return bool(name) and (state_root() / name / "restore.json").exists()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Nobody else of this machine chooses meanwhile."""
    fd = os.open(run_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
