"""Helpers for the tests of the recipe SpokenWords: they run its scripts."""

import os
import subprocess
import sys

import torch

from composer import record

RECIPE = record.ROOT / "recipes" / "SpokenWords"
sys.path.insert(0, str(RECIPE / "finetuning"))

PRETRAINED, NEW = ["yes", "no", "up"], ["cat", "dog"]


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


def weights(folder):
    """All tensors of the model that train.py saved in its output folder."""
    states = [torch.load(path) for path in sorted((folder / "inference").glob("[ce]*.ckpt"))]
    return [value for state in states for value in state.values()]


def same(one, other):
    """Whether two lists of tensors are equal and not empty."""
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))
