#!/usr/bin/env python3
"""Installs the fork on each pinned base in an environment of its own, tests it there, and prints a table.

> python tests/fork/bases.py [BASE ...]

The environments are in .venv-bases/ and share one torch, which works with all bases: about 7 GB. The next run uses them again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from parity import DOCTESTS, ROOT, base, outcomes, record, start, tree

FOLDER = ROOT / ".venv-bases"
TOUCHED = "the doctests of the touched modules"


def environment(name):
    """Make a virtual environment if it is not there yet; returns its Python and the folder of its packages."""
    if not (FOLDER / name).exists():
        venv.create(FOLDER / name, with_pip=True)
    python = FOLDER / name / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return python, Path(subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def run(*command, **variables):
    """Run a command in the root of the repo; returns whether it succeeded, and its last line of output."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1]


def say(text):
    """Print a step with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def share(oldest):
    """Install what all bases need, mainly torch, as the oldest base requires it; returns the folder of packages."""
    python, packages = environment("shared")
    if not (packages / "torch").exists():
        say(f"installing what {oldest} requires; all bases share it")
        install = ("install", "--no-cache-dir", "-C", f"base={oldest}", ".", "pytest", "hypothesis", "setuptools>=77")
        for words in (install, ("uninstall", "-y", "speechbrain")):
            good, said = run(python, "-m", "pip", *words)
            if not good:
                sys.exit(said)
    return packages


def doctests(fork, python, path):
    """Run the doctests of the modules that the fork touches: upstream's and the fork's own."""
    files = sorted({path for patch in fork.patches for path in patch.delta})
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]
    with tempfile.TemporaryDirectory() as folder:
        start(Path(folder), [*DOCTESTS, *modules], path, python).wait()
        return outcomes(Path(folder))


def test(version, shared):
    """Install the fork on a base, and test it there; returns the cells of its row."""
    fork = record.load(version=version)
    python, packages = environment(version)
    (packages / "shared.pth").write_text(f"{shared}\n")
    variables = {record.WANTED: version}
    say(f"{version}: installing")
    command = ("pip", "install", "--no-cache-dir", "--force-reinstall", "--no-deps", "-C", f"base={version}", ".")
    installed, said = run(python, "-m", *command)
    fits, unmet = run(python, "-m", "pip", "check")
    imports, shown = run(python, "-m", "speechbrain.fork")
    say(f"{version}: the regression tests")
    tests = [patch.tests for patch in fork.patches if tree.replaces(record.lock(), patch)]
    rows, counted = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "regression", *tests, **variables)
    say(f"{version}: {TOUCHED}")
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(base.fetch(fork.base), folder)
        stock, mine = doctests(fork, python, folder), doctests(fork, python, "")
    worse = [name for name, outcome in mine.items() if outcome != "passed" and stock.get(name, "passed") == "passed"]
    lost = [name for name in stock if name not in mine]
    passed = sum(outcome == "passed" for outcome in mine.values())
    return (installed and fits and imports and rows and not worse and not lost), [
        fork.version,
        (unmet if installed else said) if not (installed and fits) else "installs",
        shown,
        counted,
        f"{passed} of {len(mine)} pass" + (f"; not: {', '.join(worse + lost)}" if worse + lost else ""),
        ", ".join(patch.number for patch in fork.not_applicable) or "none",
    ]


def main():
    """Test the bases and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", metavar="BASE", help=f"of {', '.join(record.bases())}; all by default")
    bases = parser.parse_args().bases or record.bases()
    for version in bases:
        record.load(version=version)  # refuses a base that is not pinned, before anything is installed
    shared, table = share(record.bases()[0]), []
    for version in bases:
        begun = time.monotonic()
        good, cells = test(version, shared)
        table.append((good, [*cells, f"{time.monotonic() - begun:.0f} s"]))
    head = ("wheel", "requirements", "python -m speechbrain.fork", "regression tests", TOUCHED, "left out", "time")
    for cells in (head, ["---"] * len(head), *(cells for _, cells in table)):
        print(f"| {' | '.join(cells)} |")
    return 0 if all(good for good, _ in table) else 1


if __name__ == "__main__":
    sys.exit(main())
