"""``active-restore install``: systemd units and a commented configuration file, here or in an image."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import active_restore
from active_restore.cli import command
from active_restore.control.names import shown
from active_restore.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands

UNITS = ("active-restore.service", "active-restore@.service", "active-restore-relax.service")
_COMMAND = "/usr/bin/active-restore"
_UNIT_DIRECTORY = "etc/systemd/system"
_SETTINGS = "etc/active-restore/agent.toml"
_WANTED_BY = "local-fs.target.wants"


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "put systemd units and a commented configuration file in place"
    parser = command.declare(commands, common, "install", summary, run)
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="of an image (default: this machine)")
    parser.add_argument("--command", metavar="PATH", help=f"the command that the units start (default in images: {_COMMAND})")
    parser.add_argument("--enable", action="store_true", help="let the service start with the machine")


def run(arguments: argparse.Namespace) -> int:
    """Install; an existing configuration file is kept."""
    root: Path = arguments.root
    if not root.is_dir():
        raise UsageError(f"{shown(str(root))} is no directory", "name the root of an image")
    executable = arguments.command or (_COMMAND if root.resolve() != Path("/") else os.path.abspath(sys.argv[0]))
    if not os.path.isabs(executable) or not executable.isprintable() or set(executable) & set(" %\\\"'"):
        raise UsageError(
            f"{shown(executable)} cannot be named in a unit", "give an absolute path without spaces with --command"
        )
    directory = root / _UNIT_DIRECTORY
    for name in UNITS:
        _write(directory / name, _unit(name, executable), 0o644)
    settings = root / _SETTINGS
    if settings.exists():
        print(f"{shown(str(settings))} is kept")
    else:
        _write(settings, packaged("agent.toml"), 0o600)
    if arguments.enable:
        _enable(directory)
    if root.resolve() == Path("/"):
        print("now: systemctl daemon-reload && systemctl enable --now active-restore")
    return 0


def _unit(name: str, executable: str) -> str:
    """A unit that starts this command. It starts before local file systems are there: what it is on must be mounted."""
    text = packaged(name)
    if executable == _COMMAND:
        return text
    places = {executable}
    if executable == os.path.abspath(sys.argv[0]):
        places |= {sys.prefix, os.path.dirname(active_restore.__file__)}
    needs = " ".join(sorted(place for place in places if place.isprintable() and " " not in place))
    text = text.replace("\n[Service]", f"RequiresMountsFor={needs}\n\n[Service]", 1)
    return text.replace(f"ExecStart={_COMMAND} ", f"ExecStart={executable} ")


def packaged(name: str) -> str:
    """A file of the package's ``systemd`` folder."""
    return resources.files("active_restore").joinpath("systemd", name).read_text()


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    print(shown(str(path)))


def _enable(directory: Path) -> None:
    """What ``systemctl enable`` does; there may be no systemd that runs."""
    link = directory / _WANTED_BY / UNITS[0]
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"/{_UNIT_DIRECTORY}/{UNITS[0]}")
    print(shown(str(link)))
