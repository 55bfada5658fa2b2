"""events.h is read as the C compiler reads it, and nothing outside the subset slips through."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi

if TYPE_CHECKING:
    from pathlib import Path


def test_layouts_are_the_compilers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed"
    declared = abi.load()
    prints = [f'printf("{name} %zu\\n", sizeof(struct {name}));' for name in declared.structs]
    for name, layout in declared.structs.items():
        prints += [f'printf("{name}.{member} %zu\\n", offsetof(struct {name}, {member}));' for member in layout.names]
    prints += [f'printf("{name} %lld\\n", (long long){name});' for name in declared.constants]
    source = tmp_path / "print.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        "typedef uint32_t u32; typedef uint64_t u64; typedef int64_t s64;\n"
        f'#include "{abi.source_dir() / "events.h"}"\n'
        f"int main(void) {{ {''.join(prints)} return 0; }}\n"
    )
    subprocess.run([compiler, "-o", tmp_path / "print", source], check=True)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    for line in printed.splitlines():
        name, _, value = line.rpartition(" ")
        struct_name, _, member = name.partition(".")
        if name in declared.constants:
            assert declared.constants[name] == int(value), name
        elif member:
            layout = declared.structs[struct_name]
            zeros = {other: 0 if other != member else 0x7F for other in layout.names if _is_number(layout, other)}
            if member in zeros:
                assert layout.pack(**zeros).index(b"\x7f") == int(value), name
        else:
            assert declared.structs[name].packed.size == int(value), name


def _is_number(layout: abi.Layout, member: str) -> bool:
    return not layout.lengths[layout.names.index(member)] and member not in layout.texts


def test_pack_and_unpack() -> None:
    wait = abi.load().structs["wait"]
    members = wait.unpack(wait.pack(ino=1 << 40, tid=7, comm=b"cat"))
    assert (members["ino"], members["tid"], members["comm"], members["tgid"]) == (1 << 40, 7, b"cat".ljust(16, b"\0"), 0)
    with pytest.raises(TypeError, match="unknown members: inode"):
        wait.pack(inode=1)


@pytest.mark.parametrize(
    "header",
    ["struct a { u32 x; u64 y; };", "struct a { long x; };", "struct a { u32 x : 3; };", "struct a { u64 x; u32 y; };"],
    ids=["gap inside", "type of unknown size", "bit-field", "gap at the end"],
)
def test_outside_the_subset(header: str) -> None:
    with pytest.raises(ValueError, match="struct a"):
        abi.parse(header)
