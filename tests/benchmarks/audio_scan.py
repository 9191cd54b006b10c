"""How fast the preflight scans audio, against merely reading the same files.

> python tests/benchmarks/audio_scan.py [--files 2000] [--seconds 4]
Both decode every file once with soundfile, on as many threads, in turn; the ratio is that of their speeds.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from speechbrain.preflight import clips

FORMATS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III")]


def write(folder, count, seconds, extension, subtype):
    """Write noisy clips of somewhat different lengths; every tenth touches full scale."""
    draw = np.random.default_rng(0)
    for i in range(count):
        clip = draw.normal(0, 0.1, int(16000 * seconds * draw.uniform(0.5, 1.5)))
        if i % 10 == 0:
            clip *= 0.9999 / np.abs(clip).max()
        soundfile.write(folder / f"{i}.{extension}", clip, 16000, subtype=subtype)
    return [str(path) for path in sorted(folder.iterdir())]


def merely_read(path, _):
    """Read a file as recipes do."""
    soundfile.read(path, dtype="float32")


def scan(paths):
    """Read the headers, then the whole files, and look at them: what the preflight does."""
    headers = dict(clips.in_parallel(lambda path, _: clips.read_header(path), paths, math.inf, "headers"))
    work = lambda path, room: clips.read_whole(path, headers[path], room)  # noqa: E731
    return list(clips.in_parallel(work, paths, math.inf, "audio"))


def took(function, *arguments):
    """Time a call, in seconds."""
    began = time.perf_counter()
    for _ in function(*arguments):
        pass
    return time.perf_counter() - began


def main():
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="how many files of each format")
    parser.add_argument("--seconds", type=float, default=4, help="how long they are on average")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for extension, subtype in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), options.files, options.seconds, extension, subtype)
            read, scanned = [], []
            for _ in range(options.rounds + 1):  # the first fills the page cache
                read.append(took(clips.in_parallel, merely_read, paths, math.inf, "reading"))
                scanned.append(took(scan, paths))
        ratio = statistics.median(a / b for a, b in zip(read[1:], scanned[1:]))
        speed = options.files / statistics.median(scanned[1:])
        print(f"{extension} {subtype}: the scan does {speed:.0f} files/s, {ratio:.2f} times the speed of merely reading")


if __name__ == "__main__":
    main()
