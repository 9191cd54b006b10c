#!/usr/bin/env python3
"""Kills training runs with SIGKILL at random moments, and fills a disk while saving; prints what was lost.

A killed run is started again, in the same way, until it ends. A run is lost if it
cannot be resumed, or if it ends with other weights than a run that was never
killed.

> python tests/faults/checkpoints.py --kills 200
"""

import argparse
import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from tqdm import tqdm

EPOCHS = 12


class Brain(sb.Brain):
    """Saves after each epoch and every few steps; its training uses no random numbers."""

    def compute_forward(self, batch, stage):
        """Apply the model."""
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        """Compare with the targets."""
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keep the best and the newest checkpoint."""
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"], verbosity=logging.DEBUG)


def train(folder):
    """Train to the end, from the newest checkpoint in the folder if there is one; returns a digest of the weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(99, 99), torch.nn.BatchNorm1d(99), torch.nn.Linear(99, 1))
    data = torch.utils.data.TensorDataset(torch.randn(64, 99), torch.randn(64, 1))
    counter = EpochCounter(EPOCHS)
    brain = Brain(
        {"model": model},
        torch.optim.Adam,
        run_opts={"device": "cpu", "noprogressbar": True, "ckpt_interval_steps": 3},
        checkpointer=Checkpointer(folder, {"model": model, "counter": counter}),
    )
    brain.fit(counter, data, data, train_loader_kwargs={"batch_size": 16}, valid_loader_kwargs={"batch_size": 64})
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def start(folder):
    """Fork a process that trains, and then writes the digest next to the folder of checkpoints."""
    child = os.fork()
    if child:
        return child
    with open(f"{folder}.log", "a") as log:
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        digest = train(folder)
        Path(f"{folder}.part").write_text(digest)
        os.rename(f"{folder}.part", f"{folder}.done")
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def kill_runs(work, kills, seed):
    """Start runs, and kill them until `kills` processes were killed; returns how often the runs ended in which way."""
    random.seed(seed)
    expected = train(work / "reference")
    began = time.monotonic()
    train(work / "again")  # timed, as the first run also warms up
    duration = time.monotonic() - began
    runs, killed, number = Counter(), 0, 0
    progress = tqdm(total=kills, desc="killing", unit="kill", mininterval=0.1 if sys.stderr.isatty() else 10)
    while killed < kills:
        number += 1
        folder = work / f"run{number}"
        while killed < kills or not Path(f"{folder}.done").exists():
            child = start(folder)
            if killed < kills:
                time.sleep(random.uniform(0, 0.6 * duration))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == -signal.SIGKILL:
                killed += 1
                progress.update()
            elif status:
                runs[f"lost: {Path(f'{folder}.log').read_text().splitlines()[-1][:70]}"] += 1
                break
            else:
                same = Path(f"{folder}.done").read_text() == expected
                runs["ended with the weights of the uninterrupted run" if same else "lost: ended with other weights"] += 1
                break
        shutil.rmtree(folder, ignore_errors=True)
    progress.close()
    return runs


def fill_disk(work):
    """Save on a small disk until it is full; returns which checkpoint is found afterwards."""
    disk = work / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        return "not tested: no tmpfs can be mounted here"
    try:
        model = torch.nn.Linear(200, 200)
        checkpointer = Checkpointer(disk / "save", {"model": model})
        saves, error = 0, None
        while error is None:
            model.weight.data.fill_(saves + 1)
            try:
                checkpointer.save_checkpoint(name=str(saves), verbosity=logging.DEBUG)
                saves += 1
            except (OSError, RuntimeError) as caught:
                error = caught
        found = Checkpointer(disk / "save", {"model": model}).recover_if_possible()
        kept = found is not None and found.path.name == f"CKPT+{saves - 1}" and bool((model.weight == saves).all())
        left = [path.name for path in (disk / "save").iterdir() if not path.name.startswith("CKPT")]
        return (
            f"{type(error).__name__} after {saves} saves; the last whole one is found: {kept}; left over: {left or 'nothing'}"
        )
    except Exception as error:
        return f"lost: {type(error).__name__}: {str(error)[:70]}"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def main():
    """Print the counts; exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments of the kills (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        runs = kill_runs(Path(work), arguments.kills, arguments.seed)
        print(f"speechbrain {sb.__version__}: {arguments.kills} kills with SIGKILL, {sum(runs.values())} runs")
        for outcome, count in runs.most_common():
            print(f"{count:5}  {outcome}")
        disk = fill_disk(Path(work))
        print(f"full disk: {disk}")
    sys.exit(any(outcome.startswith("lost") for outcome in [*runs, disk]))


if __name__ == "__main__":
    main()
