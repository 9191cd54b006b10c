"""The fork with fewer patches: each choice imports, and passes the tests of what is in it."""

import os
import subprocess
import sys

import pytest

from composer import base, metadata, record, tree

ALL = record.load(patches=" ".join(patch.name for patch in record.all_patches())).patches
NEEDED = {number for patch in ALL for number in patch.needs}
OPTIONAL = [patch.number for patch in ALL if patch.number not in NEEDED | {record.FIRST}]
WITHOUT = {f"without {left_out}": " ".join(p.number for p in ALL[1:] if p.number != left_out) for left_out in OPTIONAL}
# The preflight and watch are long to test and need no other patch: they are tested once, on otherwise stock behaviour.
ALONE = {"0006", "0007"}
CHOICES = {"none": "none", "preflight and watch": " ".join(sorted(ALONE)), **WITHOUT}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_tests_of_what_is_in_pass(stock_wheel, tmp_path, choice):
    fork = record.load(patches=choice)
    metadata.write(tree.compose(fork, base.members(stock_wheel.read_bytes()), record.lock()), tmp_path)
    folders = [patch.tests for patch in fork.patches if patch.number not in ALONE or set(choice.split()) == ALONE]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not torchrun", *folders],
        cwd=record.ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), record.CHOSEN: choice},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
