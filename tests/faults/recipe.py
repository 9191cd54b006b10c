"""Kills the recipe SpokenWords at random moments and fills its disk; counts the resumed runs that end with other weights.

> python tests/faults/recipe.py --kills 8
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts import NEW, PRETRAINED, command, environment, make, run, same, weights


def train(options, killed_after=None):
    """Run train.py to its end, or kill it after some seconds; returns the exit status and the output."""
    if killed_after is None:
        return run("train.py", *options)
    process = subprocess.Popen(
        command("train.py", *options), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(killed_after), ""
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), ""


def main():
    """Kill runs, fill the disk, and print the counts; exit with 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, help="how many runs to kill (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10**6, help="seed of the random moments (default: taken from the clock)"
    )
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    lost = []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        make(work / "data")
        common = [f"--data_folder={work / 'data'}"]
        pretraining = [
            f"--words=[{','.join(PRETRAINED)}]",
            "--model={channels: 16}",
            "--number_of_epochs=2",
            "--batch_size=8",
            *common,
        ]
        status, said = run("pretrain.py", *pretraining, f"--output_folder={work / 'pretrained'}")
        assert status == 0, said

        def options(folder):
            source, words = f"--source={work / 'pretrained/inference'}", f"--words=[{','.join(NEW)}]"
            own = [f"--output_folder={folder}", f"--cache_folder={folder}/embeddings"]
            return [
                *common,
                *own,
                source,
                words,
                "--head_epochs=6",
                "--full_epochs=4",
                "--head_batch_size=8",
                "--full_batch_size=8",
            ]

        def left(folder):
            return {str(path.relative_to(folder)) for path in folder.rglob("*") if "save" not in path.parts}

        def check(folder, what):
            status, said = train(options(folder))
            found = weights(folder) if status == 0 else []
            if not same(found, expected) or left(folder) != files:
                odd = sorted(left(folder) ^ files)
                lost.append(f"{what}: exit status {status}, files that differ: {odd}\n{said[-2000:]}")

        started = time.monotonic()
        status, said = train(options(work / "whole"))
        assert status == 0, said
        seconds, expected, files = time.monotonic() - started, weights(work / "whole"), left(work / "whole")

        kills = 0
        for number in range(arguments.kills):
            # The first third of a run is imports. Every second run is killed near its end, where it writes the results.
            after = moments.uniform(0.9 if number % 2 else 0.3, 1.0) * seconds
            kills += train(options(work / str(number)), killed_after=after)[0] < 0
            check(work / str(number), f"killed after {after:.1f} s")
        print(f"killed {kills} of {arguments.kills} runs; {len(lost)} runs lost")

        disk = work / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], stderr=subprocess.DEVNULL).returncode:
            print("a full disk was not tested: a tmpfs cannot be mounted here")
        else:
            try:
                status, said = train(options(disk / "out"))
                explained = status == 1 and "Could not write" in said and "free some space" in said
                if not explained:
                    lost.append(f"a full disk: exit status {status}\n{said[-2000:]}")
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                check(disk / "out", "a full disk, then space")
                print(f"the full disk gave {'a' if explained else 'no'} clear message; {len(lost)} runs lost in total")
            finally:
                subprocess.run(["umount", disk], check=True)
    sys.exit("\n\n".join(lost) or 0)


if __name__ == "__main__":
    main()
