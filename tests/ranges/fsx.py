"""One process of the exerciser, in the spirit of fsx: random operations on half-restored files, each checked against a model.

``fsx.py SEED OPERATIONS NUMBER OF TREE TARGET``: this is process NUMBER of OF. In the file ``shared`` it reads, writes and
maps the stripes that are its own, whose edges lie in pages that others write to; whatever changes sizes or makes holes
it does to files of its own (``own-NUMBER-*``), one after the other. The model is in memory. At the end it waits for a line,
and then looks at every byte of its own once more.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter

sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))
from tests.ranges.operations import LAST, READING, WHOLE, WRITING, File, Wrong


class Process:
    """What one process does."""

    def __init__(self, seed: int, operations: int, stripes: tuple[int, int], tree: str, target: str) -> None:
        self.dice = random.Random(seed * 100 + stripes[0])
        self.operations, self.tree, self.target = operations, tree, target
        self.shared = self.open("shared", stripes)
        self.names = sorted(name for name in os.listdir(tree) if name.startswith(f"own-{stripes[0]}-"))
        self.each = operations // (len(self.names) + 1)
        self.done: list[File] = []
        self.own = self.open(self.names.pop())
        self.left = self.each
        self.history: list[str] = []
        self.counts: Counter[str] = Counter()

    def open(self, name: str, stripes: tuple[int, int] | None = None) -> File:
        with open(f"{self.tree}/{name}", "rb") as file:
            return File(f"{self.target}/{name}", file.read(), self.dice, stripes)

    def work(self) -> None:
        for operation in range(self.operations):
            if self.left <= 0 and self.names:
                if self.dice.random() < 0.3:
                    self.own.end()
                self.done.append(self.own)
                self.own = self.open(self.names.pop())
                self.left, self.history = self.each, []
            self.left -= 1
            self.shared.progress, self.own.progress = operation / self.operations, 1 - self.left / self.each
            self.step()

    def step(self) -> None:
        if self.dice.random() < 0.4:
            file, words = self.shared, self.dice.choice((READING, READING, WRITING))
        else:
            file, words = self.own, self.dice.choice((READING, READING, WRITING, WHOLE))
            if self.dice.random() < 0.008:
                words, self.left = LAST, min(self.left, self.each // 4)
        do = self.dice.choice(words)
        word = do.__name__
        self.history.append(f"{word}{'' if file is self.own else '*'}")
        self.counts[word] += 1
        if self.dice.random() < 0.02:
            file.reopen()
        do(file)

    def look_again(self) -> None:
        for file in (*self.done, self.own, self.shared):
            file.reopen(os.O_RDWR)
            file.end()


def main() -> None:
    seed, operations, number, of = (int(word) for word in sys.argv[1:5])
    process = Process(seed, operations, (number, of), *sys.argv[5:7])
    try:
        process.work()
        print("done", dict(process.counts), flush=True)
        sys.stdin.readline()
        process.history = ["the end"]
        process.look_again()
    except Wrong as error:
        print(f"wrong: {error}; seed {seed}, process {number}, after {' '.join(process.history[-30:])}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
