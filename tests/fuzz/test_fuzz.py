"""Hostile input: the corpus is run as it is, then each target is fuzzed for a moment. ``make fuzz`` does it for long.

FUZZ_SECONDS is how long each target is fuzzed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.machine import ROOT
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SECONDS = int(os.environ.get("FUZZ_SECONDS", "1"))


def test_every_target_has_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    """What was found in former runs."""
    for data in (*SEEDS[name], *(path.read_bytes() for path in sorted((CORPUS / name).iterdir()))):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(SECONDS + 120)
def test_fuzz(name: str, tmp_path: Path) -> None:
    """Coverage-guided, beginning with seeds and corpus; bounded in time and memory for every single input."""
    for number, seed in enumerate(SEEDS[name]):
        (tmp_path / f"seed{number}").write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz", name, str(SECONDS), str(tmp_path), str(CORPUS / name)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agent'}"}
    ended = subprocess.run(command, env=env, capture_output=True, check=False, cwd=tmp_path)
    errors = ended.stderr.decode(errors="replace")
    assert ended.returncode == 0, errors[-6000:]
    found = re.search(r"number_of_executed_units: (\d+)", errors)
    assert found, errors[-2000:]
    assert int(found[1]) > len(SEEDS[name])
    print(f"{name}: {found[1]} inputs")
