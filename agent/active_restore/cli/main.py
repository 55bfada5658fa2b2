"""The entry point: the only place that ends the process, and the only one that turns errors into exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from active_restore.cli import journal, log
from active_restore.cli.parser import build_parser
from active_restore.cli.printers.json_lines import error_line
from active_restore.control.names import shown
from active_restore.errors import ActiveRestoreError, Interrupted
from active_restore.linux.process import name_thread

if TYPE_CHECKING:
    from collections.abc import Sequence


def run() -> NoReturn:
    """The ``active-restore`` command."""
    # However it was started: relax mode knows by it that a file is opened for the sake of a restore.
    name_thread("active-restore")
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        _forget_stdout()
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit code. Nothing is raised."""
    debug = "--debug" in argv
    as_json = "--json" in argv
    try:
        with log.to_stderr(debug=debug):
            arguments = build_parser(argv).parse_args(argv)
            code: int = arguments.run(arguments)
            return code
    except SystemExit as ended:  # argparse, after --help or --version
        return ended.code if isinstance(ended.code, int) else 0
    except BrokenPipeError:
        # "| head" has seen enough.
        _forget_stdout()
        return 0
    except KeyboardInterrupt:
        return _report(Interrupted("interrupted"), as_json=as_json)
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _report(expected(error), as_json=as_json)


def expected(error: BaseException) -> ActiveRestoreError:
    """What to tell about an error: itself, the first expected one of a group, or that it was not expected."""
    if isinstance(error, ActiveRestoreError):
        return error
    if isinstance(error, BaseExceptionGroup):
        known = error.subgroup(ActiveRestoreError)
        return expected((known or error).exceptions[0])
    if isinstance(error, OSError) and error.strerror:
        where = f"{shown(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return ActiveRestoreError(f"{where}{error.strerror}", "run the command again with --debug to see where")
    detail = " ".join(str(error).split())
    return ActiveRestoreError(
        f"unexpected {type(error).__name__}: {detail}", "this is a bug; run the command again with --debug and report it"
    )


def _report(error: ActiveRestoreError, *, as_json: bool) -> int:
    prefix = journal.ERROR if journal.is_journal(2) else ""
    with contextlib.suppress(OSError):
        print(f"{prefix}active-restore: error: {_one_line(str(error))}", file=sys.stderr)
        if error.hint:
            print(f"{prefix}hint: {_one_line(error.hint)}", file=sys.stderr)
    if as_json:
        with contextlib.suppress(OSError):
            print(error_line(error), flush=True)
    return error.exit_code


def _one_line(text: str) -> str:
    return shown(" ".join(text.split()))


def _forget_stdout() -> None:
    """Nobody reads our output any more: what is still buffered must not raise when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
