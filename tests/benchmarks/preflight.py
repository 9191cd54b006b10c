#!/usr/bin/env python3
"""Times the preflight and what it is compared with, in turn, and prints the ratios.

> OMP_NUM_THREADS=1 python tests/benchmarks/preflight.py
"""

import functools
import inspect
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from types import SimpleNamespace

import speechbrain as sb
import torch
from interleaved import spread
from speechbrain.preflight import run
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import weights as rules
from speechbrain.preflight.observe import weights
from speechbrain.preflight.quiet import replaced

ROUNDS = 9


def seconds(function):
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def show(name, pairs):
    """Print the median and the quartiles of the ratio of the first to the second time of each pair."""
    one, other = (statistics.median(column) for column in zip(*pairs))
    print(f"| {name} | {one:.3g} s | {other:.3g} s | {spread([one / other for one, other in pairs], 3)} |", flush=True)


def parameters():
    """Time the checks on a transformer of about 1e8 parameters."""
    layers = [torch.nn.TransformerEncoderLayer(768, 12, 3072) for _ in range(14)]
    modules = torch.nn.ModuleDict({"model": torch.nn.ModuleList(layers)})
    tensors = [parameter.detach() for parameter in modules.parameters()]
    count = sum(tensor.numel() for tensor in tensors)

    def check():
        start = SimpleNamespace(weights=weights.look(modules))
        seen = SimpleNamespace(given=SimpleNamespace(modules=modules), start=start, step=SimpleNamespace(identical={}))
        assert not [finding for rule in rules.RULES for finding in rule(seen)]

    pairs = [(seconds(check), seconds(lambda: [tensor.sum() for tensor in tensors])) for _ in range(ROUNDS + 1)]
    show(f"parameter checks, {count / 1e6:.0f} million values, compared with torch.sum", pairs[1:])


class Brain(sb.Brain):
    """A transformer on random features, trained with cross-entropy."""

    def compute_forward(self, batch, stage):
        """Compute the scores."""
        return self.modules.head(self.modules.model(batch[0]).mean(1))

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss."""
        return torch.nn.functional.cross_entropy(predictions, batch[1])


def make(folder):
    """Do what a script does before fit()."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    modules = {"model": torch.nn.TransformerEncoder(layer, 6), "head": torch.nn.Linear(256, 10)}
    checkpointer = sb.utils.checkpoints.Checkpointer(folder, dict(modules))
    return Brain(modules, torch.optim.Adam, {}, {"device": "cpu", "noprogressbar": True}, checkpointer)


DATA = torch.utils.data.TensorDataset(torch.randn(16, 100, 256), torch.randint(10, (16,)))
LOADER = {"batch_size": 8}


def plain():
    """Train a Brain for one batch."""
    with tempfile.TemporaryDirectory() as folder:
        brain = make(folder)
        brain.debug, brain.debug_batches, brain.debug_epochs = True, 1, 1
        brain.fit(range(1, 2), DATA, train_loader_kwargs=LOADER)


def flown():
    """Do the same with the preflight."""
    with tempfile.TemporaryDirectory() as folder:
        report = Takeover(scan_seconds=0).run(lambda: make(folder).fit(range(1, 2), DATA, train_loader_kwargs=LOADER))
        assert not report.findings, report.text()


def first_batch():
    """Compare the preflight, and then only its checks, with a script up to its first batch."""
    plain(), flown()
    show("a script up to its first batch, imports not counted", [(seconds(flown), seconds(plain)) for _ in range(ROUNDS)])
    spent = []

    def timed(function):
        @functools.wraps(function)
        def call(*arguments):
            start = time.perf_counter()
            answer = function(*arguments)
            answer = list(answer) if inspect.isgenerator(answer) else answer
            spent.append(time.perf_counter() - start)
            return answer

        return call

    pairs = []
    with ExitStack() as stack:
        stack.enter_context(replaced(run, "RULES", tuple(map(timed, run.RULES))))
        for owner, name in ((weights, "look"), (run, "audio"), (run, "labels")):
            stack.enter_context(replaced(owner, name, timed(getattr(owner, name))))
        for _ in range(ROUNDS):
            spent.clear()
            flown()
            script = seconds(lambda: subprocess.run([sys.executable, __file__, "--plain"], check=True))
            pairs.append((sum(spent), script))
    show("its checks only, compared with a whole script up to its first batch", pairs)


def main():
    """Print a table of the ratios."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    if sys.argv[1:] == ["--plain"]:
        return plain()
    print("| | preflight | without | preflight / without: median (quartiles) |\n| --- | --- | --- | --- |")
    parameters()
    first_batch()


if __name__ == "__main__":
    main()
