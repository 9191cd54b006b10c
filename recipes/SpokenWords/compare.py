#!/usr/bin/env python3
"""Fine-tunes three ways and prints the table of results: the frozen encoder without and with the cache, and both stages.

The ways run one after the other on one thread, each in a process of its own and
from a new output folder. Options after ``--`` go to each of them.

> python compare.py
> python compare.py -- --data_folder /path/to/speech_commands --source results/sc_pretrain/inference
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING = Path(__file__).resolve().parent / "finetuning"
WAYS = {
    "frozen encoder": ("head", ["--unfreeze=False", "--cache_embeddings=False"]),
    "frozen encoder, cached": ("head", ["--unfreeze=False"]),
    "cached, then unfrozen": ("full", []),
}


def run(script, *arguments):
    """Run a script of the recipe, its words to standard error; ends the program if it fails."""
    command = [sys.executable, script, f"hparams/{'pretrain' if script == 'pretrain.py' else 'finetune'}.yaml", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, cwd=TRAINING, env=environment, stdout=sys.stderr).returncode:
        sys.exit(f"{script} failed, as said above.")


def compare(ways, options):
    """Run train.py in some of the ways; returns what each one's metrics.json tells."""
    told = {}
    with tempfile.TemporaryDirectory() as work:
        for name in ways:
            folders = [f"--{key}_folder={Path(work, name, key)}" for key in ("output", "cache")]
            run("train.py", *folders, *WAYS[name][1], "--device=cpu", "--noprogressbar", *options)
            told[name] = json.loads(Path(work, name, "output", "metrics.json").read_text())
    return told


def show(told):
    """Print the table, and how much faster the cache makes it."""
    print("| | test error | seconds per epoch | seconds in all |\n| --- | --- | --- | --- |")
    for name, metrics in told.items():
        stage = metrics[WAYS[name][0]]
        print(f"| {name} | {stage['test_error']:.1%} | {stage['seconds_per_epoch']:.2f} | {metrics['seconds']:.0f} |")
    plain, cached = (told[name] for name in list(WAYS)[:2])
    ratio = plain["head"]["seconds_per_epoch"] / cached["head"]["seconds_per_epoch"]
    print(
        f"\nWith the cache an epoch is {ratio:.0f} times faster, and a run of {len(plain['head']['epochs'])} epochs "
        f"{plain['seconds'] / cached['seconds']:.1f} times, from the end of the imports to the end of the test."
    )


def main():
    """Run all ways, after pretraining where there is no encoder yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="options of train.py, after --")
    options = parser.parse_args().options
    named = any(option.startswith("--source") for option in options)
    if not named and not (TRAINING / "results/pretrain/1234/inference").is_dir():
        run("pretrain.py", "--device=cpu", "--noprogressbar")
    show(compare(WAYS, options))


if __name__ == "__main__":
    main()
