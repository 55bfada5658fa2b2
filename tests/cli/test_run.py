"""``active-restore run NAME``: what ``active-restore@NAME.service`` starts."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.cli.test_end_to_end import fill

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_begun_interrupted_and_gone_on_with(held_rig: Rig, ext4_target: Path) -> None:
    fill(held_rig.tree)
    (held_rig.place / "agent.toml").write_text(
        "[restore]\nlimit = 1\nthrottle = 'off'\n"
        f"[restores.web]\nsource = '{held_rig.source}'\ntarget = '{ext4_target}'\nexclude = ['file05']\n"
    )  # fmt: skip
    agent = held_rig.start("run", "web")
    agent.until("ready")
    with held_rig.control(ext4_target) as control:
        assert control.status().limit_bytes_per_s == 1
    agent.signal(signal.SIGINT)
    assert agent.end()[0] == 130
    agent = held_rig.start("run", "web")
    agent.until("ready")
    held_rig.finish(agent, ext4_target)
    held_rig.verify(ext4_target, "--exclude", "file05")
    assert not list(ext4_target.rglob("file05"))
