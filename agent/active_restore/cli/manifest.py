"""``active-restore manifest``: write down the SHA-256 of every file, so that a plain copy can be verified like a backup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from active_restore.cli import command
from active_restore.cli.quantities import count
from active_restore.control.names import shown
from active_restore.errors import ContentError, NoRepository
from active_restore.model import FileRef, Kind, Problem
from active_restore.source import folder, manifest
from active_restore.source.dir import Content, DirReader

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from active_restore.cli.command import Subcommands


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    summary = "record the SHA-256 of every file of a directory, which dir: sources verify from then on"
    parser = command.declare(commands, common, "manifest", summary, run)
    parser.add_argument("directory", metavar="DIR", help="the directory that will be a source")


def run(arguments: argparse.Namespace) -> int:
    """Write the manifest."""
    directory = command.absolute(arguments.directory)
    digests = list(_digests(directory))
    path = manifest.save(directory, digests)
    print(f"{shown(path)}: {count(len(digests), 'file')}")
    return 0


def _digests(directory: str) -> Iterator[tuple[bytes, bytes]]:
    """Path and SHA-256 of every regular file. Raises ``ContentError`` for one that changes meanwhile or cannot be read."""
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoRepository(f"{shown(directory)}: {error.strerror}", "name a directory that can be read") from error
    reader = DirReader(directory)
    try:
        for item in folder.walk(root):
            if isinstance(item, Problem):
                raise ContentError(f"{shown(item.path)}: {item.detail}", "a manifest has to hold every file")
            node = item.node
            if node.kind is Kind.FILE:
                ref = FileRef(node.path, node.size, node.mtime_ns, Content(item.inode, b"", b"").pack())
                pieces = ((piece.offset, bytes(piece.data)) for piece in reader.read(ref))
                yield node.path, manifest.digest_stream(pieces, node.size)
    finally:
        reader.close()
        os.close(root)
