"""Ways to read ``argv[3]`` bytes of the file ``argv[1]`` from ``argv[2]`` on; each prints their SHA-256."""

_HEAD = """
import hashlib, mmap
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
    "splice": _HEAD
    + "r, w = os.pipe()\nfd = os.open(p, os.O_RDONLY)\ndata = b''\n"
    + "while len(data) < length:\n    os.splice(fd, w, min(65536, length - len(data)), offset_src=start + len(data))\n"
    + "    data += os.read(r, 65536)\nsay(data)",
}
