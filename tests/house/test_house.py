"""Rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from active_restore.cli.main import main
from active_restore.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "agent/active_restore"
MAX_LINES = 400


def tracked() -> list[Path]:
    """Every file of the repository that is not ignored, committed or not."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    return [path for name in out.split("\0") if name and (path := ROOT / name).is_file()]


def tool(name: str, *arguments: str) -> list[str]:
    """A tool of the environment that runs the tests."""
    path = Path(sys.executable).parent / name
    found = str(path) if path.exists() else shutil.which(name)
    assert found, f"{name} is not installed: make setup"
    return [found, *arguments]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",), ("vulture",)],
    ids=" ".join,
)
def test_lint(command: tuple[str, ...]) -> None:
    ended = subprocess.run(tool(*command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


def test_no_module_holds_two_things() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in tracked() if (lines := length(path)) > MAX_LINES}
    assert not long


def length(path: Path) -> int:
    return path.read_text().count("\n") if path.suffix == ".py" else 0


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_only_the_command_line_ends_the_process() -> None:
    """``os._exit`` is for children that were forked; ``sys.exit`` and ``exit`` are for ``cli.main`` alone."""
    enders = [
        path for path in PACKAGE.rglob("*.py") if re.search(r"\b(sys\.exit|raise SystemExit)\b|(?<!\w)exit\(", path.read_text())
    ]
    assert [path.relative_to(PACKAGE) for path in enders if "keeper" not in path.name] == [Path("cli/main.py")]


ALLOWED_IMPORTERS = {
    "bcc": ("ebpf/",),
    "elftools": ("predict/",),
    "pydantic": ("control/", "cli/checks/", "settings/"),
    "rich": ("cli/",),
    "argparse": ("cli/",),
    "obstore": ("store/",),
    "sqlite3": ("catalog.py", "catalog/"),
}


@pytest.mark.parametrize("library", ALLOWED_IMPORTERS)
def test_a_library_is_known_in_one_place(library: str) -> None:
    pattern = re.compile(rf"^\s*(?:import|from) {library}\b", re.MULTILINE)
    importers = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())]
    assert [name for name in importers if not name.startswith(ALLOWED_IMPORTERS[library])] == []


def test_the_unrelated_bcc_is_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert not [name for name in wanted if re.match(r"bcc\b", name)]


def test_nothing_of_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not hold what it looks for.
    words = [
        "/wo" + "rk/",
        "/tmp/ve" + "nv",
        "pypi" + ".org",
        "python" + "hosted",
        "deb.debi" + "an",
        "registry.np" + "mjs",
        "/opt/py" + "pi",
    ]
    found = []
    for path in tracked():
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert not found


def test_no_unfinished_work_is_marked() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.suffix == ".py" and words.search(path.read_text())]


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [found[0].strip() for line in lines if (found := re.search(r"(?<![^\s(])active-restore [^|)]*", line))]


@pytest.mark.parametrize("line", readme_commands())
def test_the_parser_knows_every_command_of_the_readme(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "active-restore"
    assert build_parser().parse_args(words[1:]).run


def test_the_readme_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    assert main(["--help"]) == 0
    names = re.findall(r"^    (\w+) {2,}", capsys.readouterr().out, re.MULTILINE)
    assert len(names) >= 11
    assert [name for name in names if f"`{name}" not in readme] == []
    assert main(["restore", "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--debug"}
    assert [option for option in options if option not in readme] == []


def test_make_knows_what_the_documents_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"(?:^|`)make ([a-z]+)\b", (ROOT / name).read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name} names make {target}"


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
