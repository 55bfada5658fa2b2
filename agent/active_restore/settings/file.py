"""Reading the configuration file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import ValidationError

from active_restore.errors import CapabilityMissing, UsageError
from active_restore.settings.problems import problems
from active_restore.settings.tables import Settings

DEFAULT_PATH = Path("/etc/active-restore/agent.toml")
_MAX_BYTES = 1 << 20


class SettingsError(UsageError):
    """The file cannot be used; ``lines`` says all that is wrong, each with the name of the file."""

    code = "configuration"

    def __init__(self, path: Path, found: list[str]) -> None:
        self.lines = [f"{path}: {line}" for line in found]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        super().__init__(self.lines[0] + more, "see all that is wrong: active-restore config check")


def settings_path() -> Path:
    """Where the file is; ``ACTIVE_RESTORE_CONFIG`` names another one."""
    return Path(os.environ.get("ACTIVE_RESTORE_CONFIG") or DEFAULT_PATH)


def load(path: Path | None = None) -> Settings:
    """The settings of the file, all defaults where it is not there. Raises ``SettingsError``, ``CapabilityMissing``."""
    path = path or settings_path()
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return Settings()
    except PermissionError as error:
        raise CapabilityMissing(f"{path}: only root may read the configuration", "run the command with sudo") from error
    except OSError as error:
        raise SettingsError(path, [error.strerror or "cannot be read"]) from error
    try:
        found = tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise SettingsError(path, [f"not UTF-8 at byte {error.start}"]) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(path, [f"not TOML: {error}"]) from error
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        # Not chained: pydantic's own message repeats values.
        raise SettingsError(path, problems(error, Settings)) from None
