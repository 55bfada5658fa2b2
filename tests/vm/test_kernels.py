"""The tests of ``tests/vm/inside`` as ordinary tests, each run in a virtual machine: for each kernel, for each file system.

A machine boots once and runs all that is selected for it. Those marked ``ci`` are a sample for every run of CI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.vm import machine
from tests.vm.kernels import BUILD, FOREIGN, kernels

if TYPE_CHECKING:
    from collections.abc import Callable

_HERE = Path(__file__).parent
_PROJECT = _HERE.parents[1]
_FILE_SYSTEMS = ("ext4", "xfs")
_TIMEOUT_S = float(os.environ.get("ACTIVE_RESTORE_VM_SECONDS", "1500"))
# Tests of all interceptors, which make their disks themselves.
_SHARED = ("tests/intercept/test_contract.py", "tests/restore", "tests/ranges/test_programs.py", "tests/torture")
# Each kernel and each file system once: a boot and its tests take minutes on an emulated processor.
_SAMPLED = {"6.12": "ext4", "6.1": "xfs"}
# Those that are open-ended: ``tests/vm/inside/test_attacks.py`` runs what they run, in small.
_ENDLESS = ("--ignore=tests/torture/test_kills.py", "--ignore=tests/torture/test_power_cuts.py")
# How often something is done in one test, and which of many.
_PASSED_ON = (
    "ACTIVE_RESTORE_KILLS",
    "ACTIVE_RESTORE_FSX",
    "ACTIVE_RESTORE_FSX_SEED",
    "ACTIVE_RESTORE_BLOWS",
    "ACTIVE_RESTORE_CUTS",
    "ACTIVE_RESTORE_SEED",
    "STRANGERS_GROUPS",
    "STRANGERS_SECONDS",
)

_COLLECT = ("--collect-only", "-m", "not native", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.vm.report")

Results = dict[tuple[str, str], dict[str, Any]]


class Inside(NamedTuple):
    """A test that runs in a machine; ``sampled``: the kernels on which every run of CI runs it, ``None`` for all."""

    name: str
    sampled: list[str] | None

    def marks(self, kernel: str, system: str) -> list[pytest.MarkDecorator]:
        """Whether it is part of the sample."""
        is_sampled = _SAMPLED.get(kernel) == system and (self.sampled is None or kernel in self.sampled)
        return [pytest.mark.ci] if is_sampled else []


@cache
def _inside() -> list[Inside]:
    """All of them, by pytest itself."""
    with tempfile.NamedTemporaryFile("r") as listed:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *_COLLECT, *_ENDLESS, str(_HERE / "inside"), *_SHARED],
            cwd=_PROJECT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
                "ACTIVE_RESTORE_COLLECT": listed.name,
                "ACTIVE_RESTORE_TEST_INTERCEPTORS": "bpf",
                "ACTIVE_RESTORE_TEST_DISKS": ",".join(_FILE_SYSTEMS),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        found = [Inside(*json.loads(line)) for line in listed]
    assert found, done.stdout + done.stderr
    return found


def _on(system: str) -> list[Inside]:
    """Those that run on a file system: those of all interceptors make their disks themselves, and run once."""
    return [test for test in _inside() if system == _FILE_SYSTEMS[0] or not test.name.startswith(_SHARED)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each kernel, file system and test inside."""
    if "inside" in metafunc.fixturenames:
        cases = [
            pytest.param(
                kernel,
                system,
                test.name,
                id=f"{kernel}-{system}-{test.name.rpartition('/')[2]}",
                marks=test.marks(kernel, system),
            )
            for kernel in kernels()
            if kernel != FOREIGN
            for system in _FILE_SYSTEMS
            for test in _on(system)
        ]
        metafunc.parametrize(("kernel", "system", "inside"), cases)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Callable[[str], Results]:
    """Boots a kernel the first time that one of its tests is asked for."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        case = getattr(item, "callspec", None)
        if case is not None and "inside" in case.params:
            wanted.setdefault(case.params["kernel"], []).append(f"{case.params['system']}:{case.params['inside']}")

    @cache
    def boot(name: str) -> Results:
        exchange = BUILD / "runs" / name
        shutil.rmtree(exchange, ignore_errors=True)
        exchange.mkdir(parents=True)
        (exchange / "tests").write_text("\n".join(wanted[name]))
        passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
        (exchange / "environment").write_text(json.dumps(passed_on))
        # Inside, nothing that is compiled could be kept.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "agent", "tests"], cwd=_PROJECT, check=True)
        command = [sys.executable, str(_HERE / "guest.py"), str(exchange)]
        try:
            console = machine.run(kernels()[name], command, exchange, _TIMEOUT_S)
        except machine.Hung as hung:
            console = str(hung)
        found = _read(exchange)
        output = exchange / "output"
        ending = f"{console}\n--- output\n{machine.tail(output) if output.exists() else ''}"
        return {("", ""): {"text": ending}, **found}

    return boot


def _read(exchange: Path) -> Results:
    found: Results = {}
    for file in exchange.glob("results.*"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            # A failure while tearing down comes after the success of the test itself.
            if found.get((file.suffix[1:], entry["test"]), {}).get("outcome") != "failed":
                found[file.suffix[1:], entry["test"]] = entry
    return found


@pytest.mark.vm
@pytest.mark.timeout(0)
def test_in_kernel(results: Callable[[str], Results], kernel: str, system: str, inside: str) -> None:
    found = results(kernel)
    entry = found.get((system, inside))
    if entry is None:
        pytest.fail(f"the machine ended before this test did\n{found['', '']['text']}", pytrace=False)
    if entry["outcome"] == "skipped":
        pytest.skip(entry["text"])
    if entry["outcome"] != "passed":
        pytest.fail(entry["text"], pytrace=False)
