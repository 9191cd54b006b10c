#!/usr/bin/env python3
"""Mutates training logs, reads, judges and draws them, and prints what it found.

A log fails if an exception is raised, if a complete line is neither read nor counted,
or if reading it in pieces gives another result. The script keeps failed logs, and
exits with 1 if there are any.

> python tests/fuzz/watch.py --logs 10000
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from speechbrain.watch.flags import find_goal, flags
from speechbrain.watch.log import Log, runs, stamp
from speechbrain.watch.report import plot, summary, table
from tqdm import tqdm

TRAINING = "".join(
    f"epoch: {i}, lr: 1.00e-0{3 + i // 6} - train loss: {2 / i:.2e} - valid loss: {3 / i:.2e}, valid WER: {90 / i:.2f}\n"
    for i in range(1, 13)
)
LOGS = [
    TRAINING + "Epoch loaded: 12 - test loss: 2.05e-01, test WER: 7.50\n",
    TRAINING.replace("epoch", "Epoch").replace("lr", "steps") + TRAINING,
    "".join(f"step: {i}00 - train si-snr: {1 - i:.2f} - valid si-snr: {2 - i:.2f}\n" for i in range(9)),
    "epoch: 1 - train d: {'a': 1, 'b': (2, [3])} - valid m: [[1. 2.]\n [3. nan]]\n\nepoch: 2 -  - valid loss: nan - \n",
    "epoch: 1, name: Adam - train loss: [0.5, nan]\nepoch: 2 - train loss: tensor([0.5])\r\nepoch: 2 - valid loss: 0.00e+00\n",
    "".join(f"epoch: {i} - train loss: {max(0.3, 2 / i):.2f} - valid loss: 1.{30 - i}\n" for i in range(1, 20)),
    "".join(f"epoch: {i} - train loss: {2 / i:.2f} - valid loss: 1.{i:02}\n" for i in range(1, 20)),
]
PIECES = [*"[](){}'\"\\\n\r:, -\t\0\x1b$_^", " - ", ": ", ", ", "epoch: ", "Epoch loaded: ", " - train ", " - valid loss: "]
PIECES += ["nan", "inf", "-1", "0.00e+00", "1e308", "-1e308", "1e999", "5e-324", "0e400", "9" * 400, "1_0", "None", "test "]
PIECES += ["\u2028", "\ud800", "µ"]


def mutated(text, generator):
    """A copy of a log with a few random changes."""
    for _ in range(generator.randint(0, 12)):
        start, end = sorted(generator.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + generator.choice((0, 1, 5, 50)))
        lines = text.splitlines(keepends=True)
        text = generator.choice(
            (
                text[:start] + text[end:],
                text[:start] + generator.choice(PIECES) + text[end:],
                text[:start] + text[start:end] * 2 + text[end:],
                "".join(generator.sample(lines, len(lines))),
                "".join(lines) + "".join(generator.choices(lines, k=generator.randrange(9)) if lines else ()),
                text.replace(*generator.choices(PIECES, k=2), generator.randrange(1, 4)),
            )
        )
    return text.encode("utf-8", "surrogatepass")


def watch(data, generator, folder, draw):
    """Read a log as the command does; returns the number of entries, flags and so on."""
    log, pieces = Log(), Log()
    log.feed(data)
    for i in range(0, len(data), step := generator.randrange(1, 200)):
        pieces.feed(data[i : i + step])
    assert (pieces.entries, pieces.unread, pieces.waiting) == (log.entries, log.unread, log.waiting), (
        "gives another result in pieces"
    )
    *lines, _ = data.decode("utf-8", "replace").split("\n")
    read = [line for entry in log.entries for line in entry.text.split("\n")] + [line for _, line in log.unread + log.waiting]
    assert sum(map(bool, map(str.strip, read))) == sum(map(bool, map(str.strip, lines))), "a line is neither read nor counted"
    (folder / "log.txt").write_bytes(
        b"".join(b"2026-11-22 10:%02d:00,000 - a - INFO - %b\n" % (i % 61, line) for i, line in enumerate(data.split(b"\n")))
    )
    stamp(log.entries, folder / "log.txt")
    found = runs(log.entries)
    goal = find_goal(found, generator.choice((None, "WER", "si-snr:max")))
    printed = [line for _, line in table(found, goal, width=generator.choice((None, 40)))] + list(summary(log, found, goal))
    assert all(line.isprintable() for line in printed), "a line could control the terminal"
    if draw:
        plot(str(folder / "curves.png"), found, goal)
    levels = Counter(f"flags: {flag.level} {flag.code}" for run in found for flag in flags(run, goal))
    return levels + Counter(
        {"entries": len(log.entries), "lines that are not entries": len(log.unread), "runs": len(found), "pictures": draw}
    )


def main():
    """Print the counts; exit with 1 if a log failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=10000, help="how many logs to read (default: %(default)s)")
    parser.add_argument("--draw", type=int, default=200, help="draw the curves of one log in this many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the mutations (default: %(default)s)")
    arguments = parser.parse_args()
    counts, failed, longest = Counter(), Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i in tqdm(range(arguments.logs), disable=not sys.stderr.isatty()):
            generator = random.Random(arguments.seed * 10**9 + i)
            data = mutated(generator.choice(LOGS), generator)
            started = time.perf_counter()
            try:
                counts += watch(data, generator, Path(folder), i % arguments.draw == 0)
            except Exception as error:
                kept = Path(tempfile.gettempdir()) / f"failed_{arguments.seed}_{i}.txt"
                kept.write_bytes(data)
                failed[f"failed: {type(error).__name__}: {str(error)[:70]} (for example {kept})"] += 1
            longest = max(longest, time.perf_counter() - started)
    print(f"{arguments.logs} logs, the slowest took {longest:.2f} s")
    for what, count in [*sorted(counts.items()), *failed.most_common()]:
        print(f"{count:8}  {what}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
