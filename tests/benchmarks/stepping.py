#!/usr/bin/env python3
"""Times a training step with the fork and with the stock release, in turn.

> OMP_NUM_THREADS=1 python tests/benchmarks/stepping.py

The model is 30 small pairs of a linear layer and a BatchNorm: there the fork's
checks and copies of running statistics weigh more than in any real model.
"""

import logging

import torch
from interleaved import COMPARED, compare, seconds, stock_and_fork

PAIRS = 30
ROUNDS = 31


def trainer(core):
    """Return a call that trains one step with the ``Brain`` of a module."""

    class Brain(core.Brain):
        def compute_forward(self, batch, stage):
            return self.modules.layers(batch)

        def compute_objectives(self, predictions, batch, stage):
            return predictions.pow(2).mean()

    torch.manual_seed(0)
    layers = [layer for _ in range(PAIRS) for layer in (torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16))]
    brain = Brain({"layers": torch.nn.Sequential(*layers)}, torch.optim.SGD, run_opts={"device": "cpu"})
    brain.init_optimizers()
    brain.modules.train()
    brain.nonfinite_count, brain.step, batch = 0, 1, torch.randn(8, 16)
    return lambda: brain.fit_batch(batch)


def main():
    """Print a table of one row."""
    torch.set_num_threads(1)
    modules = stock_and_fork("speechbrain.core")
    logging.disable(logging.CRITICAL)
    calls = dict(zip(("stock", "fork"), map(trainer, modules)))
    print(f"\n{COMPARED}")
    compare(f"a training step of {PAIRS} pairs of Linear and BatchNorm", seconds(calls, ROUNDS))


if __name__ == "__main__":
    main()
