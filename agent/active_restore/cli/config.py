"""``active-restore config``: check the configuration file, or show what is in force."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from active_restore.cli import command
from active_restore.control.names import shown
from active_restore.settings import masked
from active_restore.settings.file import SettingsError, load, settings_path

if TYPE_CHECKING:
    import argparse

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "config", "check the configuration file, or show what is in force", run)
    parser.add_argument("action", choices=("check", "show"), help="check: say all that is wrong; show: every key and its value")
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help=f"default: {settings_path()}")
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check or show."""
    path: Path = arguments.file or settings_path()
    try:
        settings = load(path)
    except SettingsError as error:
        for line in error.lines[1:]:
            print(f"active-restore: error: {shown(line)}", file=sys.stderr)
        # It advises to run what is being run.
        error.hint = ""
        raise
    if arguments.action == "check":
        there = "is fine" if path.exists() else "is not there: defaults are in force"
        print(
            json.dumps({"event": "config", "file": str(path), "ok": True}) if arguments.json else f"{shown(str(path))} {there}"
        )
        return 0
    tables = masked.tables(settings)
    print(json.dumps(tables) if arguments.json else "\n".join(_lines(tables)))
    return 0


def _lines(tables: dict[str, dict[str, Any]]) -> list[str]:
    """As TOML; a key without a value is a comment."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [
            f"{key} = {json.dumps(value)}" if value is not None else f"# {key} is not set" for key, value in table.items()
        ]
    return lines[1:]
