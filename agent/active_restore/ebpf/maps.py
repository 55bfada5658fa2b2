"""BPF objects by the bare bpf() system call: maps, programs, pins, links. No libbpf; see bpf(2) and uapi/linux/bpf.h."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import TYPE_CHECKING, Self

from active_restore.linux.libc import check, libc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_LOOKUP, _UPDATE, _DELETE = 1, 2, 3
_CREATE, _PROG_LOAD, _OBJ_PIN, _OBJ_GET, _BY_ID, _INFO, _RAW_TRACEPOINT_OPEN, _BTF_LOAD = 0, 5, 6, 7, 14, 15, 17, 18
_TAKE, _LOOKUP_BATCH, _UPDATE_BATCH = 21, 24, 26
_INFO_BYTES = 128
_NAME_BYTES = 15
_LOG_BYTES = 1 << 18
_LOG_LINES = 12
ANY, NO_EXIST = 0, 1


def bpf(command: int, attributes: bytes, what: str) -> int:
    """bpf(2). Raises ``OSError`` with ``what`` as its file name."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return check(libc.syscall(_SYS_BPF, command, ctypes.byref(buffer), len(attributes)), what)


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in bpffs, where it outlives us."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), str(path))


def open_pin(path: Path) -> int:
    """A new descriptor of a pinned object; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), str(path))


_TYPE_ARRAY, _MMAPABLE, _INNER = 2, 1 << 10, 1 << 12


def create_words(count: int, name: str) -> int:
    """A descriptor of a new array of 64-bit words that may be mapped, and be an element of a map of such arrays."""
    attributes = struct.pack("=7I16s", _TYPE_ARRAY, 4, 8, count, _MMAPABLE | _INNER, 0, 0, name.encode())
    return bpf(_CREATE, attributes, name)


HASH, ARRAY, RING, INODE_STORAGE = 1, 2, 27, 28
NO_PREALLOC = 1


def create(kind: int, sizes: tuple[int, int], entries: int, name: str, flags: int = 0, inner: int = 0) -> Map:
    """A new map; ``sizes`` are those of keys and values in bytes; ``inner``: a map that its elements are like.

    Raises ``OSError``.
    """
    # The kernel wants to know that these are numbers of 32 bits (_TYPES).
    types = load_types() if kind == INODE_STORAGE else 0
    try:
        attributes = struct.pack(
            "=7I16s4I",
            *(kind, *sizes, entries, flags, inner, 0, name.encode()[:_NAME_BYTES]),
            *(0, types, int(types > 0), int(types > 0)),
        )
        return Map(bpf(_CREATE, attributes, name), name)
    finally:
        if types:
            os.close(types)


def load_types() -> int:
    """A descriptor of the smallest BTF that has a number of 32 bits (1) and two static functions (3, 4)."""
    names = b"\0int\0main\0back\0"
    types = struct.pack("=4I", 1, 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("=3I", 0, 13 << 24, 1)
    types += struct.pack("=6I", 5, 12 << 24, 2, 10, 12 << 24, 2)
    data = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
    buffer = ctypes.create_string_buffer(data, len(data))
    return bpf(_BTF_LOAD, struct.pack("=QQIII4x", ctypes.addressof(buffer), 0, len(data), 0, 0), "BTF")


def load_program(
    kind: int,
    code: bytes,
    name: str,
    licence: bytes = b"GPL",
    attach: tuple[int, int] = (0, 0),
    functions: tuple[int, bytes] = (0, b""),
) -> int:
    """A descriptor of a new program; the caller closes it.

    ``attach``: how, and to which function in the kernel's BTF. ``functions``: a descriptor of BTF, and where in the code its
    functions begin (``struct bpf_func_info``). Raises ``OSError``, with the end of the verifier's words in its file name.
    """
    try:
        return _load(kind, code, name, licence, attach, functions, 0)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        # Once more, for the verifier's own words: with these it takes longer.
        return _load(kind, code, name, licence, attach, functions, _LOG_BYTES)


def _load(
    kind: int, code: bytes, name: str, licence: bytes, attach: tuple[int, int], functions: tuple[int, bytes], log_bytes: int
) -> int:
    text, terms = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(licence)
    log, starts = ctypes.create_string_buffer(log_bytes + 1), ctypes.create_string_buffer(functions[1])
    log_at = ctypes.addressof(log) if log_bytes else 0
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII",
        *(kind, len(code) // 8, ctypes.addressof(text), ctypes.addressof(terms)),
        *(bool(log_bytes), log_bytes, log_at, 0, 0, name.encode()[:_NAME_BYTES], 0, attach[0]),
        *(functions[0], 8, ctypes.addressof(starts), len(functions[1]) // 8, 0, 0, 0, attach[1]),
    )
    try:
        return bpf(_PROG_LOAD, attributes, name)
    except OSError as error:
        said = log.value.decode(errors="replace").strip().splitlines()
        raise OSError(error.errno, error.strerror, "\n".join([name, *said[-_LOG_LINES:]])) from error


def attach(program: int, to: str, *, is_hook: bool = False) -> int:
    """A descriptor of the link of a program to a raw tracepoint, or to the function it was loaded for. Raises ``OSError``."""
    name = ctypes.create_string_buffer(to.encode())
    return bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", 0 if is_hook else ctypes.addressof(name), program), to)


def open_id(number: int) -> int:
    """A new descriptor of the map with this id; the caller closes it. Raises ``OSError``."""
    return bpf(_BY_ID, struct.pack("=III", number, 0, 0), f"map {number}")


def info(fd: int, what: str) -> bytes:
    """``struct bpf_map_info``, ``bpf_prog_info`` or ``bpf_link_info`` of a descriptor, by its kind."""
    buffer = ctypes.create_string_buffer(_INFO_BYTES)
    bpf(_INFO, struct.pack("=IIQ", fd, _INFO_BYTES, ctypes.addressof(buffer)), what)
    return buffer.raw


class Map:
    """A map. Keys and values are bytes of exactly ``key_bytes`` and ``value_bytes``; owns its descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        _type, _id, self.key_bytes, self.value_bytes, self.max_entries = struct.unpack_from("=5I", info(fd, name))

    @classmethod
    def pinned(cls, path: Path) -> Self:
        """The map with this pin. Raises ``OSError``."""
        return cls(open_pin(path), path.name)

    def close(self) -> None:
        """Give the descriptor back; pins and programs keep the map."""
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``."""
        return self._value(_LOOKUP, key)

    def take(self, key: bytes) -> bytes | None:
        """The value, removed in the same step, or ``None``. Hash maps, Linux 5.14."""
        return self._value(_TAKE, key)

    def put(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Store a value. Raises ``OSError``: E2BIG where the map is full, EEXIST or ENOENT by ``flags``."""
        value_buffer = ctypes.create_string_buffer(value, self.value_bytes)
        self._element(_UPDATE, key, ctypes.addressof(value_buffer), flags)

    def remove(self, key: bytes) -> bool:
        """Whether the key was there."""
        try:
            self._element(_DELETE, key, 0, 0)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def put_many(self, keys: bytes, values: bytes, count: int) -> None:
        """Store ``count`` keys and values that lie one behind the other. Raises ``OSError``."""
        if len(keys) != count * self.key_bytes or len(values) != count * self.value_bytes:
            raise ValueError(f"{self.name}: sizes of keys and values do not fit {count} entries")
        if count:
            keys_at, values_at = _address(keys), _address(values)
            bpf(_UPDATE_BATCH, struct.pack("=QQQQIIQQ", 0, 0, keys_at, values_at, count, self.fd, 0, 0), self.name)

    def items(self, chunk: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a hash map. Entries that come or go meanwhile may be missed."""
        chunk = min(chunk, self.max_entries)
        keys = ctypes.create_string_buffer(chunk * self.key_bytes)
        values = ctypes.create_string_buffer(chunk * self.value_bytes)
        token = ctypes.create_string_buffer(max(8, self.key_bytes))
        begin, done = 0, False
        while not done:
            count, done = self._lookup_batch(begin, ctypes.addressof(token), keys, values, chunk)
            all_keys, all_values = keys.raw, values.raw
            for index in range(count):
                yield (
                    all_keys[index * self.key_bytes : (index + 1) * self.key_bytes],
                    all_values[index * self.value_bytes : (index + 1) * self.value_bytes],
                )
            begin = ctypes.addressof(token)

    def _lookup_batch(
        self, begin: int, token: int, keys: ctypes.Array[ctypes.c_char], values: ctypes.Array[ctypes.c_char], chunk: int
    ) -> tuple[int, bool]:
        """(entries read, whether these were the last)."""
        keys_at, values_at = ctypes.addressof(keys), ctypes.addressof(values)
        attributes = struct.pack("=QQQQIIQQ", begin, token, keys_at, values_at, chunk, self.fd, 0, 0)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        result = libc.syscall(_SYS_BPF, _LOOKUP_BATCH, ctypes.byref(buffer), len(attributes))
        done = result < 0 and ctypes.get_errno() == errno.ENOENT
        if not done:
            check(result, self.name)
        (count,) = struct.unpack_from("=I", buffer, 32)
        return count, done

    def _value(self, command: int, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_bytes)
        try:
            self._element(command, key, ctypes.addressof(value), 0)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def _element(self, command: int, key: bytes, value_at: int, flags: int) -> None:
        if len(key) != self.key_bytes:
            raise ValueError(f"{self.name}: a key has {self.key_bytes} bytes, not {len(key)}")
        key_buffer = ctypes.create_string_buffer(key, len(key))
        bpf(command, struct.pack("=I4xQQQ", self.fd, ctypes.addressof(key_buffer), value_at, flags), self.name)


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
