"""The data of the demonstration: real programs and documents of this machine, and a database of a million orders."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from bench.disk import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE = "srv/orders.sqlite"
PROGRAM = "srv/report.py"
ORDERS = 1_000_000
_CUSTOMERS = 10_000
_SEED = 20_260_101
_ITEMS = ("anvil", "rope", "lamp", "kettle", "saw", "ladder", "bucket", "clock", "chair", "paint")
# Links of a Debian root directory, so that programs find their parts when the tree is their root.
_ROOT_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


def make_tree(root: Path, budget_bytes: int) -> None:
    """Fill ``root``: what the program needs, the database, and as much of this machine as ``budget_bytes`` allows."""
    for name, destination in _ROOT_LINKS.items():
        (root / destination).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(destination)
    for path in _interpreter():
        _copy(path, root)
    make_database(root / DATABASE)
    shutil.copy(Path(__file__).parent / "report.py", root / PROGRAM)
    spent = _size(root)
    for candidate in _candidates():
        size = _size(candidate)
        if spent + size <= budget_bytes:
            _copy(candidate, root)
            spent += size


def make_database(path: Path) -> None:
    """The same million orders on every machine."""
    rng = random.Random(_SEED)
    path.parent.mkdir(exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE orders(number INTEGER PRIMARY KEY, customer INTEGER, item TEXT, pieces INTEGER, note TEXT)")
    db.executemany("INSERT INTO orders VALUES(?,?,?,?,?)", _orders(rng))
    db.execute("CREATE INDEX orders_of_customer ON orders(customer)")
    db.commit()
    db.close()


def _orders(rng: random.Random) -> Iterator[tuple[int, int, str, int, str]]:
    for number in range(ORDERS):
        drawn = rng.getrandbits(96)
        yield number, drawn % _CUSTOMERS, _ITEMS[drawn >> 20 & 7], 1 + (drawn >> 24 & 15), f"{drawn >> 32:016x}"


def _interpreter() -> list[Path]:
    """The Python of this machine with its library: the parts of the program that will be run from the restored tree."""
    binary = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    extensions = sorted((library / "lib-dynload").glob("*.so"))
    return [binary, library, *_shared_libraries([binary, *extensions])]


def _shared_libraries(binaries: list[Path]) -> list[Path]:
    printed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    return [Path(path) for path in sorted(set(re.findall(r"(?:=> |^\t)(/\S+) \(", printed, re.MULTILINE)))]


def _candidates() -> list[Path]:
    """More of this machine, in the order in which it is taken: libraries and programs, then documents, folder by folder."""
    usr = Path("/usr")
    multiarch = str(sysconfig.get_config_var("MULTIARCH"))
    names = (f"lib/{multiarch}", "bin", "lib/python3", "lib/git-core", "lib/gcc", "sbin")
    folders = sorted(path for path in (usr / "share").iterdir() if path.is_dir() and not path.is_symlink())
    return [*(usr / name for name in names if (usr / name).is_dir()), *folders]


def _size(path: Path) -> int:
    printed = quiet("du", "--summarize", "--bytes", "--one-file-system", str(path))
    return int(printed.split()[0])


def _copy(path: Path, root: Path) -> None:
    """Copy to the same place below ``root``, with all metadata; a link together with what it leads to."""
    real_parent = Path(os.path.realpath(path.parent))
    for found in {real_parent / path.name, Path(os.path.realpath(path))}:
        parent = root / found.parent.relative_to("/")
        parent.mkdir(parents=True, exist_ok=True)
        quiet("cp", "--archive", "--one-file-system", str(found), str(parent))
