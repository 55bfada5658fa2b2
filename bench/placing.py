"""Lay placeholders as the product does: ``python -m bench.placing TARGET COUNT``; prints the nanoseconds of laying.

The plan is made before the clock starts, as the list of the peer ``c/lay.c`` is read before it starts.
"""

from __future__ import annotations

import contextlib
import sys
import time

from active_restore.linux.process import collect_no_garbage
from active_restore.marker import marker_prefix
from active_restore.model import Kind, Node, Problem
from active_restore.placeholder import Laid, Layer
from bench.data import placeholder_list


def main() -> None:
    """Lay and print."""
    target, count = sys.argv[1], int(sys.argv[2])
    # As the process that lays does.
    collect_no_garbage()
    plan = list(enumerate(_nodes(count)))
    laid: list[Laid] = []
    with contextlib.closing(Layer(target, marker_prefix("0123456789abcdef"), print)) as layer:
        started = time.monotonic_ns()
        for item in layer.lay(plan):
            if isinstance(item, Problem):
                raise RuntimeError(item.detail)
            laid.append(item)
        print(time.monotonic_ns() - started)
    assert len(laid) == count


def _nodes(count: int) -> list[Node]:
    nodes = [Node(b"", Kind.DIR, 0o755)]
    for directory, files in placeholder_list(count):
        parent = directory.encode()
        nodes.append(Node(parent, Kind.DIR, 0o755))
        for name, size, mtime_ns in files:
            path = parent + b"/" + name.encode()
            nodes.append(Node(path, Kind.FILE, 0o644, mtime_ns=mtime_ns, atime_ns=mtime_ns, size=size, content=bytes(32)))
    return nodes


if __name__ == "__main__":
    main()
