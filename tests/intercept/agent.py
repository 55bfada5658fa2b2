"""An agent that does nothing but what it is told: ``agent.py INTERCEPTOR ROOT RESTORE_ID RUN_DIR ROWS arm|adopt``.

Faults go out as lines of JSON. Commands come in as words: ``release ROW``, ``refuse ROW ERRNO`` (all faults of that row
that were told), ``add ROW NAME``, ``laid``, ``hold ROW SIZE`` (by range), ``present ROW FIRST LAST`` (pages), ``touch ROW``,
``open PATH`` (from the passage), ``settled ROW...``, ``leave``, ``abandon ERRNO``, ``disarm``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from active_restore.config import RestoreOptions
from active_restore.intercept.base import Territory
from active_restore.intercept.choose import choose
from active_restore.linux import tasks
from active_restore.linux.handles import HandleMaker, open_handle
from active_restore.marker import MARKER, marker_prefix, marker_value
from active_restore.model import Fault, Gate, Ranged
from active_restore.presence import Presence

if TYPE_CHECKING:
    from active_restore.config import InterceptorName


class Puppet:
    """One interceptor and what it told."""

    def __init__(self, name: str, territory: Territory) -> None:
        options = RestoreOptions("", territory.root, interceptor=cast("InterceptorName", name))
        self.interceptor = choose(options, territory.restore_id)
        self.territory = territory
        self.faults: defaultdict[int, list[Fault]] = defaultdict(list)
        self.presences: dict[int, Presence] = {}
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []

    def serve(self) -> None:
        for _ in range(self.interceptor.serve_threads):
            thread = threading.Thread(target=self.interceptor.serve, args=(self.on_fault,))
            thread.start()
            self.threads.append(thread)

    def on_fault(self, fault: Fault) -> None:
        with self.lock:
            self.faults[fault.row].append(fault)
        intent = fault.intent.name.lower()
        handled = bool(fault.handle)
        who = tasks.describe(fault.task.tid)
        tell("fault", row=fault.row, intent=intent, tid=who.tid, pid=who.tgid, handle=handled, range=fault.range)

    def take(self, row: int) -> list[Fault]:
        with self.lock:
            return self.faults.pop(row, [])

    def by_range(self, word: str, row: int, *numbers: int) -> None:
        if word == "hold":
            for memory, _ in self.interceptor.hold_ranges([Ranged(row, numbers[0], b"")]):
                self.presences[row] = Presence(memory, numbers[0])
        elif word == "present":
            self.presences[row].add(numbers[0], numbers[1])
        elif word == "touch":
            self.presences[row].touch()

    def obey(self, word: str, rest: list[str]) -> bool:
        """``False`` at the end."""
        match word:
            case "release":
                row = int(rest[0])
                self.interceptor.release(row, Gate[rest[1]] if len(rest) > 1 else Gate.ALL, self.take(row))
            case "refuse":
                row = int(rest[0])
                self.interceptor.refuse(row, int(rest[1]), self.take(row))
            case "add":
                path = os.path.join(self.territory.root, rest[1])
                os.setxattr(path, MARKER, marker_value(self.territory.marker_prefix, int(rest[0])))
                self.interceptor.add([(int(rest[0]), os.stat(path).st_ino)])
            case "laid":
                self.interceptor.laid()
            case "open":
                handle = HandleMaker().of_name(os.fsencode(rest[0]))
                os.close(open_handle(self.interceptor.passage(), handle, os.O_RDWR))
            case "settled":
                self.interceptor.settled([int(word) for word in rest])
            case "leave":
                self.interceptor.leave()
            case "abandon":
                self.interceptor.abandon(int(rest[0]))
            case "disarm":
                self.interceptor.disarm()
            case _:
                self.by_range(word, *map(int, rest))
        tell("ok", word=word)
        return word not in ("leave", "abandon", "disarm")


def tell(event: str, **fields: Any) -> None:
    # One call: several threads tell, and a line must not have another in it.
    os.write(1, json.dumps({"event": event, **fields}).encode() + b"\n")


def main() -> None:
    name, root, restore_id, run_dir, rows, how = sys.argv[1:]
    territory = Territory(root, restore_id, marker_prefix(restore_id), run_dir, int(rows))
    puppet = Puppet(name, territory)
    if how == "adopt":
        tell("adopted", found=puppet.interceptor.adopt(territory))
    else:
        puppet.interceptor.arm(territory)
        tell("armed")
    puppet.serve()
    for line in sys.stdin:
        word, *rest = line.split()
        if not puppet.obey(word, rest):
            break
    for thread in puppet.threads:
        thread.join()
    tell("ended")


if __name__ == "__main__":
    main()
