"""What ``active-restore install`` puts in place, as systemd itself judges it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from active_restore.cli.install import UNITS, packaged
from active_restore.cli.main import main
from active_restore.settings.file import load
from active_restore.settings.tables import Settings

_README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with the command and what the units name."""
    for name in ("usr/bin/active-restore", "usr/bin/true", "bin/sh"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    assert main(["install", "--root", str(tmp_path), "--enable"]) == 0
    return tmp_path


def analyze(*words: str | Path) -> str:
    """The words of systemd-analyze; it must have nothing to complain about."""
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("unit", [unit.replace("@", "@web") for unit in UNITS])
def test_systemd_understands_every_line(root: Path, unit: str) -> None:
    for target in ("local-fs", "sysinit", "basic"):
        (root / f"etc/systemd/system/{target}.target").write_text("[Unit]\nDescription=What there is on every machine\n")
    analyze("verify", "--man=no", f"--root={root}", root / "etc/systemd/system" / unit)


@pytest.mark.parametrize(
    ("unit", "words"),
    [(UNITS[0], "`systemd-analyze security` {}"), (UNITS[2], "that of relax mode {}")],
    ids=["service", "relax"],
)
def test_exposure_is_what_the_readme_says(root: Path, unit: str, words: str) -> None:
    told = analyze("security", "--offline=yes", "--no-pager", f"--root={root}", unit)
    found = re.search(rf"exposure level for {unit}: ([\d.]+)", told)
    assert found
    assert words.format(found[1]) in _README.read_text()


def test_an_image_gets_units_and_settings(root: Path) -> None:
    link = root / "etc/systemd/system/local-fs.target.wants/active-restore.service"
    assert os.readlink(link) == "/etc/systemd/system/active-restore.service"
    settings = root / "etc/active-restore/agent.toml"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert load(settings) == Settings()
    for unit in UNITS:
        assert (root / "etc/systemd/system" / unit).read_text() == packaged(unit)


def test_settings_are_kept_and_units_are_renewed(root: Path) -> None:
    settings = root / "etc/active-restore/agent.toml"
    settings.write_text("[log]\nlevel = 'debug'\n")
    assert main(["install", "--root", str(root), "--command", "/opt/ar/bin/active-restore"]) == 0
    assert settings.read_text() == "[log]\nlevel = 'debug'\n"
    for unit in UNITS:
        text = (root / "etc/systemd/system" / unit).read_text()
        assert "ExecStart=/opt/ar/bin/active-restore " in text
        assert "\nRequiresMountsFor=/opt/ar/bin/active-restore\n\n[Service]\n" in text


def test_both_units_have_the_same_sandbox() -> None:
    """systemd has no include for this."""
    keys = (
        r"^(?:Capability|NoNew|Restrict|Lock|MemoryDeny|Keyring|SystemCall|KillMode|OOM|Limit|State|Runtime|UMask|LoadC|Env).*$"
    )
    service, template = ([*re.findall(keys, packaged(unit), re.MULTILINE)] for unit in UNITS[:2])
    assert [line for line in service if line != "Restart=always"] == template


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "active_restore", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("active-restore ")
