"""A mapping of a page that is made to show more of its file, in a way of which no kernel tells anybody.

``maps.py HOW FILE``: prints the SHA-256 of what it shows then, and where in the file that begins. With ``wait`` as a third word
it first prints the SHA-256 of the page, and waits for a line on its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
START = 1 << 20
BPF = "bpf" in os.environ.get("ACTIVE_RESTORE_TEST_INTERCEPTORS", "")
_MAYMOVE, _FIXED, _DONTUNMAP = 1, 2, 4
_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_NOW_AND_LATER = 3
_FAILED = ctypes.c_void_p(-1).value
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.remap_file_pages.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int]


def _checked(result: int | None) -> int:
    if result is None or result in (-1, _FAILED):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _patiently(*arguments: int | None) -> int:
    """mremap(2) where it may not wait: BPF sends it away until the file is whole."""
    while True:
        try:
            return _checked(libc.mremap(*arguments))
        except OSError as error:
            if not BPF or error.errno not in (errno.EAGAIN, errno.ENOMEM):
                raise
            os.sched_yield()


def mapped(fd: int, offset: int, length: int, kind: int) -> bytes:
    """What an ordinary mapping shows."""
    with mmap.mmap(fd, length, kind, mmap.PROT_READ, offset=offset) as view:
        return view[:]


def grown(fd: int, offset: int, length: int, kind: int) -> bytes:
    """What a mapping of one page shows that was made ``length`` bytes long."""
    page = _checked(libc.mmap(None, PAGE, mmap.PROT_READ, kind, fd, offset))
    address = _checked(libc.mremap(page, PAGE, length, _MAYMOVE, None))
    try:
        return ctypes.string_at(address, length)
    finally:
        libc.munmap(address, length)


def doubled(fd: int, offset: int, length: int, kind: int) -> bytes:
    """The same of a second mapping, of which the first was one page."""
    page = _checked(libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset))
    address = _checked(libc.mremap(page, 0, length, _MAYMOVE, None))
    try:
        return ctypes.string_at(address, length)
    finally:
        libc.munmap(address, length)
        libc.munmap(page, PAGE)


@contextlib.contextmanager
def elsewhere(fd: int, first: int, then: int) -> Iterator[memoryview]:
    """A writable mapping of the page that begins at ``then``, by remap_file_pages(2); at first it was of ``first``."""
    address = _checked(libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, first))
    try:
        _checked(libc.remap_file_pages(address, PAGE, 0, then // PAGE, 0))
        yield memoryview((ctypes.c_char * PAGE).from_address(address)).cast("B")
    finally:
        libc.munmap(address, PAGE)


def _page(path: str, mode: int, kind: int, room: int | None = None) -> int:
    """A mapping of a page, at an address that is free."""
    fd = os.open(path, mode)
    protection = mmap.PROT_READ if mode == os.O_RDONLY else mmap.PROT_READ | mmap.PROT_WRITE
    try:
        address = _checked(libc.mmap(room, PAGE, protection, kind, fd, START))
    finally:
        os.close(fd)
    if "wait" in sys.argv[3:]:
        sys.argv.remove("wait")
        print(_sum(address, PAGE), flush=True)
        sys.stdin.readline()
    return address


def _room(length: int) -> int:
    return _checked(libc.mmap(None, length, 0, _PRIVATE_ANONYMOUS, -1, 0))


def _grown_in_place(path: str) -> tuple[int, int]:
    length = os.stat(path).st_size - START
    room = _room(length)
    libc.munmap(room, length)
    return _patiently(_page(path, os.O_RDONLY, mmap.MAP_SHARED, room), PAGE, length, 0, None), length


def _grown_by_steps(path: str) -> tuple[int, int]:
    """Moved as it is, and then made longer; the old one stays."""
    length = os.stat(path).st_size - START
    page = _page(path, os.O_RDONLY, mmap.MAP_PRIVATE)
    there = _checked(libc.mremap(page, PAGE, PAGE, _MAYMOVE | _FIXED | _DONTUNMAP, _room(PAGE)))
    return _checked(libc.mremap(there, PAGE, length, _MAYMOVE, None)), length


def _grown_by_thread(path: str) -> tuple[int, int]:
    found: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: found.append(_grown(path, os.O_RDONLY, mmap.MAP_PRIVATE)))
    thread.start()
    thread.join()
    return found[0]


def _locked(path: str) -> tuple[int, int]:
    """The kernel makes copies of its new pages at once."""
    libc.mlockall(_NOW_AND_LATER)
    return _grown(path, os.O_RDWR, mmap.MAP_PRIVATE)


def _written(path: str) -> tuple[int, int]:
    """A byte of each page is written to, too."""
    address, length = _grown(path, os.O_RDWR, mmap.MAP_SHARED)
    for at in range(0, length, PAGE):
        ctypes.memset(address + at, 0x57, 1)
    return address, length


def _grown(path: str, mode: int, kind: int, flags: int = _MAYMOVE, old: int = PAGE) -> tuple[int, int]:
    length = os.stat(path).st_size - START
    page = _page(path, mode, kind)
    if flags & _FIXED:
        return _patiently(page, old, length, flags, _room(length)), length
    return _checked(libc.mremap(page, old, length, flags, None)), length


def _grown_by_child(path: str) -> tuple[int, int]:
    """The mapping of a parent."""
    length = os.stat(path).st_size - START
    page = _page(path, os.O_RDONLY, mmap.MAP_PRIVATE)
    if pid := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return _checked(libc.mremap(page, PAGE, length, _MAYMOVE, None)), length


def _elsewhere(path: str) -> tuple[int, int]:
    """The file's last page, and what lies before the mapping, in its place."""
    for page in (os.stat(path).st_size // PAGE - 1, 3):
        address = _page(path, os.O_RDWR, mmap.MAP_SHARED)
        _checked(libc.remap_file_pages(address, PAGE, 0, page, 0))
        if page != 3:
            print(_sum(address, PAGE), page * PAGE, flush=True)
    return address, PAGE


def _sum(address: int, length: int) -> str:
    return hashlib.sha256((ctypes.c_char * length).from_address(address)).hexdigest()


WAYS: dict[str, tuple[int, Callable[[str], tuple[int, int]]]] = {
    "private": (START, lambda path: _grown(path, os.O_RDONLY, mmap.MAP_PRIVATE)),
    "shared": (START, lambda path: _grown(path, os.O_RDONLY, mmap.MAP_SHARED)),
    "writable": (START, lambda path: _grown(path, os.O_RDWR, mmap.MAP_SHARED)),
    "moved": (START, lambda path: _grown(path, os.O_RDONLY, mmap.MAP_SHARED, _MAYMOVE | _FIXED)),
    "in place": (START, _grown_in_place),
    "by steps": (START, _grown_by_steps),
    "by a thread": (START, _grown_by_thread),
    "doubled": (START, lambda path: _grown(path, os.O_RDONLY, mmap.MAP_SHARED, old=0)),
    "inherited": (START, _grown_by_child),
    "elsewhere": (3 * PAGE, _elsewhere),
}
"""How, and where the last thing that it shows begins in the file."""
WRITING: dict[str, tuple[int, Callable[[str], tuple[int, int]]]] = {"written": (START, _written), "locked": (START, _locked)}
"""They change what they show."""


def main() -> None:
    start, way = (WAYS | WRITING)[sys.argv[1]]
    print(_sum(*way(sys.argv[2])), start, flush=True)


if __name__ == "__main__":
    main()
