"""Programs with libraries of their own, linked by the real linker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.tasks import run

if TYPE_CHECKING:
    from pathlib import Path


def chain(build: Path, out: Path, *options: str) -> None:
    """``program`` needs ``libone.so``, that ``libtwo.so``; all in ``out``, and it says ``two``. ``options`` go to each link."""
    build.mkdir()
    (build / "two.c").write_text('const char *two(void) { return "two"; }\n')
    (build / "one.c").write_text("const char *two(void); const char *one(void) { return two(); }\n")
    (build / "main.c").write_text("#include <stdio.h>\nconst char *one(void); int main(void) { puts(one()); return 0; }\n")
    shared = ("gcc", "-shared", "-fPIC", *options, f"-L{out}")
    run(*shared, "-o", out / "libtwo.so", build / "two.c")
    run(*shared, "-o", out / "libone.so", build / "one.c", "-ltwo")
    run("gcc", "-o", out / "program", build / "main.c", f"-L{out}", f"-Wl,-rpath-link,{out}", *options, "-lone")
