#!/usr/bin/env python3
"""Times the fork's definitions against the stock release's, in turn in one process, and prints the ratios.

> OMP_NUM_THREADS=1 python tests/benchmarks/against_stock.py
"""

import importlib
import logging
import shutil
import statistics
import sys
import tempfile
import timeit
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from composer import base, record  # noqa: E402  the path above leads to it

MIX = [1, 999, 12345, 999_999, 1234567, 123456789, 7_000_000_000]
ROUNDS = 15


def load(folder=None):
    """Import speechbrain afresh, from a folder or as it is installed; returns its Brain, formatter and Checkpointer."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        del sys.modules[name]
    sys.path[:0] = [str(folder)] if folder else []
    package = importlib.import_module("speechbrain")
    logger = importlib.import_module("speechbrain.utils.logger")
    if folder:
        sys.path.remove(str(folder))
    print(f"  {package.__version__}  {Path(package.__file__).parent}")
    checkpoints = importlib.import_module("speechbrain.utils.checkpoints")
    return package.Brain, logger.format_order_of_magnitude, checkpoints.Checkpointer


def compare(name, stock, fork, number):
    """Time two calls in turn; prints the median ratio of neighbours, and its quartiles."""
    ratios, times = [], []
    for _ in range(ROUNDS):
        one, other = (timeit.timeit(call, number=number) / number for call in (stock, fork))
        ratios.append(other / one)
        times.append((one, other))
    low, middle, high = statistics.quantiles(ratios, n=4)
    one, other = (statistics.median(column) for column in zip(*times))
    print(f"| {name} | {one:.3g} s | {other:.3g} s | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def main():
    """Print a table of the ratios."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(base.fetch(record.load().base), folder)
        print("Compared are:")
        (stock_brain, stock_format, stock_checkpointer), (brain, fork_format, checkpointer) = load(folder), load()
    logging.disable(logging.CRITICAL)
    print("\n| | stock | fork | fork / stock: median (quartiles) |\n| --- | --- | --- | --- |")
    compare(
        "`format_order_of_magnitude`, seven counts",
        lambda: [stock_format(number) for number in MIX],
        lambda: [fork_format(number) for number in MIX],
        20_000,
    )
    for tensors in (1_000, 100_000):
        modules = {"m": torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(1)) for _ in range(tensors))}
        one, other = (cls(modules, run_opts={"device": "cpu"}) for cls in (stock_brain, brain))
        compare(
            f"`print_trainable_parameters`, {tensors} tensors",
            one.print_trainable_parameters,
            other.print_trainable_parameters,
            max(1, 20_000 // tensors),
        )
    with tempfile.TemporaryDirectory() as folder:
        model = torch.nn.Linear(2000, 2000)
        one, other = (
            cls(Path(folder, name), {"m": model}) for name, cls in (("stock", stock_checkpointer), ("fork", checkpointer))
        )

        from speechbrain.utils.checkpoints import _flush, _flush_names  # the fork's, which was loaded last

        def save_and_flush():
            """Save as the stock release does, then have it written to the disk as the fork has."""
            saved = one.save_checkpoint().path
            _flush(saved)
            _flush_names(one.checkpoints_dir)
            shutil.rmtree(saved)

        compare(
            "`save_checkpoint`, 16 MB, against stock and a flush",
            save_and_flush,
            lambda: shutil.rmtree(other.save_checkpoint().path),
            5,
        )


if __name__ == "__main__":
    main()
