"""Every error that a user can meet: one line, one hint, one exit code.

errno values are translated into these classes once, at the boundary where they appear; only ``cli`` exits the process.
Exit codes follow restic where it has one (10, 11, 12, 130).
"""

from __future__ import annotations

import errno as _errno


class ActiveRestoreError(Exception):
    """An expected failure. ``str(error)`` is the one line for people, ``hint`` says what to do about it."""

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ActiveRestoreError):
    """The command line or the configuration cannot be understood."""

    exit_code = 2
    code = "usage"


class NoRepository(ActiveRestoreError):
    """There is no repository (or no directory) at the given place."""

    exit_code = 10
    code = "no_repository"


class Busy(ActiveRestoreError):
    """Another agent works on the same target."""

    exit_code = 11
    code = "busy"


class WrongPassword(ActiveRestoreError):
    """No key of the repository opens with the given password, or no password was given."""

    exit_code = 12
    code = "wrong_password"


class SnapshotError(ActiveRestoreError):
    """The snapshot (or the subfolder in it) is unknown or ambiguous."""

    exit_code = 13
    code = "snapshot"


class RepositoryDamaged(ActiveRestoreError):
    """A part of the repository without which nothing can be planned is damaged (config, keys, snapshot, root tree)."""

    exit_code = 14
    code = "damaged"


class SourceUnavailable(ActiveRestoreError):
    """The source cannot be reached now (network, credentials, missing mount). Worth another try later."""

    exit_code = 15
    code = "unavailable"


class TargetError(ActiveRestoreError):
    """The target cannot be used: not empty, read-only, unsupported file system, not a directory."""

    exit_code = 16
    code = "target"


class DiskFailed(TargetError):
    """The disk of the target did not take what was written, or tells of earlier writes that it did not take."""


class NoSpace(ActiveRestoreError):
    """The file system of the target has too little room."""

    exit_code = 17
    code = "no_space"


class CapabilityMissing(ActiveRestoreError):
    """The kernel or our privileges lack something without which nobody could be held."""

    exit_code = 18
    code = "capability"


class NotRunning(ActiveRestoreError):
    """No restore is known for that target."""

    exit_code = 19
    code = "not_running"


class ScanNeeded(ActiveRestoreError):
    """What has changed is not known: everything may have."""

    exit_code = 20
    code = "scan_needed"


class Interrupted(ActiveRestoreError):
    """A signal ended the restore; ``resume`` goes on."""

    exit_code = 130
    code = "interrupted"


class ContentError(ActiveRestoreError):
    """The content of one file cannot be had (damaged, missing, changed). ``errno`` is what tasks get: EIO."""

    code = "content"

    def __init__(self, message: str, hint: str = "", errno: int = _errno.EIO) -> None:
        super().__init__(message, hint)
        self.errno = errno
