"""What a file brings with it: a binary its interpreter and libraries, a script its interpreter; level by level.

A file is looked into when its content is complete, once. What it needs and is missing is predicted, and looked into when
it has come.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.predict import elf
from active_restore.predict.loader import CACHE, Loader, expand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from active_restore.predict.tree import Look, Tree

ELF = "elf"
SCRIPT = "script"
_ENV = b"/usr/bin/env"
_PATH = (b"/usr/local/bin", b"/usr/bin", b"/bin")
_HEAD_BYTES = 256
# Libraries need no execute permission.
_LIBRARY = b".so"
_MAX_SEEN = 1 << 20


class Closure:
    """``predict(kind, row, size)`` is called for each file that is missing."""

    def __init__(self, tree: Tree, predict: Callable[[str, int, int], None]) -> None:
        self._tree = tree
        self._predict = predict
        self._loader = Loader(tree)
        # Files that were looked into, and what the RPATH of those who need a missing one adds to its search.
        self._seen: set[bytes] = set()
        self._inherited: dict[bytes, tuple[bytes, ...]] = {}

    def of(self, path: bytes) -> None:
        """Bring what this file needs (absolute, as seen with the target as root), and what that needs."""
        todo: list[tuple[str, bytes, tuple[bytes, ...]]] = [("", path, ())]
        while todo:
            kind, path, inherited = todo.pop()
            with self._tree.look(path) as found:
                # Nearly all that is opened is no program: that is seen before anything else is asked.
                if found is None or not (kind or _may_need(found, path)) or found.path in self._seen:
                    continue
                inherited += self._inherited.pop(found.path, ())
                if found.missing:
                    self._inherited[found.path] = inherited
                    if kind:
                        self._predict(kind, found.row, found.size)
                elif len(self._seen) < _MAX_SEEN:
                    self._seen.add(found.path)
                    todo.extend(self._needed(found, inherited))

    def _needed(self, found: Look, inherited: tuple[bytes, ...]) -> Iterable[tuple[str, bytes, tuple[bytes, ...]]]:
        if not _may_need(found, found.path):
            return []
        with found.open() as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(elf.MAGIC):
                file.seek(0)
                binary = elf.needs(file)
                return [] if binary is None else list(self._of_binary(binary, os.path.dirname(found.path), inherited))
        return [(SCRIPT, path, ()) for path in self._of_script(elf.script_interpreter(head))]

    def _of_binary(
        self, binary: elf.Needs, origin: bytes, inherited: tuple[bytes, ...]
    ) -> Iterator[tuple[str, bytes, tuple[bytes, ...]]]:
        if binary.interpreter:
            # What the loader opens first of all. Last in, first out: the libraries follow.
            yield ELF, CACHE, ()
        own = () if binary.runpath else tuple(expand(directory, binary, origin) for directory in binary.rpath)
        for library in self._loader.libraries(binary, origin, inherited):
            yield ELF, library, (*own, *inherited)
        if binary.interpreter:
            yield ELF, binary.interpreter, ()

    def _of_script(self, words: list[bytes]) -> Iterator[bytes]:
        if not words:
            return
        if words[0] == _ENV and len(words) > 1:
            names = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
            for directory in _PATH if names else ():
                with self._tree.look(os.path.join(directory, names[0])) as found:
                    if found is not None:
                        yield os.path.join(directory, names[0])
                        break
        yield words[0]


def _may_need(found: Look, path: bytes) -> bool:
    return found.executable or _LIBRARY in os.path.basename(path)
