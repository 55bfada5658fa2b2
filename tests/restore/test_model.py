"""Random users against a model: whatever is done to placeholders must come out as it does on a plain copy of the tree."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from active_restore.errors import NotRunning
from tests.kernel.tasks import python
from tests.restore.actions import outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

FOLDERS = 25
NAMES = ("a", "b", "c", "d")
SIZES = {"a": 10, "b": 5000, "c": 70_000, "d": 1_500_000}
OLD_NS = 1_400_000_000_987_654_321

names = st.sampled_from(NAMES)
offsets = st.integers(0, 80_000)
data = st.text("xyz", min_size=1, max_size=40)
steps = st.one_of(
    st.tuples(st.just("read"), names),
    st.tuples(st.just("write"), names, offsets, data),
    st.tuples(st.just("append"), names, data),
    st.tuples(st.just("create"), names, data),
    st.tuples(st.just("truncate"), names, offsets),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("link"), names, names),
    st.tuples(st.just("chmod"), names, st.sampled_from([0o600, 0o4755, 0o444])),
    st.tuples(st.just("chown"), names, st.integers(0, 5)),
    st.tuples(st.just("utime"), names, st.integers(0, 10**18)),
    st.tuples(st.just("setxattr"), names, data),
    st.tuples(st.just("mmap"), names, data),
    st.tuples(st.just("promote"), names),
)

# Does steps in the directory argv[1]; prints what each of them gave.
USER = r"""
import hashlib, json, mmap
os.chdir(sys.argv[1])
def mapped(name, text):
    with open(name, 'r+b') as file, mmap.mmap(file.fileno(), 0) as view:
        before = hashlib.md5(view).hexdigest()
        view[:1] = text[:1].encode()
        return before
def write(name, at, text):
    fd = os.open(name, os.O_WRONLY)
    os.pwrite(fd, text.encode(), at)
    os.close(fd)
def append(name, text):
    with open(name, 'a') as file:
        file.write(text)
def create(name, text):
    with open(name, 'w') as file:
        file.write(text)
def read(name):
    with open(name, 'rb') as file:
        return hashlib.md5(file.read()).hexdigest()
DO = {
    'read': read, 'write': write, 'append': append, 'create': create, 'mmap': mapped,
    'truncate': os.truncate, 'rename': os.rename, 'unlink': os.unlink, 'link': os.link, 'chmod': os.chmod,
    'chown': lambda name, uid: os.chown(name, uid, uid),
    'utime': lambda name, ns: os.utime(name, ns=(ns, ns)),
    'setxattr': lambda name, text: os.setxattr(name, 'user.x', text.encode()),
}
said = []
for word, *rest in json.loads(sys.argv[2]):
    try:
        said.append(DO[word](*rest))
    except (OSError, ValueError) as error:
        said.append(type(error).__name__)
print(json.dumps(said))
"""


def live(folder: Path, doings: list[tuple[object, ...]]) -> object:
    return json.loads(python(USER, folder, json.dumps(doings)))


def test_users_against_a_model(held_rig: Rig, target: Path) -> None:
    for number in range(FOLDERS):
        folder = held_rig.tree / f"e{number}"
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_bytes(os.urandom(SIZES[name]))
            os.utime(folder / name, ns=(OLD_NS, OLD_NS))
    began_ns = time.time_ns()
    # On the same disk: not every file system gives a mapped file a new time when it is written.
    model = target.with_name(f"{target.name}-model")
    shutil.copytree(held_rig.tree, model)
    command = held_rig.hold(target)
    with held_rig.control(target) as client:
        # The background goes on meanwhile, slowly.
        client.limit(4 << 20)
    fresh = iter(range(FOLDERS))
    timed: set[str] = set()

    @settings(
        max_examples=FOLDERS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=3, max_size=30))
    def play(doings: list[tuple[object, ...]]) -> None:
        folder = f"e{next(fresh)}"
        # On a crowded machine the background is through before the users are.
        with contextlib.suppress(NotRunning), held_rig.control(target) as client:
            for word, *rest in doings:
                if word == "promote":
                    client.promote([f"{folder}/{rest[0]}".encode()])
        users = [doing for doing in doings if doing[0] != "promote"]
        if any(doing[0] == "utime" for doing in users):
            timed.add(folder)
        assert live(target / folder, users) == live(model / folder, users), users

    play()
    with contextlib.suppress(NotRunning):
        held_rig.hurry(target)
    code, errors = command.end()
    assert code == 0, errors
    held_rig.assert_clean(target)
    for number in range(FOLDERS):
        for name in NAMES:
            ours = outcome(target / f"e{number}" / name, began_ns)
            theirs = outcome(model / f"e{number}" / name, began_ns)
            if ours and theirs and f"e{number}" in timed:
                # A user's utimensat(2) in the moment of our write may be lost (see the writer); test_writers has those alone.
                ours["mtime"] = theirs["mtime"]
            assert ours == theirs, (number, name)
