"""The Debian package in a fresh Debian: it comes, works and goes without a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm import debian

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.timeout(0)]


def test_it_comes_works_and_goes(tmp_path: Path) -> None:
    root = debian.copy_to(tmp_path / "root")
    done = debian.inside(root, "dpkg -i /root/active-restore.deb && dpkg --audit && active-restore config check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/etc/active-restore/agent.toml is fine\n")
    done = debian.inside(
        root, "systemd-analyze --man=no verify active-restore.service active-restore@web.service active-restore-relax.service"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (root / "etc/systemd/system/local-fs.target.wants/active-restore.service").is_symlink()
    (root / "var/lib/active-restore/0123456789abcdef").mkdir(parents=True)
    state = root / "var/lib/active-restore/0123456789abcdef/restore.json"
    state.write_text("{}")
    done = debian.inside(root, "dpkg -r active-restore")
    assert done.returncode != 0
    assert "an unfinished restore is there" in done.stderr
    state.unlink()
    state.parent.rmdir()
    done = debian.inside(root, "dpkg -P active-restore")
    assert done.returncode == 0, done.stderr
    places = ("etc", "usr", "var/lib/active-restore", "var/lib/systemd")
    left = [path for place in places for path in (root / place).rglob("*active-restore*")]
    assert left == []
