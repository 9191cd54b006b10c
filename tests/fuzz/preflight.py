#!/usr/bin/env python3
"""Mutates manifests and audio files, runs the preflight's checks of audio and labels on them, and counts the findings.

A case fails if a check raises an exception, takes longer than --seconds, or yields an incomplete finding, and also if there is
an error although the clips and labels are unchanged. The script keeps failed cases, and exits with 1 if there are any.

> python tests/fuzz/preflight.py --cases 5000
"""

import argparse
import copy
import faulthandler
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.core import Brain
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.observe import Given
from speechbrain.preflight.observe.loads import Loaded
from speechbrain.preflight.ranks import Ranks
from speechbrain.preflight.report import LEVELS, Finding
from speechbrain.preflight.run import examine
from tqdm import tqdm

RATE = 16000
WORDS = ["bed", "cat", "dög", "7"]
EXTENSIONS = ("wav", "flac", "ogg", "mp3")
NUMBERS = (0, 1, 8, 2**15, 2**16 - 1, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1)
# No small integers and no True: open() takes them as descriptors of open files, and would close standard output.
ODD = [None, -1, 999, 10**30, 10**400, 0.5, float("nan"), float("inf"), "", " ", "0", "nan", "no.wav", "\0.wav"]
ODD += ["x" * 5000 + ".wav", "/", ".", "..wav", ".wav", "/dev/null", "http://a/b.wav", "a\nb.wav", "%s{0}.wav", "\ud800.wav"]
ODD += ["ß\u2028µ.flac", [], {}, [[]], [1, "a.wav"], {"file": "no.wav"}, {"file": None, "start": "x"}, {"": ""}, b"a.wav", 1j]
ODD += [
    Path("no.wav"),
    len,
    np.float32(1),
    np.zeros(2),
    torch.zeros(2),
    torch.tensor([]),
    {1: {2: "no.wav"}},
    ("no.wav",),
    {"set"},
]
KEYS = ["wav", "word", "start", "stop", "id", "length", "", "é", "sig", 3]


def tolerant(wav):
    """Read a file, or return zeros if it cannot be read."""
    with suppress(Exception):
        return read_audio(wav)
    return torch.zeros(100)


def part(wav, start, stop):
    """Read a segment."""
    return read_audio({"file": wav, "start": int(start), "stop": int(stop)})


READERS = {
    "read_audio": (read_audio, ["wav"]),
    "soundfile": (lambda wav: torch.from_numpy(soundfile.read(wav, dtype="float32")[0]), ["wav"]),
    "audio_io": (lambda wav: audio_io.load(wav, channels_first=False)[0].mean(-1), ["wav"]),
    "bytes": (lambda wav: torch.from_numpy(soundfile.read(io.BytesIO(open(wav, "rb").read()), dtype="float32")[0]), ["wav"]),
    "tolerant": (tolerant, ["wav"]),
    "part": (part, ["wav", "start", "stop"]),
}


class Classifier(Brain):
    """Recognizes a word by its loudness."""

    def compute_forward(self, batch, stage):
        """Compute a score for each word."""
        return self.modules.model(batch.sig.data.float().mean(1, keepdim=True))

    def compute_objectives(self, scores, batch, stage):
        """Compare the scores with the labels."""
        return torch.nn.functional.cross_entropy(scores, batch.label.data[:, 0])


def make_clips(folder):
    """Write undamaged clips of each format; returns their paths."""
    paths = []
    for number, extension in enumerate(EXTENSIONS * 4):
        samples = np.random.default_rng(number).normal(0, 0.1, RATE // 4 + 100 * number)
        paths.append(str(folder / f"clip {number} ü.{extension}"))
        soundfile.write(paths[-1], samples.clip(-0.9, 0.9), RATE)
    return paths


def damage(path, draw):
    """Damage a file; returns the kind of damage."""
    content = bytearray(Path(path).read_bytes())
    what = draw.choice(("bits", "bits", "number", "number", "cut", "insert", "zero", "folder", "gone", "swap", "link"))
    reach = draw.choice((12, 50, 300, len(content)))  # mostly in headers
    if what == "bits":
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(min(reach, len(content)))] = draw.randrange(256)
    elif what == "number":
        size = draw.choice((1, 2, 4))
        at = draw.randrange(min(reach, len(content) - size))
        content[at : at + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(size, draw.choice(("little", "big")))
    elif what == "cut":
        content = content[: draw.randrange(min(reach, len(content)))]
    elif what == "insert":
        at = draw.randrange(min(reach, len(content)))
        content[at:at] = draw.randbytes(draw.choice((1, 2, 7, 5000)))
    elif what == "swap":
        at = draw.randrange(min(reach, len(content)))
        content = content[at:] + content[:at]
    elif what == "zero":
        content = b""
    os.remove(path)
    if what == "folder":
        os.mkdir(path)
    elif what == "link":
        os.symlink(path, path)  # to itself
    elif what != "gone":
        Path(path).write_bytes(content)
    return what


def spoil(manifests, draw):
    """Change a manifest; returns the kind of change."""
    items = draw.choice(manifests)
    what = draw.choice(("missing", "odd", "odd", "item", "empty", "twice", "inside", "id", "all"))
    if what == "empty":
        items.clear()
    if not items:
        return what
    name = draw.choice(list(items))
    item = items[name] if isinstance(items[name], dict) else {}
    key = draw.choice(KEYS)
    if what == "missing":
        item.pop(key, None)
    elif what == "odd":
        item[key] = draw.choice(ODD)
    elif what == "item":
        items[name] = draw.choice(ODD)
    elif what == "twice":
        items.update({f"{name} {number}": copy.copy(item) for number in range(draw.choice((1, 300)))})
    elif what == "inside":
        items[name] = {
            **item,
            key: draw.choice(([item.get(key)], {"file": item.get(key), "start": 0, "stop": draw.choice(ODD)})),
        }
    elif what == "id":
        items[draw.choice(("", "a/b", "\ud800", "é", 3, None, ("a", 1), 0.5))] = items.pop(name)
    else:
        odd = draw.choice(ODD)
        for value in items.values():
            if isinstance(value, dict):
                value[key] = odd
    return what


def make_case(clips, folder, draw):
    """Draw manifests, and damage them or their files; returns the manifests and the kinds of damage."""
    paths = [shutil.copy(path, folder) for path in draw.sample(clips, draw.randint(3, len(clips)))]
    items = [{"wav": path, "word": WORDS[number % 4], "start": 0, "stop": 1000} for number, path in enumerate(paths)]
    split = draw.randint(1, len(items) - 1)
    manifests = [{f"{number}": item for number, item in enumerate(half)} for half in (items[:split], items[split:])]
    happened = [damage(path, draw) for path in draw.sample(paths, draw.choice((0, 0, 1, 2)) if len(paths) > 2 else 0)]
    happened += [spoil(manifests, draw) for _ in range(draw.choice((0, 0, 1, 2)))]
    if not happened and draw.random() < 0.7:  # keys that nothing reads may have any value
        for item in [*manifests[0].values(), *manifests[1].values()]:
            if draw.random() < 0.5:
                item[draw.choice(("length", "é", "speaker"))] = draw.choice(ODD)
    return manifests, happened


def datasets(manifests, draw):
    """Make the datasets for fit; None if SpeechBrain cannot make datasets of these manifests."""
    (read, takes), encoder = draw.choice(list(READERS.values())), CategoricalEncoder()
    encoder.update_from_iterable(WORDS)
    encoder.expect_len(4)
    encode = encoder.encode_label_torch if draw.random() < 0.8 else lambda word: torch.tensor([WORDS.index(word)])
    pipeline = [
        {"func": read, "takes": takes, "provides": "sig"},
        {"func": encode, "takes": ["word"], "provides": "label"},
    ]
    with suppress(Exception):
        return [DynamicItemDataset(manifest, pipeline, ["id", "sig", "label"]) for manifest in manifests]


def look(sets, draw):
    """Run the preflight on a training with these sets; returns its report."""
    brain = Classifier({"model": torch.nn.Linear(1, 4)}, sgd, {"sample_rate": RATE}, run_opts={"device": "cpu"})
    seconds = draw.choice((0, 20, 20))
    loader = {"batch_size": draw.choice((1, 2, 64)), "shuffle": draw.random() < 0.5}
    return examine(Given(brain, *sets, iter([1]), loader, {"batch_size": 2}, scan_seconds=seconds), Loaded(), Ranks())


def sgd(parameters):
    """Make an optimizer."""
    return torch.optim.SGD(parameters, 0.1)


def judge(report, happened):
    """Check that the report is valid."""
    for finding in report.findings:
        assert isinstance(finding, Finding) and finding.level in LEVELS, f"{finding} has no level"
        texts = (finding.code, finding.what, finding.where, finding.remedy)
        assert all(isinstance(text, str) and text for text in texts), f"{finding} is incomplete"
    assert json.loads(report.json())["ok"] == report.ok and report.text(), "the report cannot be written"
    report.text().encode()
    assert happened or report.ok, "an error although nothing is wrong: " + ", ".join(
        finding.code for finding in report.findings
    )


def main():
    """Print the counts; exit with 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, help="how many cases to try (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case, to repeat a failed one")
    parser.add_argument("--seconds", type=int, default=60, help="how long a case may take (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the mutations (default: %(default)s)")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libmpg123 writes messages about files to it
    counts, failed, examples, slowest = Counter(), Counter(), {}, (0.0, None)
    with tempfile.TemporaryDirectory() as home:
        clips = make_clips(Path(home))
        for number in tqdm(range(arguments.first, arguments.first + arguments.cases), disable=not sys.stderr.isatty()):
            draw = random.Random(arguments.seed * 10**9 + number)
            folder = Path(home, "case")
            folder.mkdir()
            manifests, happened = make_case(clips, folder, draw)
            shown = f"{happened}\n" + "".join(f"{manifest!r}\n" for manifest in manifests)
            # There is no other way to end a thread that hangs. The traceback shows what was reading the file.
            faulthandler.dump_traceback_later(arguments.seconds, exit=True, file=sys.stderr)
            started = time.perf_counter()
            sets = datasets(manifests, draw)
            if sets is None:
                happened = ["SpeechBrain cannot make a dataset of it"]
            elif draw.random() < 0.1:
                sets, happened = (
                    [list(manifest.values()) for manifest in manifests],
                    ["a list of items, which cannot be batched"],
                )
            try:
                if sets is not None:
                    report = look(sets, draw)
                    judge(report, happened)
                    counts.update(f"findings: {finding.level} {finding.code}" for finding in report.findings)
            except Exception as error:
                kept = Path(tempfile.gettempdir(), f"failed_{arguments.seed}_{number}")
                shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True, ignore_dangling_symlinks=True)
                text = shown + traceback.format_exc()
                (kept / "case.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
                message = f"failed: {type(error).__name__}: {str(error)[:70]!r}"
                failed[message] += 1
                examples.setdefault(message, kept)
            faulthandler.cancel_dump_traceback_later()
            counts.update(f"cases: {what}" for what in set(happened) or ["nothing was changed"])
            slowest = max(slowest, (time.perf_counter() - started, number))
            shutil.rmtree(folder)
    print(f"{arguments.cases} cases, the slowest, {slowest[1]}, took {slowest[0]:.2f} s")
    for what, count in [*sorted(counts.items()), *failed.most_common()]:
        print(f"{count:8}  {what}" + (f" (for example {examples[what]})" if what in examples else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
