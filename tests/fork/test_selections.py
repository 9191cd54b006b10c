"""The fork with fewer patches: each choice imports, and passes the tests of what is in it."""

import json
import subprocess
import sys

import pytest

from composer import base, metadata, record, tree

ALL = record.load(patches="all").patches
NEEDED = {number for patch in ALL for number in patch.needs}
OPTIONAL = [patch.number for patch in ALL[1:] if patch.number not in NEEDED]
WITHOUT = {f"without {left_out}": " ".join(p.number for p in ALL[1:] if p.number != left_out) for left_out in OPTIONAL}
# The preflight and watch take long to test and need no other patch: they are tested once, without the other patches.
ALONE = {"0006", "0007"}.intersection(patch.number for patch in ALL)
CHOICES = {"none": "none", "preflight and watch": " ".join(sorted(ALONE)) or "none", **WITHOUT}

# Imports what all choices share only once, since that takes most of the time, and runs pytest in a forked process for each.
FORKS = """
import json, os, sys
import huggingface_hub, hypothesis, hyperpyyaml, pytest, scipy.stats, torch, torchaudio

for line in sys.stdin:
    choice, folder, output, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        os.environ.update(SPEECHBRAIN_PATCHES=choice, PYTHONPATH=folder)
        sys.path.insert(0, folder)
        os._exit(pytest.main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    """subprocess.Popen: Takes a line for each run of pytest, and answers with its exit status."""
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, cwd=record.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_tests_of_what_is_in_pass(stock_wheel, tmp_path, forks, choice):
    fork = record.load(patches=choice)
    metadata.write(tree.compose(fork, base.members(stock_wheel.read_bytes()), record.lock()), tmp_path / "package")
    folders = [patch.tests for patch in fork.patches if patch.number not in ALONE or set(choice.split()) == ALONE]
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not torchrun", *map(str, folders)]
    output = tmp_path / "output"
    print(json.dumps([choice, str(tmp_path / "package"), str(output), arguments]), file=forks.stdin, flush=True)
    status = int(forks.stdout.readline())
    assert status == 0 and " passed" in output.read_text(), output.read_text()
