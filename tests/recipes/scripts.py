"""Helpers for the tests of the recipe SpokenWords: they run its scripts."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from unittest import mock

import torch

from composer import record

RECIPE = record.ROOT / "recipes" / "SpokenWords"
sys.path.insert(0, str(RECIPE / "finetuning"))

PRETRAINED, NEW = ["yes", "no", "up"], ["cat", "dog"]

# A process that has imported the slow modules, but none of the recipe. It forks for each call of ``forked``.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["speechbrain.inference.classifiers", "torch._dynamo", "matplotlib.pyplot"])


def make(folder, *options):
    """Make speech, without output."""
    command = [
        sys.executable,
        RECIPE / "make_spoken_words.py",
        folder,
        *PRETRAINED,
        *NEW,
        "--speakers=24",
        "--snr",
        "15",
        "30",
        *options,
    ]
    subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)


def environment(stock=None):
    """Environment variables for a script of the recipe; from ``stock``, a folder, it imports speechbrain."""
    return {**os.environ, "PYTHONPATH": str(stock or ""), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def command(script, *arguments):
    """The command line of a script of the recipe."""
    if script in ("train.py", "pretrain.py"):
        yaml = "pretrain" if script == "pretrain.py" else "finetune"
        arguments = [RECIPE / f"finetuning/hparams/{yaml}.yaml", *arguments, "--device=cpu", "--noprogressbar"]
    return list(map(str, [sys.executable, RECIPE / "finetuning" / script, *arguments]))


def run(script, *arguments, stock=None, cwd=None):
    """Run a script of the recipe; returns its exit status and its output."""
    done = subprocess.run(
        command(script, *arguments),
        cwd=cwd or RECIPE / "finetuning",
        env=environment(stock),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def forked(script, *arguments, cwd=None):
    """Like ``run``, but without the seconds that the imports of a new process take.

    All forks start with the same random numbers and hashes: to test that a run is reproducible, compare it with one of ``run``.
    """
    program = command(script, *arguments)[1:]
    with tempfile.NamedTemporaryFile() as output, mock.patch.dict(os.environ, environment()):  # which the first fork passes on
        process = FORKS.Process(target=become, args=(program, cwd or RECIPE / "finetuning", output.name))
        process.start()
        process.join()
        return process.exitcode, output.read().decode()


def become(program, cwd, output):
    """In the fork: do what Python does with the command line ``program``. The exit status comes from multiprocessing."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(cwd)
    sys.argv = program
    sys.path.insert(0, os.path.dirname(program[0]))
    runpy.run_path(program[0], run_name="__main__")


def weights(folder):
    """All tensors of the model that train.py saved in its output folder."""
    states = [torch.load(path) for path in sorted((folder / "inference").glob("[ce]*.ckpt"))]
    return [value for state in states for value in state.values()]


def same(one, other):
    """Whether two lists of tensors are equal and not empty."""
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))
