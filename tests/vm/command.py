"""Run a command on one of the kernels: ``python -m tests.vm.command KERNEL COMMAND...``.

It runs in the project's directory as root, with an empty ext4 in ``/run/disk/ext4`` and an empty xfs in ``/run/disk/xfs``; what
it prints is shown while it runs, its exit code is ours. Files that it is to leave must be written to the directory that
the variable ACTIVE_RESTORE_VM_EXCHANGE names inside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from tests.vm import machine
from tests.vm.kernels import BUILD, kernels

_TIMEOUT_S = float(os.environ.get("ACTIVE_RESTORE_VM_SECONDS", "3600"))
_LOOK_S = 0.5
_HUNG = 124


def run(kernel: str, words: list[str], exchange: Path) -> int:
    """The exit code of the command; 124 where the machine hung, whose console is printed then."""
    shutil.rmtree(exchange, ignore_errors=True)
    exchange.mkdir(parents=True)
    (exchange / "command").write_text(json.dumps(words))
    (exchange / "environment").write_text(json.dumps({"ACTIVE_RESTORE_VM_EXCHANGE": str(exchange), "TERM": "dumb"}))
    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(exchange / "output", ended))
    teller.start()
    guest = [sys.executable, str(Path(__file__).with_name("guest.py")), str(exchange)]
    try:
        machine.run(kernels()[kernel], guest, exchange, _TIMEOUT_S)
    except machine.Hung as hung:
        print(hung, file=sys.stderr)
    finally:
        ended.set()
        teller.join()
    code = exchange / "code"
    return int(code.read_text()) if code.exists() else _HUNG


def _tell(output: Path, ended: threading.Event) -> None:
    """Copy what the machine says to our own output, as it comes."""
    at = 0
    while True:
        is_last = ended.wait(_LOOK_S)
        if output.exists():
            with output.open("rb") as file:
                file.seek(at)
                text = file.read()
            at += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if is_last:
            return


if __name__ == "__main__":
    # Whoever ends us ends the machine, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(run(sys.argv[1], sys.argv[2:], BUILD / "runs" / "command"))
