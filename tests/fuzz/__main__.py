"""``python -m tests.fuzz TARGET SECONDS CORPUS...``: coverage-guided fuzzing of one target by atheris (libFuzzer).

With ``-merge=1`` behind it, what is new in the other corpus folders is added to the first, each thing once.

New inputs go into the first corpus folder. An input that breaks a promise, that takes more than ten seconds, or that needs
more than 600 MiB for the whole process ends it with an error and is left as ``crash-*``, ``timeout-*`` or ``oom-*``.
"""

from __future__ import annotations

import sys

import atheris

MAX_INPUT_BYTES = 4096
LIMIT_S = 10
LIMIT_MIB = 600


def main(name: str, seconds: str, *words: str) -> None:
    """Fuzz; does not return."""
    with atheris.instrument_imports(include=["active_restore"]):
        from tests.fuzz.targets import TARGETS

    corpora = [word for word in words if not word.startswith("-")]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-len_control=0",
        f"-timeout={LIMIT_S}",
        f"-rss_limit_mb={LIMIT_MIB}",
        f"-artifact_prefix={corpora[0] if corpora else '.'}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    # libFuzzer starts itself again for a merge, by a shell.
    atheris.Setup([f"{sys.executable} -m tests.fuzz {name} {seconds}", *options, *words], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
