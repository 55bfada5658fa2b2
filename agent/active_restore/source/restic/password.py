"""The password of a repository, taken as restic takes it, or from a systemd credential.

Source: restic ``doc/040_backup.rst`` (environment variables), systemd.exec(5) (``LoadCredential=``).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from active_restore.errors import WrongPassword

if TYPE_CHECKING:
    from collections.abc import Mapping

_CREDENTIALS = ("restic-password", "active-restore.password")
_COMMAND_TIMEOUT_S = 120
_HINT = "set RESTIC_PASSWORD, RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND"


def find(env: Mapping[str, str]) -> bytes:
    """The password. Raises ``WrongPassword`` where none is configured or where it cannot be read."""
    if path := env.get("RESTIC_PASSWORD_FILE"):
        return _from_file(path, "RESTIC_PASSWORD_FILE")
    if command := env.get("RESTIC_PASSWORD_COMMAND"):
        return _from_command(command, env)
    if "RESTIC_PASSWORD" in env:
        return os.fsencode(env["RESTIC_PASSWORD"])
    if folder := env.get("CREDENTIALS_DIRECTORY"):
        for name in _CREDENTIALS:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                return _from_file(path, f"credential {name}")
    raise WrongPassword("no password for the repository", f"{_HINT}, or pass the credential {_CREDENTIALS[0]}")


def _from_file(path: str, origin: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return _trimmed(file.read(1 << 20))
    except OSError as error:
        raise WrongPassword(f"{origin}: {path}: {error.strerror}", _HINT) from error


def _from_command(command: str, env: Mapping[str, str]) -> bytes:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=_COMMAND_TIMEOUT_S
        )
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # The message of the error would repeat the command line, and that may hold a secret.
        raise WrongPassword(f"RESTIC_PASSWORD_COMMAND failed ({type(error).__name__})", "run it by hand") from None
    return _trimmed(done.stdout)


def _trimmed(text: bytes) -> bytes:
    """Without a byte order mark and the white space around, as restic does it."""
    return text.removeprefix(b"\xef\xbb\xbf").strip(b" \t\n\v\f\r")
