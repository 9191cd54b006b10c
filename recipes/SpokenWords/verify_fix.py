#!/usr/bin/env python3
"""Runs the same recipe on the stock release, on the minimal fork and on the installed fork, and shows them side by side.

The stock release is the hash-checked wheel that the fork is built from. The
minimal fork is that wheel with PR #2537 only (`-C patches=none`). Both are
in a temporary folder that is put first on PYTHONPATH. Exits with 0 only if

- the stock release crashes with the original error,
- the minimal fork and the installed fork train to a lower error,
- the preflight, if it is installed, finds no error in that run, and names the
  two faults that this script then makes on purpose.

> python verify_fix.py
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from composer import base, metadata, record, tree  # noqa: E402  found through the line above

ERROR, FUNCTION = "ValueError: math domain error", "in format_order_of_magnitude"
# Runs in one process on each package: the name of a row, and an expression whose value the table shows.
CALLS = {
    "format_order_of_magnitude(0)": "sb.utils.logger.format_order_of_magnitude(0)",
    "Brain, all parameters frozen": "sb.Brain({'m': Linear(9, 9).requires_grad_(False)}) and 'constructs'",
    "Brain, a LazyLinear": "sb.Brain({'m': LazyLinear(9)}) and 'constructs'",
}
TRY_CALLS = f"""
import sys, traceback
import speechbrain as sb
from torch.nn import Linear, LazyLinear
print("version:", sb.__version__)
for call in {list(CALLS.values())}:
    try:
        print("outcome:", eval(call))
    except Exception:
        print("outcome:", traceback.format_exc().splitlines()[-1])
"""
INSTALL = "install the fork into this environment (`pip install .` in the root of the repository), or run `make verify`"
SHOWN = re.compile(r"(trainable of|epoch: |Test error|making |Found: )")


def run(arguments, log, stock=None):
    """Run Python in a new process, and print its lines of progress; returns (exit status, output)."""
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(stock) if stock else ""}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=HERE / "finetuning",
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    with open(log, "w") as file:
        for line in process.stdout:
            file.write(line)
            lines.append(line.rstrip())
            if SHOWN.search(line):
                print(f"    {line.rstrip().split(' - ', 1)[-1][:110]}", flush=True)
    return process.wait(), lines


def damage(work):
    """Save the encoder as if it were wrapped, and copy a training clip over a validation clip."""
    import torch

    encoder = work / "wrapped" / "embedding_model.ckpt"
    shutil.copytree(work / "pretrain" / "inference", encoder.parent)
    torch.save({f"module.{key}": value for key, value in torch.load(encoder).items()}, encoder)
    manifests = [json.loads((work / "fork" / f"{split}.json").read_text()) for split in ("train", "valid")]
    shutil.copy(*(next(iter(items.values()))["wav"].replace("{data_root}", str(work / "data")) for items in manifests))


def last(lines):
    """The last line that a process wrote; if it crashed, that is the error of its traceback."""
    return next((line for line in reversed(lines) if line.strip()), "nothing")


def main():
    """Compare, print the table, and exit with 0 only if it proves the fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    minimal = record.load(patches="none")
    installed = importlib.metadata.distribution("speechbrain")
    has_preflight = (Path(installed.locate_file("speechbrain")) / "preflight").exists()
    revision = minimal.version.removesuffix(".none")
    if not f"{installed.version}.".startswith(f"{revision}."):
        sys.exit(f"expected an installed speechbrain {revision}, found {installed.version}: {INSTALL}.")
    work = Path(tempfile.mkdtemp(prefix="verify_fix-"))
    started = time.monotonic()

    def step(text):
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    step(f"downloading speechbrain {minimal.base.version} and checking its hash")
    wheel = base.fetch(minimal.base)
    base.unpack(wheel, work / "stock")
    metadata.write(tree.compose(minimal, base.members(wheel), record.lock()), work / "minimal")
    packages = [
        ("stock", work / "stock", minimal.base.version),
        ("minimal", work / "minimal", minimal.version),
        ("fork", None, installed.version),
    ]

    table = {name: [] for name in CALLS}
    for label, package, expected in packages:
        step(f"the function and the Brain on the {label} package")
        status, lines = run(["-c", TRY_CALLS], work / f"calls_{label}.log", package)
        found = [line.partition(": ")[2] for line in lines if line.startswith(("version: ", "outcome: "))]
        if status or found[0] != expected:
            sys.exit(f"expected speechbrain {expected}, found {found[0] if found else last(lines)}: {INSTALL}.")
        for name, said in zip(CALLS, found[1:]):
            table[name].append(said)

    common = ["--device=cpu", "--noprogressbar", f"--data_folder={work / 'data'}", "--make_speech=True"]
    step("the recipe: making speech and pretraining an encoder")
    arguments = ["pretrain.py", "hparams/pretrain.yaml", f"--output_folder={work / 'pretrain'}"]
    small = ["--model={channels: 24}", "--number_of_epochs=6"]  # half the channels and half the epochs, to be quick
    status, lines = run([*arguments, *small, *common], work / "pretrain.log")
    if status:
        sys.exit(f"pretraining failed: {last(lines)}; the whole log is in {work / 'pretrain.log'}")
    table["the recipe, train.py"] = row = []
    complaints = []
    fine_tuning = ["train.py", "hparams/finetune.yaml", "--full_epochs=3", f"--cache_folder={work / 'embeddings'}", *common]
    encoder = work / "pretrain" / "inference"
    preflight = ["-m", "speechbrain.preflight", *fine_tuning, "--cache_embeddings=False"]  # so that it sees audio
    if has_preflight:
        step("the recipe: the preflight, before epoch 1")
        options = [f"--source={encoder}", f"--output_folder={work / 'preflight'}"]
        status, lines = run([*preflight, *options], work / "preflight.log")
        if status:
            sys.exit(f"the preflight found an error: {last(lines)}; the whole log is in {work / 'preflight.log'}")
    for label, package, _ in packages:
        step(f"the recipe: fine-tuning on the {label} package")
        options = [f"--source={encoder}", f"--output_folder={work / label}"]
        status, lines = run([*fine_tuning, *options], work / f"train_{label}.log", package)
        errors = [float(error) for error in re.findall(r"Test error \w+ fine-tuning: ([\d.]+)%", "\n".join(lines))]
        trained = status == 0 and len(errors) == 2
        row.append(f"test error {errors[0]} % -> {errors[1]} %" if trained else last(lines))
        if label == "stock" and not (status and last(lines) == ERROR and any(FUNCTION in line for line in lines)):
            complaints.append("the stock release did not crash with that error")
        if label != "stock" and not (trained and errors[1] < errors[0]):
            complaints.append(f"{'the fork' if label == 'fork' else 'the minimal fork'} did not train to a lower error")

    if has_preflight and not complaints:
        step("the recipe: the preflight, on an encoder saved from a wrapped model and on a copied clip\n")
        damage(work)
        options = [f"--source={work / 'wrapped'}", f"--output_folder={work / 'broken'}"]
        status, lines = run([*preflight, *options], work / "broken.log")
        report = "\n".join(lines[next((i for i, line in enumerate(lines) if line == "plan"), 0) :])
        print(f"\n{report}\n")
        if status != 1 or not all(code in report for code in ("pretrained-not-loaded", "audio-leak")):
            complaints.append("the preflight did not name the two faults made on purpose")

    step("done\n")
    table = {name: [textwrap.shorten(cell, 60) for cell in cells] for name, cells in table.items()}
    rows = [("", *(f"{label} {version}" for label, _, version in packages)), *((name, *cells) for name, cells in table.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, tuple("-" * width for width in widths))
    for cells in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |")
    if complaints:
        sys.exit(f"\nNot proved: {' and '.join(complaints)}; the logs are in {work}")
    shutil.rmtree(work)
    print(f'\nProved: the stock release crashes with "{ERROR}"; the fork trains, and so does the minimal fork.')


if __name__ == "__main__":
    main()
