"""Files that may be changing right now, without any event until their writer lets go of them.

Source: proc(5), ``fdinfo`` (flags in octal) and ``maps``; ``/sys/block/loop*/loop/backing_file``; mountinfo's ``upperdir=``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def writers(directory: bytes) -> Iterator[bytes]:
    """Paths relative to ``directory``: open for writing, mapped to be written to, behind a loop device, above an overlay.

    Of processes that end meanwhile nothing is told: the kernel has told of their files.
    """
    above = directory.rstrip(b"/") + b"/"
    for path in (*_of_processes(above), *_behind_loops(), *_of_overlays(above)):
        if path.startswith(above):
            yield path.removeprefix(above)


def _of_processes(above: bytes) -> Iterator[bytes]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield from _open(name, above)
            with contextlib.suppress(OSError):
                yield from _mapped(name)


def _open(process: str, above: bytes) -> Iterator[bytes]:
    for number in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):
            path = os.fsencode(os.readlink(f"/proc/{process}/fd/{number}"))
            if path.startswith(above) and _writes(Path(f"/proc/{process}/fdinfo/{number}").read_text()):
                yield path


def _writes(told: str) -> bool:
    flags = next((line.split()[1] for line in told.splitlines() if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _mapped(process: str) -> Iterator[bytes]:
    with open(f"/proc/{process}/maps", "rb") as lines:
        for line in lines:
            words = line.split(None, 5)
            if len(words) == 6 and words[1][1:2] == b"w" and words[1][3:4] == b"s":
                yield words[5].rstrip(b"\n").replace(b"\\012", b"\n")


def _behind_loops() -> Iterator[bytes]:
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            yield place.read_bytes().rstrip(b"\n")


def _of_overlays(above: bytes) -> Iterator[bytes]:
    """Older kernels do not tell of writes to upper directories."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        for option in line.rpartition(b" ")[2].split(b","):
            if option.startswith(b"upperdir="):
                upper = option.removeprefix(b"upperdir=")
                if upper.startswith(above):
                    for folder, folders, files in os.walk(upper):
                        for name in folders + files:
                            yield os.path.join(folder, name)
