#!/usr/bin/env python3
"""Times `python -m speechbrain.watch` on logs of 20,000 and 200,000 epochs, and measures its memory.

> python tests/benchmarks/watch.py [--rounds 3]

The package is imported without what its __init__ imports, so that PyTorch does not count. If the time for an epoch and the
memory do not depend on the length of the log, both ratios are 1.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from interleaved import spread

SIZES = [20_000, 200_000]
ONLY_WATCH = """
import importlib.util, sys, types
package = types.ModuleType("speechbrain")
package.__path__ = importlib.util.find_spec("speechbrain").submodule_search_locations
sys.modules["speechbrain"] = package
from speechbrain.watch.__main__ import main
main(sys.argv[1:])
"""


def write(path, epochs):
    """Write the log of a training that gets better slowly."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for i in range(1, epochs + 1):
            loss = 0.2 + 2 / i**0.3 * draw.uniform(0.95, 1.05)
            valid = f"valid loss: {1.2 * loss:.2e}, valid WER: {30 * loss:.2f}"
            print(f"epoch: {i}, lr: {1e-3 / i**0.1:.2e} - train loss: {loss:.2e} - {valid}", file=file)


def measure(path, folder):
    """Read a log; returns the seconds, and the most memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", ONLY_WATCH, path], stdout=subprocess.DEVNULL, cwd=folder)
    usage = os.wait4(process.pid, 0)[2]
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main():
    """Print a table of two rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{size}.txt") for size in SIZES]
        for size, path in zip(SIZES, paths):
            write(path, size)
        measured = [[measure(path, folder) for path in paths] for _ in range(rounds)]
    print("\n| watching a log | 20,000 epochs | 200,000 epochs | ratio: median (quartiles) |\n| --- | --- | --- | --- |")
    times = [[seconds / size * 1e6 for (seconds, _), size in zip(each, SIZES)] for each in measured]
    memory = [[peak for _, peak in each] for each in measured]
    for name, unit, values in (("time for an epoch", "µs", times), ("most memory", "MB", memory)):
        small, large = (statistics.median(column) for column in zip(*values))
        print(f"| {name} | {small:.3g} {unit} | {large:.3g} {unit} | {spread([b / a for a, b in values])} |")


if __name__ == "__main__":
    main()
