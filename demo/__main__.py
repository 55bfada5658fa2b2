"""``demo/run``: back up a disk, lose it, restore it as usual, restore it while it is used, compare."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from active_restore.config import InterceptorName
from bench.disk import filesystem_type, forget_page_cache, free_bytes, fresh_disk, quiet
from bench.orphans import end_orphans, take_charge
from bench.restoring import command, restoring
from demo.fingerprint import Fingerprint, differing, fingerprint
from demo.show import Show, megabytes
from demo.tree import ORDERS, make_tree
from demo.use import Answer, Uses

_DISK_BYTES = 12 << 30
_INODES = 600_000
_FEW_INODES = 60_000
_MUCH_MB = 1000
_SAID = {"database": "the database answers", "program": "a program out of the tree has run"}


class Demo:
    """The steps. ``scratch`` is a directory on a disk, ``sockets`` one with a short name."""

    def __init__(self, scratch: Path, sockets: Path, show: Show, budget_bytes: int, interceptor: str) -> None:
        self._scratch = scratch
        self._show = show
        self._interceptor = interceptor
        self._budget = budget_bytes
        self._inodes = _INODES if budget_bytes >= _MUCH_MB * 1_000_000 else _FEW_INODES
        self._repository = scratch / "backup"
        self._env = {
            **os.environ,
            "RESTIC_PASSWORD": "demonstration",
            "RESTIC_CACHE_DIR": str(scratch / "cache"),
            "ACTIVE_RESTORE_STATE": str(scratch / "state"),
            "ACTIVE_RESTORE_LOG": str(scratch / "log"),
            "ACTIVE_RESTORE_RUN": str(sockets),
        }

    def run(self) -> bool:
        """All of it; whether the restored tree is identical."""
        before = self._machine()
        usual, usual_end = self._as_usual()
        active, active_end, same = self._while_used(before)
        rows = [(_SAID[name], usual[name].seconds, active[name].seconds) for name in _SAID]
        self._show.table([*rows, ("everything is restored", usual_end, active_end)])
        return same

    def _machine(self) -> Fingerprint:
        """A disk with data, its backup, and its loss."""
        show = self._show
        show.step("A disk with data")
        with fresh_disk(self._scratch, "server", size_bytes=_DISK_BYTES, inodes=self._inodes) as disk:
            with show.moving("copying programs and documents of this machine, making a database"):
                make_tree(disk, self._budget)
            with show.moving("computing checksums, to compare with in the end"):
                before = fingerprint(disk)
            size = quiet("du", "--summarize", "--bytes", str(disk)).split()[0]
            show.line(f"{len(before):,} names, {megabytes(int(size))}; among them a database with {ORDERS:,} orders")
            show.step("A backup of it, with restic")
            self._tell("restic", "backup", ".", "--repo", str(self._repository))
            quiet("restic", "init", "--repo", str(self._repository), env=self._env)
            started = time.monotonic()
            with show.moving("restic works"):
                quiet("restic", "backup", ".", "--repo", str(self._repository), env=self._env, cwd=disk)
            show.line(f"done in {time.monotonic() - started:.1f} s")
        show.step("The disk is lost")
        show.line("its file system is gone; there is the backup, and a new, empty disk")
        return before

    def _as_usual(self) -> tuple[dict[str, Answer], float]:
        """Restore, then use."""
        self._show.step("Restored as usual: first everything comes back, then work begins")
        with fresh_disk(self._scratch, "usual", size_bytes=_DISK_BYTES, inodes=self._inodes) as disk:
            arguments = ("restic", "restore", "latest", "--repo", str(self._repository), "--target", str(disk))
            forget_page_cache()
            self._tell(*arguments)
            began = time.monotonic()
            with self._show.moving("restic works, nothing can be used"):
                quiet(*arguments, env=self._env)
            end = time.monotonic() - began
            self._show.line(f"{end:5.1f} s  everything is restored")
            uses = Uses(disk, began, self._answered)
            uses.wait()
        return uses.answers, end

    def _while_used(self, before: Fingerprint) -> tuple[dict[str, Answer], float, bool]:
        """Use, while it is restored; then compare."""
        self._show.step("Restored while in use: work begins, what it needs comes first, the rest follows")
        with fresh_disk(self._scratch, "active", size_bytes=_DISK_BYTES, inodes=self._inodes) as disk:
            forget_page_cache()
            source = f"restic:{self._repository}"
            options = () if self._interceptor == "auto" else ("--interceptor", self._interceptor)
            self._tell("active-restore", "restore", source, str(disk), *options)
            with self._show.moving("reading the list of files"):
                with restoring(source, str(disk), *options, env=self._env, on_event=self._event) as running:
                    running.wait_for("ready")
                    self._show.line(f"{running.at['ready']:5.1f} s  every file is there by name: ready")
                    uses = Uses(disk, running.started, self._answered)
                    end = running.finish()
                    uses.wait()
            self._show.line(
                f"{end:5.1f} s  everything is restored, safe on disk, and nothing of active-restore is left running"
            )
            return uses.answers, end, self._compare(disk, before)

    def _compare(self, disk: Path, before: Fingerprint) -> bool:
        self._show.step("Is it the same?")
        source = f"restic:{self._repository}"
        self._tell("active-restore", "verify", source, str(disk))
        with self._show.moving("active-restore compares with the backup"):
            verdict = quiet(*command("verify", source, str(disk)), env=self._env)
        self._show.line(verdict.strip())
        with self._show.moving("computing checksums again"):
            different = differing(before, fingerprint(disk))
        if different:
            self._show.line(f"[red]{len(different)} names differ from the lost disk[/], the first: {different[:3]}")
        else:
            self._show.line(f"all {len(before):,} names of the lost disk: content, owner, permissions and times are identical")
        return not different

    def _tell(self, *words: str) -> None:
        self._show.command(shlex.join(words))

    def _answered(self, name: str, answer: Answer) -> None:
        self._show.line(f"{answer.seconds:5.1f} s  [green]{_SAID[name]}[/]: {answer.text}")

    def _event(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event.get("bytes_total"):
            done, total = event["bytes_done"], event["bytes_total"]
            self._show.progress(
                done, total, f"{megabytes(done)} of {megabytes(total)} restored, {event['faults']} waits served"
            )


def main() -> int:
    """Run it; 0 when the restored tree is identical."""
    arguments = _parser().parse_args()
    if os.geteuid():
        print("demo: must be run as root (it makes file systems of its own)", file=sys.stderr)
        return 1
    take_charge()
    scratch = Path(tempfile.mkdtemp(prefix="active-restore-demo.", dir=arguments.scratch))
    # The name of a socket must be short, wherever the scratch directory is.
    sockets = Path(tempfile.mkdtemp(prefix="ar-", dir="/run"))
    try:
        budget = arguments.size_mb * 1_000_000
        wrong = _unfit(scratch, budget)
        if wrong:
            print(f"demo: {wrong}", file=sys.stderr)
            return 1
        return 0 if Demo(scratch, sockets, Show(), budget, arguments.interceptor).run() else 1
    except KeyboardInterrupt:
        print("demo: interrupted, everything is taken away again", file=sys.stderr)
        return 130
    finally:
        end_orphans()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo/run", description="Lose a disk, and restore it while it is in use.")
    parser.add_argument("--scratch", default="/var/tmp", metavar="DIR", help="a directory on a disk (default: /var/tmp)")
    parser.add_argument("--size-mb", type=int, default=1500, metavar="MB", help="how much data at most (default: 1500)")
    parser.add_argument(
        "--interceptor", choices=get_args(InterceptorName), default="auto", help="what holds tasks (default: auto)"
    )
    return parser


def _unfit(scratch: Path, budget_bytes: int) -> str:
    """Why the scratch directory will not do, or nothing."""
    kind = filesystem_type(scratch)
    needed = 3 * budget_bytes + (1 << 30)
    if kind in ("tmpfs", "ramfs", "overlayfs"):
        return f"{scratch.parent} is on {kind}: name a directory on a disk with --scratch"
    if free_bytes(scratch) < needed:
        return f"{scratch.parent} has less than {needed >> 30} GiB free: name another directory with --scratch"
    return ""


if __name__ == "__main__":
    sys.exit(main())
