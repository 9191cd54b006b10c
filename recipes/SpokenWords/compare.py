#!/usr/bin/env python3
"""Fine-tunes in three ways, and prints a table of their results.

The ways are: only the first stage without the cache, only the first stage with
it, and both stages. They run in turn, on one thread, with one seed after the
other, each as a new process with a new output folder. All get the options after
``--``.

> python compare.py
> python compare.py --seeds 1 -- --data_folder /path/to/speech_commands --source results/sc_pretrain/inference
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from operator import itemgetter
from pathlib import Path
from statistics import mean, median

TRAINING = Path(__file__).resolve().parent / "finetuning"
WAYS = {
    "frozen encoder": ("head", ["--unfreeze=False", "--cache_embeddings=False"]),
    "frozen encoder, cached": ("head", ["--unfreeze=False"]),
    "cached, then unfrozen": ("full", []),
}
TEST = itemgetter("test_loss", "test_error")


def run(script, *arguments):
    """Run a script of the recipe, with its output on standard error; if it fails, exit."""
    command = [sys.executable, script, f"hparams/{'pretrain' if script == 'pretrain.py' else 'finetune'}.yaml", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, cwd=TRAINING, env=environment, stdout=sys.stderr).returncode:
        sys.exit(f"{script} failed; the lines above say why.")


def compare(ways, options, seeds):
    """Run train.py in some of the ways with the seeds 1, 2, ...; returns a list of metrics for each way."""
    found = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as work:
        runs = list(itertools.product(range(1, seeds + 1), ways))
        for number, (seed, name) in enumerate(runs, 1):
            print(f"compare.py: run {number} of {len(runs)}: {name}, seed {seed}", file=sys.stderr, flush=True)
            folder = Path(work, f"{name} {seed}")
            folders = [f"--{key}_folder={folder / key}" for key in ("output", "cache")]
            run("train.py", *folders, f"--seed={seed}", *WAYS[name][1], "--device=cpu", "--noprogressbar", *options)
            found[name].append(json.loads((folder / "output/metrics.json").read_text()))
    return found


def show(found):
    """Print the table, how much faster the cache is, and whether it changes the results."""
    print("| | test error | seconds per epoch | seconds in all |\n| --- | --- | --- | --- |")
    for name, runs in found.items():
        stages = [metrics[WAYS[name][0]] for metrics in runs]
        errors = [stage["test_error"] for stage in stages]
        spread = f" ({min(errors):.1%} to {max(errors):.1%})" if len(runs) > 1 else ""
        epoch = median(stage["seconds_per_epoch"] for stage in stages)
        whole = median(metrics["seconds"] for metrics in runs)
        print(f"| {name} | {mean(errors):.1%}{spread} | {epoch:.2f} | {whole:.0f} |")
    pairs = list(zip(*(found[name] for name in list(WAYS)[:2])))
    whole = median(plain["seconds"] / cached["seconds"] for plain, cached in pairs)
    heads = [(plain["head"], cached["head"]) for plain, cached in pairs]
    epoch = median(plain["seconds_per_epoch"] / cached["seconds_per_epoch"] for plain, cached in heads)
    same = sum(TEST(plain) == TEST(cached) for plain, cached in heads)
    print(
        f"\nWith the cache an epoch is {epoch:.0f} times faster, and a run of {len(heads[0][0]['epochs'])} epochs {whole:.1f} "
        f"times, from the end of the imports to the end of the test. In {same} of {len(pairs)} runs, test loss and error "
        "are the same to the last digit."
    )


def main():
    """Run all ways; if there is no encoder yet, pretrain one first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds each way runs with (default: %(default)s)")
    parser.add_argument("options", nargs="*", help="options of train.py, after --")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}: it must be 1 or more.")
    named = any(option.startswith("--source") for option in arguments.options)
    if not named and not (TRAINING / "results/pretrain/1234/inference").is_dir():
        print("compare.py: pretraining an encoder first, as there is none yet", file=sys.stderr, flush=True)
        run("pretrain.py", "--device=cpu", "--noprogressbar")
    show(compare(WAYS, arguments.options, arguments.seeds))


if __name__ == "__main__":
    main()
