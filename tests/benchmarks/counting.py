#!/usr/bin/env python3
"""Counts the parameters of models of 1e3, 1e4 and 1e5 tensors with the fork, the stock release and two other libraries.

> OMP_NUM_THREADS=1 python tests/benchmarks/counting.py

The tensors are the weights and biases of small linear layers. The growth is the
slope of the time over the number of tensors, both as logarithms: 1 is linear.
"""

import logging
import statistics
from math import log

import torch
from interleaved import optional, ratio, seconds, spread, stock_and_fork

SIZES = [1_000, 10_000, 100_000]
ROUNDS = 5


def counters():
    """For each library, its name and a function that turns layers into a call that counts their parameters."""
    stock, fork = stock_and_fork("speechbrain.core")
    for name, module in (("fork", fork), ("stock", stock)):
        yield name, lambda layers, m=module: m.Brain({"m": layers}, run_opts={"device": "cpu"}).print_trainable_parameters
    summary = optional("pytorch_lightning.utilities.model_summary", "ModelSummary")
    if summary:
        from pytorch_lightning import LightningModule

        def lightning(layers):
            model = LightningModule()
            model.m = layers

            def count():
                summed = summary(model)
                return summed.total_parameters, summed.trainable_parameters

            return count

        yield "lightning, `ModelSummary`", lightning
    if torchinfo := optional("torchinfo", "summary"):
        yield "torchinfo, `summary`", lambda layers: lambda: torchinfo(layers, verbose=0)


def main():
    """Print the table."""
    torch.set_num_threads(1)
    makers = dict(counters())
    logging.disable(logging.CRITICAL)
    times = {}
    for size in SIZES:
        layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(size // 2))
        times[size] = seconds({name: make(layers) for name, make in makers.items()}, ROUNDS)
    heads = ["counting parameters, times the fork's: median (quartiles)", *(f"{n} tensors" for n in SIZES), "growth"]
    print(f"\n| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for name in makers:
        each = [ratio(times[n], name, over="fork") for n in SIZES]
        if name == "fork":
            each = [f"{statistics.median(times[n][name]):.3g} s" for n in SIZES]
        rounds = zip(*(times[n][name] for n in SIZES))
        slopes = [statistics.linear_regression([log(n) for n in SIZES], [log(t) for t in one]).slope for one in rounds]
        print(f"| {name} | {' | '.join(each)} | {spread(slopes)} |")


if __name__ == "__main__":
    main()
