"""Measures how fast the preflight scans audio, compared with only reading the same files.

> python tests/benchmarks/audio_scan.py [--files 2000] [--seconds 4]

All files are read with soundfile, then scanned, in turn, on the same number of threads. The ratio compares the speeds.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.preflight.attempts import Log
from speechbrain.preflight.checks.audio import RULES
from speechbrain.preflight.observe import Given, Observed
from speechbrain.preflight.observe.audio import audio
from speechbrain.preflight.observe.clips import in_parallel
from speechbrain.preflight.ranks import Ranks

FORMATS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III")]


def write(folder, count, seconds, extension, subtype):
    """Write clips of noise of different lengths; every tenth reaches full scale."""
    draw = np.random.default_rng(0)
    for i in range(count):
        clip = draw.normal(0, 0.1, int(16000 * seconds * draw.uniform(0.5, 1.5)))
        if i % 10 == 0:
            clip *= 0.9999 / np.abs(clip).max()
        soundfile.write(folder / f"{i}.{extension}", clip, 16000, subtype=subtype)
    return [str(path) for path in sorted(folder.iterdir())]


def only_read(paths):
    """Read the files as recipes do, on as many threads as the scan uses."""
    return in_parallel(lambda path: soundfile.read(path, dtype="float32"), paths, math.inf, "reading")


def scan(paths):
    """Run all checks of the preflight on the audio."""
    items = {path: {"wav": path} for path in paths}
    pipeline = [{"func": read_audio, "takes": "wav", "provides": "sig"}]
    valid, train = (DynamicItemDataset(part, pipeline, ["sig"]) for part in split(items))
    brain = SimpleNamespace(modules=torch.nn.ModuleDict(), hparams=SimpleNamespace(sample_rate=16000))
    given = Given(brain, train, valid, scan_seconds=math.inf)
    seen = Observed(given, clips=audio(given, Log(Ranks())))
    return [finding for rule in RULES for finding in rule(seen)]


def split(items):
    """Return a tenth of the items, and the others."""
    names = list(items)
    return [{name: items[name] for name in part} for part in (names[::10], [n for i, n in enumerate(names) if i % 10])]


def took(function, *arguments):
    """Time a call, and return the seconds."""
    began = time.perf_counter()
    for _ in function(*arguments):
        pass
    return time.perf_counter() - began


def main():
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="the number of files of each format")
    parser.add_argument("--seconds", type=float, default=4, help="their average duration")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for extension, subtype in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), options.files, options.seconds, extension, subtype)
            read, scanned = [], []
            for _ in range(options.rounds + 1):  # the first fills the page cache
                read.append(took(only_read, paths))
                scanned.append(took(scan, paths))
        ratio = statistics.median(a / b for a, b in zip(read[1:], scanned[1:]))
        speed = options.files / statistics.median(scanned[1:])
        print(f"{extension} {subtype}: the scan does {speed:.0f} files/s, {ratio:.2f} times the speed of only reading")


if __name__ == "__main__":
    main()
