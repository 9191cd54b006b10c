#!/usr/bin/env python3
"""Mutates training logs, reads, judges and draws them, and prints what it found.

A log fails if an exception is raised, if a complete line is neither read nor counted,
if the best epoch is flagged as an error, or if reading the log in pieces, as --follow
does, gives other flags. The script keeps failed logs, and exits with 1 if there are any.

> python tests/fuzz/watch.py --logs 10000
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from speechbrain.watch.log import Log, Stamps
from speechbrain.watch.report import Picture, Printer, summary
from speechbrain.watch.run import Watch, find_goal
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
    "".join(
        f"epoch: {i} - train loss: {2 / i:.2f} - valid loss: {1 + abs(i - 5) / 9 if i < 15 else 0.5:.2f}\n"
        for i in range(1, 18)
    ),
    "".join(f"epoch: {i} - train loss: {loss}\n" for i, loss in enumerate((2.0, 1.0, 0.8, 5.3, 40.0, 0.7, 0.6), 1)),
    "".join(f"epoch: {i} - train loss: 2.30 - valid loss: 2.31, valid CER: 99.0\n" for i in range(1, 15)),
    "".join(f"epoch: {i} - train loss: 1.00\nepoch: {i} - valid loss: {2 / i:.2f}\n" for i in range(1, 9)),
    "".join(f"epoch: {i} - train snr: {i}.0 - valid snr: {i % 7}.1\n" for i in range(1, 15))
    + "Epoch loaded: 6 - test snr: 1\n",
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


def judged(pieces, stamps=None, printer=None, best=None):
    """Judge a log that arrives in pieces; returns the log, its entries, what judged it, and (run, row, flags) of each row."""
    log, watch, entries, rows = Log(), Watch(), [], []
    for piece in pieces:
        for entry in log.feed(piece):
            entries.append(stamps.give(entry) if stamps else entry)
            for each in watch.feed(entry):
                rows.append(each)
                if printer:
                    printer.row(*each, find_goal(watch.runs, best))
    return log, entries, watch, rows + watch.rest()


def watch(data, generator, folder, draw):
    """Read a log as the command does; returns the number of entries, flags and so on."""
    (folder / "log.txt").write_bytes(
        b"".join(
            b"2026-11-22 10:%02d:00,000 - a.train_logger - INFO - %b\n" % (i % 61, line)
            for i, line in enumerate(data.split(b"\n"))
        )
    )
    best, step = generator.choice((None, "WER", "si-snr:max")), generator.randrange(1, 200)
    followed, lines = [], []
    options = {"width": generator.choice((None, 40))}
    log, entries, seen, rows = judged([data])
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    other, again, live, _ = judged(pieces, None, Printer(followed.append, follow=True, **options), best)
    assert (again, other.unread, other.waiting) == (entries, log.unread, log.waiting), "gives another result in pieces"
    assert [run.found for run in seen.runs] == [run.found for run in live.runs], "gives other flags in pieces"
    stamped = judged([data], Stamps(folder / "log.txt"))[3]
    assert [row.text for _, row, _ in stamped] == [row.text for _, row, _ in rows], "gives other rows with times"
    *complete, _ = data.decode("utf-8", "replace").split("\n")
    read = [line for entry in entries for line in entry.text.split("\n")] + [line for _, line in log.waiting]
    count = sum(bool(line.strip("\0\r").strip()) for line in read) + log.unread
    assert count == sum(bool(line.strip("\0\r").strip()) for line in complete), "a line is neither read nor counted"
    goal, printer = find_goal(seen.runs, best), Printer(lines.append, **options)
    errors = {flag.line for run in seen.runs for flag in run.found if flag.level == "error"}
    assert not any(run.best(goal) and run.best(goal).line in errors for run in seen.runs), "the best epoch is an error"
    picture = Picture(generator.choice((4, 4000)))
    for run, row, _ in stamped:
        printer.learn(run, row)
        if not row.is_test:
            picture.add(run, row)
    for run, row, said in stamped:
        printer.row(run, row, said, goal, len(seen.runs) > 1)
    printer.flush()
    lines += [*followed, *summary(log, seen.runs, goal)]
    assert all(line.isprintable() for line in lines), "a line could control the terminal"
    if draw:
        picture.draw(str(folder / "curves.png"), seen.runs, goal)
    levels = Counter(f"flags: {flag.level} {flag.code}" for run in seen.runs for flag in run.found)
    refuted = sum(len(flag.refuted) for _, _, said in rows for flag in said)
    return levels + Counter(
        {
            "entries": len(entries),
            "lines that are not entries": log.unread,
            "runs": len(seen.runs),
            "flags that were refuted": refuted,
            "pictures": draw,
        }
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
