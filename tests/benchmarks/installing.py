#!/usr/bin/env python3
"""Times the installation of the fork and the stock release into empty folders, and their import from there, in turn.

> OMP_NUM_THREADS=1 python tests/benchmarks/installing.py

Each installation and each import runs in its own process. The requirements are already installed, and the network is not
used. The time of an import is measured inside the process; the share of PyTorch, the same for both, is shown separately.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from interleaved import COMPARED, ROOT, base, compare, record, seconds

ROUNDS = 5

IMPORT = """
import time; began = time.perf_counter()
import torch, torchaudio; halfway = time.perf_counter()
import speechbrain; ended = time.perf_counter()
print(speechbrain.__version__, ended - began, ended - halfway)
"""


def run(command, folder, **environment):
    """Run a Python command in a folder; returns its output."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def main():
    """Print a table of the ratios."""
    with tempfile.TemporaryDirectory() as work:
        release = record.load().base
        wheel = Path(work, release.wheel)
        wheel.write_bytes(base.fetch(release))
        pip = ["-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
        alone = ["--no-deps", "--no-index", "--no-build-isolation"]

        def install(name, source):
            def call():
                shutil.rmtree(Path(work, name), ignore_errors=True)
                run([*pip, "install", *alone, "--target", Path(work, name), source], work, SPEECHBRAIN_BASE_WHEEL=str(wheel))

            return call

        run([*pip, "wheel", *alone, "--wheel-dir", Path(work, "built"), ROOT], work, SPEECHBRAIN_BASE_WHEEL=str(wheel))
        (built,) = Path(work, "built").iterdir()
        sources = {"stock": wheel, "fork": built, "checkout": ROOT}
        installs = seconds({name: install(name, source) for name, source in sources.items()}, ROUNDS)
        imports = {"stock": [], "fork": []}
        for i in range(ROUNDS + 1):  # the first round fills the page cache
            for name, times in imports.items():
                version, *took = run(["-c", IMPORT], work, PYTHONPATH=str(Path(work, name))).split()
                if i:
                    times.append([float(time) for time in took])
                else:
                    print(f"Comparing {version}", file=sys.stderr)
    whole, own = ({name: [time[i] for time in times] for name, times in imports.items()} for i in (0, 1))
    print(f"\n{COMPARED}")
    compare("`import speechbrain`", whole)
    compare("without the import of torch and torchaudio", own)
    compare("`pip install` of the wheel", installs)
    compare("`pip install` of the checkout, which builds the wheel", {**installs, "fork": installs["checkout"]})


if __name__ == "__main__":
    main()
