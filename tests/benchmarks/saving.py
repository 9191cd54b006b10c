#!/usr/bin/env python3
"""Times saving a checkpoint with the fork and with the stock release, in turn.

> OMP_NUM_THREADS=1 python tests/benchmarks/saving.py
"""

import logging
import shutil
import tempfile
from pathlib import Path

import torch
from interleaved import COMPARED, compare, seconds, stock_and_fork


def main():
    """Print a table of one row."""
    torch.set_num_threads(1)
    modules = stock_and_fork("speechbrain.utils.checkpoints")
    fork = modules[1]
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        recoverables = {"m": torch.nn.Linear(2000, 2000)}
        one, other = (module.Checkpointer(Path(folder, str(i)), recoverables) for i, module in enumerate(modules))

        def save_and_flush():
            """Save as the stock release does, then flush the files to the disk as the fork does."""
            saved = one.save_checkpoint().path
            fork._flush(saved)
            fork._flush_names(one.checkpoints_dir)
            shutil.rmtree(saved)

        times = seconds({"stock": save_and_flush, "fork": lambda: shutil.rmtree(other.save_checkpoint().path)}, rounds=15)
    print(f"\n{COMPARED}")
    compare("`save_checkpoint`, 16 MB; stock with a flush added", times)


if __name__ == "__main__":
    main()
