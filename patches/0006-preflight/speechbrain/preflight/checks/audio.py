"""Checks the audio files of the items.

To find these files, the check evaluates a few items and compares the files that they open with the values in the manifest.
It reads the headers of all files, then as many whole files as there is time for. Before it reports an error, it tries the
file in the pipeline, which may be able to handle it.
"""

import contextlib
import inspect
import math
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from speechbrain.preflight.observe.clips import in_parallel, read, read_whole
from speechbrain.preflight.observe.items import Items, Watch, is_audio
from speechbrain.preflight.report import Finding
from speechbrain.utils.distributed import if_main_process

CODES = {
    "audio-missing": "a file that an item needs does not exist",
    "audio-unreadable": "a file cannot be decoded",
    "audio-truncated": "a file cannot be decoded to its end, or contains less audio than its header says",
    "audio-empty": "a clip has no samples",
    "audio-not-finite": "a clip has samples that are NaN or infinite",
    "audio-rate": "clips have another sample rate than expected, and are not resampled",
    "audio-channels": "clips with several channels become items of another shape than clips with one",
    "audio-silent": "all samples of a clip are equal",
    "audio-clipped": "at least 1 in 1000 samples of a clip are at full scale, three or more in a row",
    "audio-leak": "a clip is both in the training and in the validation set",
    "audio-duration": "a clip is far longer or shorter than the others",
}

MP3 = "MPEG_LAYER_III"
TRIES = 4  # items that are tried in the pipeline before an error is reported
SLACK = 0.1  # seconds that may be missing in a file
CLIPPED = 0.001  # share of clipped samples from which a clip is reported
FAR = 20  # times the usual duration, or the usual duration divided by this


class Source(NamedTuple):
    """Where a manifest names files: the key, the keys inside its value, and what the path has before and after that value."""

    keys: tuple
    before: str = ""
    after: str = ""


class Use(NamedTuple):
    """An item that reads a file, and the place of the file in the manifest."""

    items: Items
    i: int
    source: Source

    def __str__(self):
        return f"{self.items.split} {'.'.join(self.source.keys)}"


class Made(NamedTuple):
    """An evaluated item: its tensors by key (None if it failed), the files that it opened, and whether it was resampled."""

    tensors: dict
    opened: list
    resampled: bool


def check(seen):
    """Check the audio of the training and the validation set.

    Arguments
    ---------
    seen : speechbrain.preflight.observe.given.Seen
        The run.

    Yields
    ------
    Finding
        See ``CODES``.
    """
    if not if_main_process():
        return
    began = time.perf_counter()
    clips = Clips(_uses(seen))
    if not clips.uses:
        seen.said.append("Audio was not scanned: the preflight saw no item read a file that the manifest names.")
        return
    clips.read(began + seen.scan_seconds)
    which = ", ".join(sorted({str(use) for uses in clips.uses.values() for use in uses}))
    seen.said.append(
        f"Audio ({which}): {len(clips.headers)} of {len(clips.uses)} headers and {len(clips.looks)} whole files "
        f"were read in {time.perf_counter() - began:.1f} s."
    )
    yield from clips.faults()
    yield from _rate(seen, clips)
    yield from _channels(seen, clips)
    yield from _leaks(clips)
    yield from _durations(clips)


def _uses(seen):
    """The items that read each file: a dict of path to list of Use."""
    uses = defaultdict(list)
    for items in (Items.of("train", seen.train_set), Items.of("valid", seen.valid_set)):
        if items is None or not len(items):
            continue
        found = sources(items)
        for i in range(len(items)) if found else ():
            static = items.static(i)
            for source in found:
                for keys, value in _leaves(static.get(source.keys[0]), source.keys[:1]):
                    if keys == source.keys and value:
                        uses[source.before + value + source.after].append(Use(items, i, source))
    return uses


def sources(items):
    """Find where the manifest names the files that an item reads.

    Arguments
    ---------
    items : Items
        The items; at least one.

    Returns
    -------
    list of Source
        The places of files that some items opened; without any, the places of names of existing audio files.
    """
    n = len(items)
    certain, likely = {}, []
    for i in dict.fromkeys((n - 1, n // 2, n // 4)):  # not the first ones, which may be cached
        leaves = list(_leaves(items.static(i)))
        matched = set()
        for path in _make(items, i).opened:
            fits = [Source(keys, *around) for keys, value in leaves for around in _around(value, path)]
            if fits:
                matched.add(min(fits, key=lambda source: len(source.before + source.after)))
        certain.update((source, None) for source in matched if not source.before + source.after)
        likely.append({source for source in matched if source.before + source.after})
    found = [*certain, *set.intersection(*likely)]
    if found:
        return found
    taken = items.needed()
    named = [(keys, value) for keys, value in _leaves(items.static(n - 1)) if keys[0] in taken and is_audio(value)]
    return list(dict.fromkeys(Source(keys) for keys, value in named if os.path.isfile(value)))


def _leaves(value, keys=()):
    """Yield each text inside a value, and the keys that lead to it; positions in lists are not keys."""
    if isinstance(value, (str, os.PathLike)):
        yield keys, os.fspath(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, str(key)))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, keys)


def _around(value, path):
    """Yield what a path has before and after a value, if that is nothing, or a folder and an extension."""
    if not value:
        return
    before, found, after = path.rpartition(value)
    folder = not before or before.endswith(os.sep)
    extension = not after or (after.startswith(".") and after[1:].isalnum())
    if found and folder and extension:
        yield before, after


def _make(items, i):
    """Evaluate an item, and record what it does: Made."""
    with Watch() as watch:
        try:
            made = items.evaluate(i)
        except Exception:
            made = None
    if made is not None:
        made = {key: torch.as_tensor(value) for key, value in made.items() if _is_array(value)}
    return Made(made, watch.opened, watch.resampled)


def _is_array(value):
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _sort(results, good, bad):
    """Put results into the one dict, and exceptions into the other."""
    for path, result in results:
        (bad if isinstance(result, Exception) else good)[path] = result


class Clips:
    """The audio files of a run, and what they contain.

    Arguments
    ---------
    uses : dict of str to list of Use
        The items that read each file.

    Attributes
    ----------
    headers, looks : dict of str to Header and Look
        What was read, by file.
    errors, damaged : dict of str to Exception
        Why a header, or the rest of a file, could not be read.
    """

    def __init__(self, uses):
        self.uses = uses
        self.headers = {}
        self.looks = {}
        self.errors = {}
        self.damaged = {}

    def read(self, deadline):
        """Read all headers, then whole files until the deadline.

        Arguments
        ---------
        deadline : float
            A value of ``time.perf_counter``.
        """
        paths = list(self.uses)
        random.Random(0).shuffle(paths)  # so that the files for which there is time are a random sample
        both = {}
        _sort(in_parallel(lambda path, room: read(path, room, deadline), paths, math.inf, "headers"), both, self.errors)
        self.headers = {path: header for path, (header, _) in both.items()}
        _sort(((path, look) for path, (_, look) in both.items() if look is not None), self.looks, self.damaged)
        paths = [path for path, (_, look) in both.items() if look is None]
        splits = defaultdict(set)
        for path, header in self.headers.items():
            splits[header[:3]].update(use.items.split for use in self.uses[path])
        paths.sort(key=lambda path: len(splits[self.headers[path][:3]]) < 2)  # first, files that may be in both sets
        work = lambda path, room: read_whole(path, self.headers[path], room)  # noqa: E731
        _sort(in_parallel(work, paths, deadline, "audio"), self.looks, self.damaged)

    def make(self, path):
        """Evaluate an item that reads a file.

        Arguments
        ---------
        path : str
            The file.

        Returns
        -------
        Made
        """
        use = self.uses[path][0]
        return _make(use.items, use.i)

    def finding(self, level, code, what, paths, remedy, confirm=None):
        """Report files, unless the pipeline can handle them.

        Arguments
        ---------
        level, code : str
            The level and code of the finding.
        what : str
            What is wrong with the files, to follow the word "files".
        paths : list of str
            The files.
        remedy : str
            How to fix it.
        confirm : callable
            Takes a file, and returns whether it is wrong after the pipeline, too.

        Yields
        ------
        Finding
            One at most.
        """
        if confirm is not None:
            tried = paths[:: math.ceil(len(paths) / TRIES)] if paths else []
            sure = [path for path in tried if confirm(path)]
            paths = paths if len(sure) == len(tried) else sure
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            where = f"{self.uses[paths[0]][0]}: {', '.join(paths[:3])}{more}"
            yield Finding(level, code, f"files {what}: {len(paths)} of {len(self.uses)}", where, remedy)

    def faults(self):
        """Report files that are damaged, silent or clipped.

        Yields
        ------
        Finding
        """

        def fails(path):
            made = self.make(path)
            return made.tensors is None and path in made.opened

        def is_made_empty(path):
            tensors = self.make(path).tensors
            return tensors is None or any(not tensor.numel() for tensor in tensors.values())

        def is_made_wild(path):
            return any(not tensor.isfinite().all() for tensor in (self.make(path).tensors or {}).values())

        missing = [path for path, error in self.errors.items() if isinstance(error, FileNotFoundError)]
        unreadable = [path for path, error in self.errors.items() if not isinstance(error, FileNotFoundError)]
        truncated = [path for path in self.headers if path in self.damaged or self._lacks(path) > SLACK]
        empty = [path for path, header in self.headers.items() if not header.frames and path not in truncated]
        looks = {path: look for path, look in self.looks.items() if look.frames}
        wild = [path for path, look in looks.items() if not math.isfinite(look.low + look.high)]
        silent = [path for path, look in looks.items() if look.low == look.high]
        clipped = [path for path, look in looks.items() if look.clipped >= CLIPPED]
        again = "copy or convert them again, or remove their items"
        drop = "remove their items, or fix the program that made the files"
        louder = "use the recordings from before they were amplified"
        yield from self.finding(
            "error", "audio-missing", "that do not exist", missing, "correct the paths, or remove the items", fails
        )
        yield from self.finding("error", "audio-unreadable", "that cannot be decoded", unreadable, again, fails)
        yield from self.finding("error", "audio-truncated", "that end too early", truncated, again)
        yield from self.finding("error", "audio-empty", "without samples", empty, drop, is_made_empty)
        yield from self.finding("error", "audio-not-finite", "with NaN or infinite samples", wild, drop, is_made_wild)
        yield from self.finding(
            "warning", "audio-silent", "that contain only silence", silent, "remove their items if they should contain sound"
        )
        yield from self.finding("warning", "audio-clipped", "that are clipped", clipped, louder)

    def _lacks(self, path):
        """How many seconds are missing in a file."""
        header = self.headers[path]
        lacks = header.missing
        if path in self.looks and not lacks and header.frames > self.looks[path].frames:
            with open(path, "rb") as file:
                start = file.read(4096)
            if header.subtype != MP3 or b"Xing" in start or b"Info" in start:  # else its length is only estimated
                lacks = header.frames - self.looks[path].frames
        return lacks / header.rate


def expected_rate(seen):
    """Find the sample rate that the model expects.

    Arguments
    ---------
    seen : speechbrain.preflight.observe.given.Seen
        The run.

    Returns
    -------
    int
        In Hz: ``sample_rate`` of the hparams; without it, of the modules, if they agree; else None.
    """
    if "sample_rate" in seen.hparams:
        rates = [seen.hparams["sample_rate"]]
    else:
        rates = [getattr(module, "sample_rate", None) for module in _modules(seen)]
    rates = {rate for rate in rates if isinstance(rate, (int, float)) and rate > 0}
    return rates.pop() if len(rates) == 1 else None


def _modules(seen):
    """Yield all modules of the Brain and of the hparams."""
    given = [getattr(seen.brain, "modules", None), *seen.hparams.values()]
    for module in given:
        if isinstance(module, torch.nn.Module):
            yield from module.modules()


def _rate(seen, clips):
    """Report clips of another rate than expected whose items show that they were not resampled."""
    rate = expected_rate(seen)
    wrong = [path for path, header in clips.headers.items() if rate and header.rate != rate and header.frames]
    rates = sorted({clips.headers[path].rate for path in wrong})
    if not wrong or _resamples_later(seen, rates):
        return

    def as_long(path):
        made = clips.make(path)
        frames = clips.headers[path].frames
        return made.tensors and not made.resampled and any(frames in tensor.shape for tensor in made.tensors.values())

    found = ", ".join(f"{rate} Hz" for rate in rates)
    remedy = "resample in the audio pipeline (torchaudio.functional.resample), or convert the files"
    yield from clips.finding("error", "audio-rate", f"with {found} instead of the expected {rate} Hz", wrong, remedy, as_long)


def _resamples_later(seen, rates):
    """Whether a module resamples from one of these rates, or the script mentions resampling."""
    if any(getattr(module, "orig_freq", None) in rates for module in _modules(seen)):
        return True
    try:
        source = inspect.getsource(inspect.getmodule(type(seen.brain)))
    except (OSError, TypeError):
        source = ""
    if seen.script is not None and os.path.isfile(seen.script):
        with open(seen.script, encoding="utf-8", errors="replace") as file:
            source += file.read()
    return "resampl" in source.lower()


def _channels(seen, clips):
    """Report clips with several channels whose items differ in shape from the others."""
    several = [path for path, header in clips.headers.items() if header.channels > 1 and header.frames]
    ones = defaultdict(list)
    for path, header in clips.headers.items():
        if header.channels == 1 and header.frames:
            ones[clips.uses[path][0].source.keys].append(path)

    def shapes(path):
        tensors = clips.make(path).tensors
        return tensors and {key: tensor.dim() for key, tensor in tensors.items()}

    def differs(path):
        other = ones[clips.uses[path][0].source.keys]
        if other:
            mine, its = shapes(path), shapes(other[0])
            return mine and its and mine != its
        # If all have several, a model that cannot take them fails in the first step.
        return seen.batch is not None and not seen.stepped and clips.headers[path].channels in _last_sizes(clips.make(path))

    remedy = "mix them down in the audio pipeline (sig.mean(-1)), or convert the files to one channel"
    yield from clips.finding(
        "error", "audio-channels", "with several channels that the pipeline does not mix down", several, remedy, differs
    )


def _last_sizes(made):
    """The sizes of the last dimension of an item's matrices."""
    return {tensor.shape[-1] for tensor in (made.tensors or {}).values() if tensor.dim() == 2}


def _leaks(clips):
    """Report clips that are in both the training and the validation set, by name or by content."""
    named, sounding = defaultdict(dict), defaultdict(dict)
    for path, uses in clips.uses.items():
        look = clips.looks.get(path)
        for split in {use.items.split for use in uses}:
            named[os.path.abspath(path)][split] = path
            if look is not None and look.low < look.high:
                sounding[clips.headers[path][:3], look].setdefault(split, path)
    both = [found["valid"] for found in named.values() if len(found) == 2 and _same_part(clips, **found)]
    pairs = {found["valid"]: found["train"] for found in sounding.values() if len(found) == 2 and _same_part(clips, **found)}
    copies = [valid for valid, train in pairs.items() if os.path.abspath(valid) != os.path.abspath(train)]

    def same(path):
        return _equal(path, pairs[path])

    remedy = "split by speaker or recording, and put no clip into two sets"
    yield from clips.finding("warning", "audio-leak", "that are in both the training and the validation set", both, remedy)
    yield from clips.finding(
        "warning", "audio-leak", "of the validation set that are copies of training clips", copies, remedy, same
    )


def _same_part(clips, train, valid):
    """Whether each file is read by one item of its set, and both are read in the same way."""
    ways = []
    for split, path in (("train", train), ("valid", valid)):
        items = {str(use.items.static(use.i).get("id", use.i)): use for use in clips.uses[path] if use.items.split == split}
        if len(items) > 1:
            return False  # noise, an enrolment utterance, or a recording with many segments
        (use,) = items.values()
        ways.append((use.source.keys, sorted(_numbers(use.items.static(use.i)))))  # segments differ in numbers
    return ways[0] == ways[1]


def _numbers(value, keys=()):
    """Yield each number inside a value, also as text (in CSV files), and the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "id":
                yield from _numbers(inner, (*keys, str(key)))
        return
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        yield keys, float(value)


def _equal(one, other):
    """Whether two files contain the same samples."""
    try:
        return (soundfile.read(one)[0] == soundfile.read(other)[0]).all()
    except soundfile.SoundFileError:
        return False


def _durations(clips):
    """Report clips whose duration is far from the median, also compared with the spread of the durations."""
    logs = defaultdict(dict)
    for path, header in clips.headers.items():
        frames = clips.looks[path].frames if path in clips.looks else 0 if header.subtype == MP3 else header.frames
        if frames and len(clips.uses[path]) == 1:  # a file of several items is a recording with many segments
            logs[clips.uses[path][0].source.keys][path] = math.log(frames / header.rate)
    for of in logs.values():
        if len(of) < 2:
            continue
        low, middle, high = statistics.quantiles(of.values(), n=4)
        reach = max(math.log(FAR), 5 * (high - low))
        far = [path for path, log in of.items() if abs(log - middle) > reach]
        what = f"whose duration is far from the usual {math.exp(middle):.2g} s"
        yield from clips.finding("note", "audio-duration", what, far, "listen to them; cut them, or remove their items")
