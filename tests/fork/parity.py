#!/usr/bin/env python3
"""Runs upstream's tests on the stock release and the installed fork, prints what differs, and exits with 1 if anything does.

> python tests/fork/parity.py                                # the doctests of the whole package, ten minutes on two cores
> python tests/fork/parity.py --upstream-tests CHECKOUT/tests/unittests

Tests that cannot run here (there is no network, extras may be missing) fail on both, so they do not differ.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from composer import base, record, tree  # noqa: E402, F401  found through the path above

# Without this repo's conftest.py, which pytest finds if the environment is a folder of the repo
DOCTESTS = ["--noconftest", "--doctest-modules", "--pyargs"]


def start(folder, arguments, path, python=sys.executable):
    """Start pytest in a folder of its own, with a path before all others; its report and output go into that folder."""
    command = [python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return subprocess.Popen(
        [*command, f"--junitxml={folder}/report.xml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=open(folder / "output.txt", "w"),
        stderr=subprocess.STDOUT,
    )


def outcomes(folder):
    """The outcome of each test by its name, with the kind of the error if it did not pass."""
    report = folder / "report.xml"
    if not report.exists():
        sys.exit(f"pytest ended without a report:\n{(folder / 'output.txt').read_text()[-2000:]}")
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        said = [
            f"{child.tag} {re.match('[A-Za-z.]*', child.get('message', ''))[0]}".strip()
            for child in case
            if child.tag in ("failure", "error", "skipped")
        ]
        found.setdefault(f"{case.get('classname')}::{case.get('name')}", []).append(" and ".join(said) or "passed")
    return {name: ", ".join(sorted(several)) for name, several in found.items()}


def differences(stock, fork):
    """The tests whose outcomes differ; a test that only the fork has must pass."""
    return [
        f"{name}: {stock.get(name, 'absent')} on the stock release, {fork.get(name, 'absent')} on the fork"
        for name in sorted({*stock, *fork})
        if fork.get(name, "absent") != stock.get(name, "passed")
    ]


def main():
    """Run the tests on both, side by side; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream-tests", type=Path, metavar="PATH", help="a folder of upstream's tests, of any checkout")
    tests = parser.parse_args().upstream_tests
    if tests and not tests.is_dir():
        parser.error(f"{tests} is not a folder")
    release = record.load().base
    with tempfile.TemporaryDirectory() as scratch:
        stock, folders = Path(scratch, "package"), [Path(scratch, name) for name in ("stock", "fork")]
        base.unpack(base.fetch(release), stock)
        running = []
        for folder, path in zip(folders, (str(stock), os.environ.get("PYTHONPATH", ""))):
            folder.mkdir()
            arguments = [*DOCTESTS, "speechbrain"]
            if tests:  # a copy, since tests in a checkout would import the package of that checkout
                shutil.copytree(tests, folder / tests.resolve().name)
                for conftest in tests.resolve().parent.glob("conftest.py"):
                    shutil.copy(conftest, folder)
                arguments = [tests.resolve().name]
            running.append(start(folder, arguments, path))
        for process in running:
            process.wait()
        found = [outcomes(folder) for folder in folders]
    for name, results in zip((f"stock {release.version}", "the fork"), found):
        counts = Counter(result.split()[0].strip(",") for result in results.values())
        print(f"{name}: {', '.join(f'{number} {what}' for what, number in sorted(counts.items()))}")
    differ = differences(*found)
    print("\n".join(differ) if differ else "The same on both, except what the fork adds, which passes.")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
