"""What binaries and scripts need: of real ones as the tools of the system see it, of damaged ones nothing."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from active_restore.predict import elf, loader
from tests.kernel.tasks import run
from tests.predict.programs import chain

if TYPE_CHECKING:
    from collections.abc import Sequence

SHELL = Path("/bin/sh").resolve()


def needs(path: Path) -> elf.Needs | None:
    with path.open("rb") as file:
        return elf.needs(file)


@pytest.mark.parametrize(
    ("options", "rpath", "runpath"),
    [
        (("-Wl,-rpath,$ORIGIN/lib:/opt/lib", "-Wl,--disable-new-dtags"), (b"$ORIGIN/lib", b"/opt/lib"), ()),
        (("-Wl,-rpath,$ORIGIN", "-Wl,--enable-new-dtags"), (), (b"$ORIGIN",)),
        ((), (), ()),
    ],
    ids=["rpath", "runpath", "none"],
)
def test_what_the_linker_wrote(
    tmp_path: Path, options: Sequence[str], rpath: tuple[bytes, ...], runpath: tuple[bytes, ...]
) -> None:
    chain(tmp_path / "build", tmp_path, *options)
    program, library = needs(tmp_path / "program"), needs(tmp_path / "libone.so")
    assert program is not None
    assert library is not None
    assert program.libraries == (b"libone.so", b"libc.so.6")
    assert program.interpreter.startswith(b"/lib")
    assert (program.rpath, program.runpath) == (rpath, runpath)
    assert (library.libraries[0], library.interpreter) == (b"libtwo.so", b"")


def test_stripped_of_its_sections_it_says_the_same(tmp_path: Path) -> None:
    whole = needs(SHELL)
    data = bytearray(SHELL.read_bytes())
    data[0x28:0x30] = bytes(8)  # e_shoff
    assert whole is not None
    assert elf.needs(io.BytesIO(data)) == whole


def test_a_static_binary_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    run("gcc", "-static", "-nostdlib", "-nostartfiles", "-Wl,-emain", "-o", tmp_path / "static", tmp_path / "main.c")
    assert needs(tmp_path / "static") is None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=30), st.integers(0, 4096))
def test_damage_is_no_error(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SHELL.read_bytes())
    for at, value in changes:
        data[at] = value
    elf.needs(io.BytesIO(data))
    elf.needs(io.BytesIO(data[:length]))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"#!/bin/sh\necho\n", [b"/bin/sh"]),
        (b"#! /usr/bin/env -S python3 -u\n", [b"/usr/bin/env", b"-S", b"python3", b"-u"]),
        (b"#!\n", []),
        (b"\x7fELF", []),
        (b"", []),
    ],
    ids=["plain", "env", "empty", "elf", "nothing"],
)
def test_scripts(head: bytes, words: list[bytes]) -> None:
    assert elf.script_interpreter(head) == words


def test_the_cache_says_what_ldconfig_says() -> None:
    cache = loader.parse_cache(Path("/etc/ld.so.cache").read_bytes())
    told = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    expected = {line.rpartition("=> ")[2] for line in told.splitlines() if "=>" in line}
    assert {path.decode() for paths in cache.values() for path in paths} == expected
    binary = needs(SHELL)
    assert binary is not None
    for name in binary.libraries:
        assert cache[(name, 0x0300 if binary.machine == "EM_X86_64" else 0x0A00)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_cache_is_told(data: st.DataObject) -> None:
    whole = bytearray(Path("/etc/ld.so.cache").read_bytes())
    for at in data.draw(st.lists(st.integers(0, min(len(whole), 4096) - 1), max_size=20)):
        whole[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        loader.parse_cache(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
