#!/usr/bin/env python3
"""Runs the preflight on the recipes of a checkout of upstream, and prints what it finds.

> python tests/upstream/recipes.py PATH/TO/speechbrain [--only ESC50] [--seconds 120]

Upstream's own table (tests/recipes/*.csv) says how to start each recipe on its sample data; the scripts in
tests/integration are run, too. All are healthy: an error that the preflight reports is a false alarm, or a fault of
the recipe. Recipes that need the network, a package or a GPU do not reach fit(); the table says why.

The checkout is copied to a temporary folder. Each recipe runs in a forked child of one process, which has imported
SpeechBrain, without network.
"""

import argparse
import contextlib
import csv
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from speechbrain.preflight.__main__ import main as preflight
from tqdm import tqdm

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


def run(command, checkout, folder):
    """Run the preflight on one recipe; never returns."""
    script, yaml, flags = command
    os.setsid()  # so that workers end with it
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(checkout)
    sys.path.insert(0, str(checkout / os.path.dirname(script)))
    options = ["--output_folder", str(folder / "results"), "--device", "cpu", *PRECISION] if yaml else []
    status = 3
    try:
        status = preflight(["--json", str(folder / "report"), script, *filter(None, [yaml]), *flags, *options])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 3
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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


def main():
    """Print a line for each recipe, then the counts; exit with 1 if there was an error or a crash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of upstream")
    parser.add_argument("--only", default="", metavar="TEXT", help="only recipes whose script or YAML contains TEXT")
    parser.add_argument("--seconds", type=int, default=180, help="how long one recipe may take (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many run at a time (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the output and the report of each recipe")
    options = parser.parse_args()
    if not (options.checkout / "tests/recipes").is_dir():
        parser.error(f"{options.checkout} is not a checkout of upstream: it has no folder tests/recipes")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    kinds = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        checkout = Path(temporary, "upstream")
        for name in ("tests", "recipes", "templates"):
            shutil.copytree(options.checkout / name, checkout / name, symlinks=True)
        waiting = [*enumerate(commands(checkout, options.only))]
        running = {}
        with tqdm(total=len(waiting), disable=not sys.stderr.isatty()) as bar:
            while waiting or running:
                while waiting and len(running) < options.jobs:
                    number, command = waiting.pop(0)
                    folder = (options.keep or Path(temporary)) / f"{number:03}"
                    folder.mkdir(parents=True)
                    child = os.fork()
                    if not child:
                        run(command, checkout, folder)
                    running[child] = command, folder, time.monotonic()
                time.sleep(0.05)
                for child, (command, folder, start) in list(running.items()):
                    ended, status = os.waitpid(child, os.WNOHANG)
                    seconds = time.monotonic() - start
                    if not ended and seconds < options.seconds:
                        continue
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
                    if not ended:
                        os.waitpid(child, 0)
                    del running[child]
                    kind, details = outcome(folder, os.waitstatus_to_exitcode(status) if ended else None)
                    kinds[kind] += 1
                    script, yaml, _ = command
                    bar.update()
                    tqdm.write(f"{folder.name} {seconds:4.0f} s  {kind:17}  {script} {Path(yaml).name}  {details}")
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    sys.exit(bool(kinds["error"] or kinds["crashed"]))


if __name__ == "__main__":
    main()
