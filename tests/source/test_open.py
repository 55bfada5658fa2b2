"""What the user writes, and where the password comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from active_restore.errors import UsageError, WrongPassword
from active_restore.source.open import open_source
from active_restore.source.restic import password

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "spec", ["", "dir", "dir:", "restic:", "/srv/x", "borg:/x", "rest:http://u:secret@h/", "restic:sftp:u@h:/x"]
)
def test_unknown_source_has_a_hint_and_shows_no_secret(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(spec, {"RESTIC_PASSWORD": "x"})
    assert caught.value.hint
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_password_from_the_environment() -> None:
    assert password.find({"RESTIC_PASSWORD": " as it is\n"}) == b" as it is\n"


@pytest.mark.parametrize("text", [b"secret", b"secret\n", b"\xef\xbb\xbfsecret\r\n", b"  secret  \n"], ids=repr)
def test_password_from_a_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    assert password.find({"RESTIC_PASSWORD_FILE": str(tmp_path / "file")}) == b"secret"


def test_password_from_a_command() -> None:
    assert password.find({"RESTIC_PASSWORD_COMMAND": "sh -c 'echo \"sec ret\"'", "PATH": "/bin:/usr/bin"}) == b"sec ret"


@pytest.mark.parametrize("name", ["restic-password", "active-restore.password"])
def test_password_from_a_credential(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"secret\n")
    assert password.find({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == b"secret"


@pytest.mark.parametrize(
    "env",
    [{}, {"RESTIC_PASSWORD_FILE": "/nonexistent/file"}, {"RESTIC_PASSWORD_COMMAND": "false hush"},
     {"RESTIC_PASSWORD_COMMAND": "'"}, {"RESTIC_PASSWORD_COMMAND": "/nonexistent/hush"},
     {"CREDENTIALS_DIRECTORY": "/nonexistent"}],
    ids=lambda env: " ".join(env) or "nothing",
)  # fmt: skip
def test_no_password_has_a_hint(env: dict[str, str]) -> None:
    with pytest.raises(WrongPassword) as caught:
        password.find(env)
    assert caught.value.hint
    assert "hush" not in str(caught.value)
