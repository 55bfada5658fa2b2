"""Ways to read ``argv[3]`` bytes of the file ``argv[1]`` from ``argv[2]`` on; each prints their SHA-256."""

from pathlib import Path

_HEAD = f"""
import hashlib, mmap
sys.path.insert(0, {str(Path(__file__).parent)!r})
import rings
p, start, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def say(data):
    print(hashlib.sha256(data).hexdigest())
"""
READERS = {
    "pread": _HEAD + "say(os.pread(os.open(p, os.O_RDONLY), length, start))",
    "read": _HEAD + "fd = os.open(p, os.O_RDWR)\nos.lseek(fd, start, 0)\nsay(os.read(fd, length))",
    "readv": _HEAD + "b = bytearray(length)\nos.preadv(os.open(p, os.O_RDONLY), [b], start)\nsay(b)",
    "direct": _HEAD
    + "low, high = start & ~4095, (start + length + 4095) & ~4095\nb = mmap.mmap(-1, high - low)\n"
    + "os.preadv(os.open(p, os.O_RDONLY | os.O_DIRECT), [b], low)\nsay(b[start - low:][:length])",
    "mmap": _HEAD
    + "low = start & ~4095\nm = mmap.mmap(os.open(p, os.O_RDONLY), start + length - low, mmap.MAP_SHARED, mmap.PROT_READ,"
    + " offset=low)\nsay(m[start - low:])",
    "sendfile": _HEAD
    + "out = os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)\nfd = os.open(p, os.O_RDONLY)\ndone = 0\n"
    + "while done < length: done += os.sendfile(out, fd, start + done, length - done)\nsay(os.pread(out, length, 0))",
    "copy_file_range": _HEAD
    + "out = os.open(os.path.dirname(p), os.O_TMPFILE | os.O_RDWR)\nfd = os.open(p, os.O_RDONLY)\ndone = 0\n"
    + "while done < length: done += os.copy_file_range(fd, out, length - done, start + done, done)\n"
    + "say(os.pread(out, length, 0))",
    "openat2": _HEAD + "say(os.pread(rings.open2(p, os.O_RDONLY), length, start))",
    "aio": _HEAD + "say(rings.Aio().read(os.open(p, os.O_RDONLY), length, start))",
    "io_uring": _HEAD + "say(rings.Ring('inline').read(os.open(p, os.O_RDONLY), length, start))",
    "worker of io_uring": _HEAD + "say(rings.Ring('worker').read(os.open(p, os.O_RDONLY), length, start))",
    "thread of io_uring": _HEAD + "say(rings.Ring('sqpoll').read(os.open(p, os.O_RDONLY), length, start))",
    "splice": _HEAD
    + "r, w = os.pipe()\nfd = os.open(p, os.O_RDONLY)\ndata = b''\n"
    + "while len(data) < length:\n    os.splice(fd, w, min(65536, length - len(data)), offset_src=start + len(data))\n"
    + "    data += os.read(r, 65536)\nsay(data)",
}
