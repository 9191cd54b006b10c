#!/usr/bin/env python3
"""Runs the preflight on the recipes of a checkout of upstream, and prints what it finds.

> python tests/upstream/recipes.py PATH/TO/speechbrain [--only ESC50] [--seconds 120]
> python tests/upstream/recipes.py PATH/TO/speechbrain --time --only tests/integration

Upstream's own table (tests/recipes/*.csv) says how to start each recipe on its sample data; the scripts in
tests/integration are run, too. All are healthy: an error that the preflight reports is a false alarm, or a fault of
the recipe. Recipes that need the network, a package or a GPU do not reach fit(); the table says why.

The checkout is copied to a temporary folder. Each recipe runs in a forked child of one process, which has imported
SpeechBrain, without network. With --time, each recipe also runs by itself, until its first validation batch is over, and
the table compares the CPU times, children included, in turn. These do not include the imports, which both need; the last
line says what the ratio is with them.
"""

import argparse
import contextlib
import csv
import functools
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch._dynamo  # noqa: F401  which the first optimizer imports: most of the time of a small recipe
from speechbrain.core import Brain
from speechbrain.preflight.__main__ import main as preflight
from tqdm import tqdm

IMPORTS = sum(os.times()[:2])  # the CPU time that they took
PRECISION = ["--precision", "fp32", "--eval_precision", "fp32"]  # fp16 needs a GPU


def commands(checkout, only):
    """For each recipe, the script, the YAML file and the other arguments."""
    for table in sorted((checkout / "tests/recipes").glob("*.csv")):
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                script, flags = row["Script_file"].strip(), (row["test_debug_flags"] or "").strip()
                if flags and only in f"{script} {row['Hparam_file']}":
                    yield script, row["Hparam_file"].strip(), shlex.split(flags)
    for script in sorted((checkout / "tests/integration").glob("*/example_*.py")):
        script = str(script.relative_to(checkout))
        if only in script:
            yield script, "", []


class Over(BaseException):
    """The first validation batch is over."""


def train(arguments):
    """Run a recipe itself until its first validation batch is over."""
    validate = Brain._fit_valid

    def first(batches):
        yield from itertools.islice(batches or (), 1)
        raise Over

    Brain._fit_valid = lambda brain, valid_set, epoch, enable: validate(brain, first(valid_set), epoch, enable)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except Over:
        return 0
    return 3  # it has no validation


def check(arguments, report):
    """Run the preflight on a recipe."""
    return preflight(["--json", str(report), *arguments])


def run(recipe, checkout, folder, work):
    """Run a recipe in this process; never returns."""
    script, yaml, flags = recipe
    os.setsid()  # so that workers end with it
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(checkout)
    sys.path.insert(0, str(checkout / os.path.dirname(script)))
    options = ["--output_folder", str(folder / "results"), "--device", "cpu", *PRECISION] if yaml else []
    status = 3
    try:
        status = work([script, *filter(None, [yaml]), *flags, *options])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 3
    finally:
        (folder / "seconds").write_text(str(sum(os.times()[:4])))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_all(jobs, number, seconds):
    """Run jobs, so many at a time, in forked processes; yield each one's name, its seconds, and its status or None."""
    waiting, running = iter(jobs), {}
    for name, function in itertools.chain(waiting, [(None, None)] * number):
        while running and (function is None or len(running) == number):
            time.sleep(0.05)
            for child, (other, start) in list(running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                took = time.monotonic() - start
                if ended or took > seconds:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
                    if not ended:
                        os.waitpid(child, 0)
                    del running[child]
                    yield other, took, os.waitstatus_to_exitcode(status) if ended else None
        if function is not None:
            child = os.fork()
            if not child:
                function()
            running[child] = name, time.monotonic()


def outcome(folder, status):
    """What the table says about one recipe: a kind, and details."""
    output = (folder / "output").read_text(errors="replace").strip()
    last = output.splitlines()[-1][:150] if output else ""
    if status is None:
        return "too slow", ""
    if status == 2:
        return "not checked", last.partition("nothing to check: ")[2] or last
    if not (folder / "report").exists():
        return "crashed", f"status {status}: {last}"
    found = json.loads((folder / "report").read_text())["findings"]
    counts = Counter((each["level"], each["code"]) for each in found)
    codes = ", ".join(
        f"{level} {code}" + (f" ({count})" if count > 1 else "") for (level, code), count in sorted(counts.items())
    )
    if any(each["code"] == "script-failed" for each in found):
        what = next(each["what"] for each in found if each["code"] == "script-failed")
        return "did not reach fit", what.strip().splitlines()[0][:150]
    warned = any(level == "warning" for level, _ in counts)
    return ("error" if status else "warning" if warned else "quiet"), codes


def table(recipes, checkout, options, folder):
    """Print what the preflight says about each recipe, then the counts; returns whether there was an error or a crash."""
    kinds, codes, folders = Counter(), Counter(), [folder / f"{number:03}" for number in range(len(recipes))]
    for each in folders:
        each.mkdir(parents=True)
    jobs = [
        (number, functools.partial(run, recipe, checkout, each, functools.partial(check, report=each / "report")))
        for number, (recipe, each) in enumerate(zip(recipes, folders))
    ]
    done = run_all(jobs, options.jobs, options.seconds)
    for number, seconds, status in tqdm(done, total=len(jobs), disable=not sys.stderr.isatty()):
        kind, details = outcome(folders[number], status)
        kinds[kind] += 1
        codes.update(re.findall(r"(?:note|warning|error) ([\w-]+)", details) if (folders[number] / "report").exists() else ())
        script, yaml, _ = recipes[number]
        tqdm.write(f"{number:03} {seconds:4.0f} s  {kind:17}  {script} {Path(yaml).name}  {details}")
    for counts in (codes, kinds):
        print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    return bool(kinds["error"] or kinds["crashed"])


def times(recipes, checkout, options, folder):
    """Print the CPU times of the preflight and of each recipe up to the end of its first validation batch, and their ratios."""
    ratios, whole = [], []
    for number, recipe in enumerate(tqdm(recipes, disable=not sys.stderr.isatty())):
        took = {"train": [], "check": []}
        for turn, name in enumerate(["train", *(["train", "check"] * options.rounds)]):  # the first one fills caches
            each = folder / f"{number:03}" / f"{turn}"
            each.mkdir(parents=True)
            work = train if name == "train" else functools.partial(check, report=each / "report")
            job = functools.partial(run, recipe, checkout, each, work)
            ((_, _, status),) = run_all([(name, job)], 1, options.seconds)
            if status not in (0, 1):
                break
            took[name].append(float((each / "seconds").read_text()))
        else:
            ratios.append(statistics.median(b / a for a, b in zip(took["train"][1:], took["check"])))
            one, other = (statistics.median(took[name]) for name in ("check", "train"))
            whole.append((IMPORTS + one) / (IMPORTS + other))
            tqdm.write(f"{recipe[0]} {Path(recipe[1]).name}: {one:.2f} s, {other:.2f} s, {ratios[-1]:.2f}")
    if len(ratios) > 1:
        for what, each in (("", ratios), (f", with {IMPORTS:.2f} s of imports", whole)):
            low, middle, high = statistics.quantiles(each, n=4)
            print(f"{len(each)} recipes, preflight / recipe{what}: {middle:.2f} ({low:.2f} to {high:.2f})")
    return False


def main():
    """Print a table; exit with 1 if the preflight reported an error, or crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of upstream")
    parser.add_argument("--only", default="", metavar="TEXT", help="only recipes whose script or YAML contains TEXT")
    parser.add_argument("--seconds", type=int, default=180, help="how long one recipe may take (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many run at a time (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the output and the report of each recipe")
    parser.add_argument("--time", action="store_true", help="compare the CPU times")
    parser.add_argument("--rounds", type=int, default=1, help="how often --time runs both (default: %(default)s)")
    options = parser.parse_args()
    if not (options.checkout / "tests/recipes").is_dir():
        parser.error(f"{options.checkout} is not a checkout of upstream: it has no folder tests/recipes")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as temporary:
        checkout = Path(temporary, "upstream")
        for name in ("tests", "recipes", "templates"):
            shutil.copytree(options.checkout / name, checkout / name, symlinks=True)
        recipes = [*commands(checkout, options.only)]
        sys.exit((times if options.time else table)(recipes, checkout, options, options.keep or Path(temporary)))


if __name__ == "__main__":
    main()
