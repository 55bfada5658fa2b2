"""What this process may do, and what Python has for it."""

from __future__ import annotations

import importlib
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from active_restore.cli.checks.finding import Finding
from active_restore.config import run_root, state_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3, "CAP_SYS_ADMIN": 21}
_MODULES = ("cryptography", "msgpack", "numpy", "obstore", "pydantic", "zstandard")
_MIN_FILES = 4096


def findings() -> Iterator[Finding]:
    """Privileges, limits, libraries, directories."""
    yield _privileges()
    yield _open_files()
    yield _libraries()
    yield _directory("state directory", state_root(), "what is settled is recorded there, so that a restore can be resumed")
    yield _directory("run directory", run_root(), "the keeper, which holds waiting tasks over a crash, is reached there")


def _privileges() -> Finding:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    return Finding(
        "privileges",
        not lacking,
        "any",
        f"uid {os.geteuid()}, " + (f"without {', '.join(lacking)}" if lacking else "all capabilities that are needed"),
        "holding tasks, reading inodes by handle and setting owners and trusted xattrs is for root",
        "run as root (sudo), in a container with these capabilities",
    )


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= _MIN_FILES
    return Finding(
        "open files",
        enough,
        "advised",
        f"RLIMIT_NOFILE {soft}, at most {hard}",
        "every waiting task costs the agent a descriptor",
        f"raise the hard limit to {_MIN_FILES} or more (LimitNOFILE= in systemd, ulimit -n)",
    )


def _libraries() -> Finding:
    failures = []
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failures.append(f"{name} ({error})")
    return Finding(
        "libraries",
        not failures,
        "any",
        ("cannot import " + "; ".join(failures)) if failures else ", ".join(_MODULES),
        "they decrypt, decompress and fetch",
        "install active-restore again into its environment: pip install active-restore",
    )


def _directory(name: str, path: Path, why: str) -> Finding:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    variable = "ACTIVE_RESTORE_STATE" if name.startswith("state") else "ACTIVE_RESTORE_RUN"
    return Finding(
        name,
        writable,
        "any",
        f"{path} " + ("can be written" if writable else f"cannot be made: {existing} cannot be written"),
        why,
        f"make it writable for root, or name another one in {variable}",
    )
