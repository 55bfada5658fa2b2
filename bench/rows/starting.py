"""What a recorded order is worth to a program that starts over a restore: PostgreSQL, a Python web application, a shell.

Each is started as soon as a restore is ready: of a snapshot that carries the order of an earlier start (ours), and of one
that does not (libraries are guessed there, too). Told are faults, the time that was waited for them, and when it answered.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.data import make_files
from bench.disk import quiet
from bench.postgres import Cluster, binaries, install
from bench.restoring import command, restoring
from bench.row import row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.rig import Repository, Rig
    from bench.row import Row

_BALLAST_FILES = 400
_BALLAST_SIZE = 256 << 10
_ANSWER = "SELECT count(*) FROM pg_class, pg_proc"
_WEB = """
import http.server, json, threading, urllib.request, sqlite3, decimal, email, xml.etree.ElementTree
import cryptography.x509, msgpack, pydantic, rich.console
server = http.server.HTTPServer(("127.0.0.1", 0), type("Handler", (http.server.BaseHTTPRequestHandler,), {
    "do_GET": lambda self: (self.send_response(200), self.end_headers(), self.wfile.write(b"{}")),
    "log_message": lambda *_: None}))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read())
"""
_PACKAGES = (
    "cryptography",
    "_cffi*",
    "msgpack",
    "pydantic*",
    "annotated_types",
    "typing_*",
    "rich",
    "markdown_it",
    "mdurl",
    "pygments",
)


class Program(NamedTuple):
    """``make(tree)`` installs it below a directory, ``start(tree)`` starts it there and has an answer when it returns."""

    name: str
    make: Callable[[Path], None]
    start: Callable[[Path], None]


def measure(rig: Rig) -> Iterator[Row]:
    """Faults, waits and seconds with the order (ours) against without (peer)."""
    if rig.scale.cold:
        install()
    rig.scratch.chmod(0o755)
    rig.sockets.chmod(0o755)
    for program in _programs(rig):
        tree = rig.scratch / f"start-{program.name}"
        rig.say(f"installing {program.name}")
        program.make(tree)
        make_files(
            tree / "a-ballast", [_BALLAST_SIZE] * (_BALLAST_FILES if rig.scale.rounds > 1 else _BALLAST_FILES // 10), seed=1
        )
        without = rig.backup(f"start-{program.name}", tree)
        files = _record(rig, program, tree)
        ordered = rig.backup(f"start-{program.name}-ordered", tree)
        quiet("rm", "-r", str(tree))
        found: dict[str, dict[str, list[float]]] = {"with": defaultdict(list), "without": defaultdict(list)}
        for number in range(rig.scale.rounds):
            rig.say(f"{program.name}, round {number + 1} of {rig.scale.rounds}: {files} files were recorded")
            _start(rig, program, without, found["without"])
            _start(rig, program, ordered, found["with"])
        for what, unit in (("faults", ""), ("waited", "ms"), ("started", "s"), ("from the first second of the restore", "s")):
            yield row(f"start of {program.name}: {what}", unit, found["with"][what], ("no order", found["without"][what]))


def _programs(rig: Rig) -> Iterator[Program]:
    yield Program("a shell", _make_shell, lambda tree: _chroot(tree, "/bin/bash", "-lc", "ls /etc | sort | head -1"))
    if rig.scale.rounds == 1:
        return
    yield Program("a Python web application", _make_python, lambda tree: _chroot(tree, "/usr/bin/python3", "-c", _WEB))
    if binaries() is not None:
        yield Program("PostgreSQL", lambda tree: Cluster(tree, rig.sockets / "pg").make(1), lambda tree: _ask(rig, tree))


def _ask(rig: Rig, tree: Path) -> None:
    cluster = Cluster(tree, rig.sockets / "pg")
    with cluster.running():
        cluster.ask(_ANSWER)


def _chroot(tree: Path, *argv: str) -> None:
    quiet("chroot", str(tree), *argv)


def _make_shell(tree: Path) -> None:
    for name in ("bash", "ls", "sort", "head", "id", "cat"):
        _copy_program(tree, Path("/bin") / name)
    shutil.copytree("/etc", tree / "etc", symlinks=True, ignore=shutil.ignore_patterns("shadow*", "ssl", "alternatives"))


def _make_python(tree: Path) -> None:
    _make_shell(tree)
    _copy_program(tree, Path("/usr/bin/python3").resolve())
    (tree / "usr/bin/python3").symlink_to(Path("/usr/bin/python3").resolve().name)
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": "/usr"}))
    ignored = shutil.ignore_patterns("test", "tests", "idlelib")
    shutil.copytree(library, tree / library.relative_to("/"), ignore=ignored, symlinks=True, dirs_exist_ok=True)
    packages = tree / "usr/lib/python3/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    for pattern in _PACKAGES:
        for found in (path for folder in sys.path if folder.endswith("-packages") for path in Path(folder).glob(pattern)):
            if found.is_dir():
                shutil.copytree(found, packages / found.name, ignore=ignored, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(found, packages)
    for module in [*(tree / library.relative_to("/")).rglob("*.so"), *packages.rglob("*.so")]:
        _copy_libraries(tree, module)


def _copy_program(tree: Path, path: Path) -> None:
    _copy(tree, path)
    _copy_libraries(tree, path)


def _copy_libraries(tree: Path, path: Path) -> None:
    told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    for word in told.split():
        if word.startswith("/") and Path(word).is_file():
            _copy(tree, Path(word))


def _copy(tree: Path, path: Path) -> None:
    to = tree / path.relative_to("/")
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)


def _record(rig: Rig, program: Program, tree: Path) -> int:
    """Run it once while its opens are recorded; how many files that were."""
    recording = command("record", "start", str(tree))
    subprocess.run(recording, check=True, stdout=subprocess.DEVNULL, env=rig.env)
    try:
        program.start(tree)
    finally:
        subprocess.run(command("record", "stop", str(tree)), check=True, stdout=subprocess.DEVNULL, env=rig.env)
    shown = rig.output(*command("record", "show", str(tree), "--json"))
    return len(shown.splitlines())


def _start(rig: Rig, program: Program, repository: Repository, found: dict[str, list[float]]) -> None:
    """Start it as soon as the restore is ready."""
    waits: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "fault":
            waits.append(event["waited_ms"])

    with rig.disk() as target, contextlib.ExitStack() as stack:
        rig.cold()
        running = stack.enter_context(restoring(repository.source, str(target), env=rig.env, on_event=listen))
        running.wait_for("ready")
        found["started"].append(_seconds(program, target))
        # A head start is no gift: it comes before "ready".
        found["from the first second of the restore"].append(time.monotonic() - running.started)
        # Before the restore ends: what comes later is nobody's start.
        found["faults"].append(max(len(waits), 0.001))
        found["waited"].append(max(sum(waits), 0.001))
        running.finish()


def _seconds(program: Program, target: Path) -> float:
    started = time.monotonic()
    program.start(target)
    return time.monotonic() - started
