"""What users do to files, as lines of Python for a task: ``p`` is the path of a file, ``q`` a free name beside it.

Done to a placeholder, each must have the very outcome that it has when it is done to a plain copy of the file.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from active_restore.marker import MARKER

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = "p = sys.argv[1]; q = p + '.new'\n"
_CAPABILITY = "bytes.fromhex('0100000200040000000000000000000000000000')"
ACTIONS = {
    "read": "open(p, 'rb').read()",
    "write only": "fd = os.open(p, os.O_WRONLY); os.pwrite(fd, b'mine', 10)",
    "read and write": "fd = os.open(p, os.O_RDWR); assert os.read(fd, 4); os.write(fd, b'mine')",
    "append": "fd = os.open(p, os.O_WRONLY | os.O_APPEND); os.write(fd, b'mine')",
    "open truncating": "fd = os.open(p, os.O_WRONLY | os.O_TRUNC); os.write(fd, b'mine')",
    "open truncating, write nothing": "os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))",
    "open truncating for reading": "os.close(os.open(p, os.O_RDONLY | os.O_TRUNC))",
    "create truncating": "open(p, 'wb').write(b'mine' * 5000)",
    "creat(2)": "import ctypes; fd = ctypes.CDLL(None).creat(os.fsencode(p), 0o600); os.write(fd, b'mine')",
    "truncate shorter": "os.truncate(p, 1000)",
    "truncate longer": "os.truncate(p, 200_000)",
    "truncate to nothing": "os.truncate(p, 0)",
    "truncate to nothing and back": "size = os.stat(p).st_size; os.truncate(p, 0); os.truncate(p, size)",
    "ftruncate": "fd = os.open(p, os.O_RDWR); os.ftruncate(fd, 77)",
    "fallocate": "fd = os.open(p, os.O_RDWR); os.posix_fallocate(fd, 300_000, 10)",
    "rename": "os.rename(p, q)",
    "rename, then write": "os.rename(p, q); fd = os.open(q, os.O_RDWR); os.pwrite(fd, b'mine', 3)",
    "rename over": "open(q, 'wb').write(b'new content'); os.rename(q, p)",
    "rename onto another file": "open(q, 'wb').write(b'victim'); os.rename(p, q)",
    "unlink": "os.unlink(p)",
    "unlink and make anew": "os.unlink(p); open(p, 'wb').write(b'other')",
    "link": "os.link(p, q)",
    "link, then unlink": "os.link(p, q); os.unlink(p)",
    "link, then write": "os.link(p, q); fd = os.open(q, os.O_WRONLY); os.write(fd, b'mine')",
    "chmod": "os.chmod(p, 0o4711)",
    "chown": "os.chown(p, 1234, 4321)",
    "utime": "os.utime(p, ns=(1_000_000_001, 2_000_000_002))",
    "utime, then read": "os.utime(p, ns=(1_000_000_001, 2_000_000_002)); open(p, 'rb').read()",
    "touch": "os.utime(p)",
    "chmod, utime, chown": "os.chmod(p, 0o640); os.utime(p, ns=(5, 6)); os.chown(p, 7, 8)",
    "setxattr": "os.setxattr(p, 'user.mine', b'x'); os.setxattr(p, 'trusted.mine', b'y')",
    "setcap": f"os.setxattr(p, 'security.capability', {_CAPABILITY})",
    "setcap, then read": f"os.setxattr(p, 'security.capability', {_CAPABILITY}); open(p, 'rb').read()",
    "mmap shared": (
        "import mmap\nfd = os.open(p, os.O_RDWR)\nm = mmap.mmap(fd, 0)\nassert m[:4] != bytes(4)\nm[20:24] = b'mine'\nm.flush()"
    ),
    "mmap private": "import mmap\nm = mmap.mmap(os.open(p, os.O_RDONLY), 0, mmap.MAP_PRIVATE)\nassert m[:4] != bytes(4)",
    "write through proc": "fd = os.open(p, os.O_RDONLY); fd = os.open(f'/proc/self/fd/{fd}', os.O_RDWR); os.write(fd, b'mine')",
    "write through O_PATH": "fd = os.open(p, os.O_PATH); fd = os.open(f'/proc/self/fd/{fd}', os.O_RDWR); os.write(fd, b'mine')",
    "truncate through O_PATH": "fd = os.open(p, os.O_PATH); os.truncate(f'/proc/self/fd/{fd}', 5)",
    "nothing": "",
}


def outcome(path: Path, began_ns: int) -> dict[str, Any] | None:
    """All that a user can see of a file; a time since ``began_ns`` is only said to be new."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path) if name != MARKER}
    return {
        "content": path.read_bytes() if stat.S_ISREG(found.st_mode) else None,
        "mode": oct(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
        "links": found.st_nlink,
        "mtime": "new" if found.st_mtime_ns >= began_ns else found.st_mtime_ns,
        "xattrs": attributes,
    }
