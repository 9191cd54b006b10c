"""Check 4: the audio files that the items are made of.

Which files these are is seen by evaluating a few items, and matching what they open with what the manifest says. The
headers of all files are read, then as many whole files as the time allows. What would be an error is first tried in the
pipeline itself, which may well know how to deal with it.
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
from speechbrain.preflight.clips import in_parallel, read, read_whole
from speechbrain.preflight.items import Items, Watch, is_audio
from speechbrain.preflight.report import Finding
from speechbrain.utils.distributed import if_main_process

CODES = {
    "audio-missing": "a file that an item needs does not exist",
    "audio-unreadable": "a file cannot be decoded",
    "audio-truncated": "a file cannot be decoded to its end, or holds less audio than its header says",
    "audio-empty": "a clip has no samples",
    "audio-not-finite": "a clip has samples that are nan or infinite",
    "audio-rate": "clips of another sample rate than expected are not resampled",
    "audio-channels": "clips of several channels become items of another shape than those of one",
    "audio-silent": "all samples of a clip are the same",
    "audio-clipped": "a 1000th of a clip's samples or more are at full scale, three or more in a row",
    "audio-leak": "a clip is both in the training and in the validation set",
    "audio-duration": "a clip is far longer or shorter than the others",
}

MP3 = "MPEG_LAYER_III"
TRIES = 4  # items to try something on
SLACK = 0.1  # seconds that a file may lack without a word
CLIPPED = 0.001  # of a clip's samples
FAR = 20  # times the usual duration, or a 20th of it


class Source(NamedTuple):
    """Where a manifest names files: a key and those within its value, and what is put before and after what is there."""

    keys: tuple
    before: str = ""
    after: str = ""


class Use(NamedTuple):
    """An item that a file is read for, and where its manifest names the file."""

    items: Items
    i: int
    source: Source

    def __str__(self):
        return f"{self.items.split} {'.'.join(self.source.keys)}"


class Made(NamedTuple):
    """What became of an item: its tensors by key, None if it failed; the files it opened; whether it was resampled."""

    tensors: dict
    opened: list
    resampled: bool


def check(seen):
    """Check the audio of the training and the validation set.

    Arguments
    ---------
    seen : speechbrain.preflight.seen.Seen
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
        seen.said.append("Audio was not scanned: no item was seen to read a file that its manifest names.")
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
    """Which items read which file: a dict of path to list of Use."""
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
    """Find out where the manifest names the files that are read for an item.

    Arguments
    ---------
    items : Items
        The items; at least one.

    Returns
    -------
    list of Source
        What was seen when some items were evaluated; failing that, what has the name of an audio file and is one.
    """
    n = len(items)
    certain, likely = {}, []
    for i in dict.fromkeys((n - 1, n // 2, n // 4)):  # the first ones may be cached
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
    """Each text within a value, and the keys that lead to it; the place in a list is no key."""
    if isinstance(value, (str, os.PathLike)):
        yield keys, os.fspath(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, str(key)))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner, keys)


def _around(value, path):
    """What stands before and after a value in a path: nothing, or a folder and an extension."""
    if not value:
        return
    before, found, after = path.rpartition(value)
    folder = not before or before.endswith(os.sep)
    extension = not after or (after.startswith(".") and after[1:].isalnum())
    if found and folder and extension:
        yield before, after


def _make(items, i):
    """Evaluate an item, and see what it does: Made."""
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
    """Put what was read here, and why not there."""
    for path, result in results:
        (bad if isinstance(result, Exception) else good)[path] = result


class Clips:
    """The audio files of a run, and what was found in them.

    Arguments
    ---------
    uses : dict of str to list of Use
        The items that each file is read for.

    Attributes
    ----------
    headers, looks : dict of str to Header and Look
        What was read, by file.
    errors, damaged : dict of str to Exception
        Why a header, or the rest of a file, was not.
    """

    def __init__(self, uses):
        self.uses = uses
        self.headers = {}
        self.looks = {}
        self.errors = {}
        self.damaged = {}

    def read(self, deadline):
        """Read all headers, then whole files until the time is over.

        Arguments
        ---------
        deadline : float
            When that is, by ``time.perf_counter``.
        """
        paths = list(self.uses)
        random.Random(0).shuffle(paths)  # those that the time allows shall stand for the others
        both = {}
        _sort(in_parallel(lambda path, room: read(path, room, deadline), paths, math.inf, "headers"), both, self.errors)
        self.headers = {path: header for path, (header, _) in both.items()}
        _sort(((path, look) for path, (_, look) in both.items() if look is not None), self.looks, self.damaged)
        paths = [path for path, (_, look) in both.items() if look is None]
        splits = defaultdict(set)
        for path, header in self.headers.items():
            splits[header[:3]].update(use.items.split for use in self.uses[path])
        paths.sort(key=lambda path: len(splits[self.headers[path][:3]]) < 2)  # what may be in both sets comes first
        work = lambda path, room: read_whole(path, self.headers[path], room)  # noqa: E731
        _sort(in_parallel(work, paths, deadline, "audio"), self.looks, self.damaged)

    def make(self, path):
        """Evaluate an item that a file is read for.

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
        """Tell of files, unless the pipeline does not mind them.

        Arguments
        ---------
        level, code : str
            Of the finding.
        what : str
            What these files are.
        paths : list of str
            The files.
        remedy : str
            What to do.
        confirm : callable
            Takes a file, and says whether that holds in the pipeline too.

        Yields
        ------
        Finding
            If there is something to tell.
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
        """Tell what is wrong with files by themselves.

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
        again = "copy or convert them again, or drop their items"
        drop = "drop their items, or mend what made the files"
        louder = "use the recordings as they were before they were made louder"
        yield from self.finding(
            "error", "audio-missing", "that do not exist", missing, "correct the paths, or drop the items", fails
        )
        yield from self.finding("error", "audio-unreadable", "that cannot be decoded", unreadable, again, fails)
        yield from self.finding("error", "audio-truncated", "that end before their time", truncated, again)
        yield from self.finding("error", "audio-empty", "without a sample", empty, drop, is_made_empty)
        yield from self.finding("error", "audio-not-finite", "with nan or infinite samples", wild, drop, is_made_wild)
        yield from self.finding("warning", "audio-silent", "of silence", silent, "drop their items, if they should hold sound")
        yield from self.finding("warning", "audio-clipped", "that are clipped", clipped, louder)

    def _lacks(self, path):
        """How many seconds a file lacks."""
        header = self.headers[path]
        lacks = header.missing
        if path in self.looks and not lacks and header.frames > self.looks[path].frames:
            with open(path, "rb") as file:
                start = file.read(4096)
            if header.subtype != MP3 or b"Xing" in start or b"Info" in start:  # else its length is an estimate
                lacks = header.frames - self.looks[path].frames
        return lacks / header.rate


def expected_rate(seen):
    """Find out which sample rate the model expects.

    Arguments
    ---------
    seen : speechbrain.preflight.seen.Seen
        The run.

    Returns
    -------
    int
        In Hz: the hparams' ``sample_rate``, or the modules' where all that have one agree; else None.
    """
    if "sample_rate" in seen.hparams:
        rates = [seen.hparams["sample_rate"]]
    else:
        rates = [getattr(module, "sample_rate", None) for module in _modules(seen)]
    rates = {rate for rate in rates if isinstance(rate, (int, float)) and rate > 0}
    return rates.pop() if len(rates) == 1 else None


def _modules(seen):
    """All modules of the Brain and of the hparams."""
    given = [getattr(seen.brain, "modules", None), *seen.hparams.values()]
    for module in given:
        if isinstance(module, torch.nn.Module):
            yield from module.modules()


def _rate(seen, clips):
    """Clips of another rate than expected, if their items show that they were not resampled."""
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
    yield from clips.finding("error", "audio-rate", f"of {found} where {rate} Hz is expected", wrong, remedy, as_long)


def _resamples_later(seen, rates):
    """Whether a module resamples from one of these rates, or the script speaks of it."""
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
    """Clips of several channels, if the pipeline makes something else of them than of the others."""
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
        # Where all have several, a model that cannot take them fails at once.
        return seen.batch is not None and not seen.stepped and clips.headers[path].channels in _last_sizes(clips.make(path))

    remedy = "mix them down in the audio pipeline (sig.mean(-1)), or convert the files"
    yield from clips.finding(
        "error", "audio-channels", "whose several channels go on into their items", several, remedy, differs
    )


def _last_sizes(made):
    """The last dimensions of an item's matrices."""
    return {tensor.shape[-1] for tensor in (made.tensors or {}).values() if tensor.dim() == 2}


def _leaks(clips):
    """Clips that are both in the training and in the validation set, by name or by content."""
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

    remedy = "split by speaker or recording, and make sure that no clip is in two sets"
    yield from clips.finding("warning", "audio-leak", "that are validated on, and trained on too", both, remedy)
    yield from clips.finding(
        "warning", "audio-leak", "that are validated on, and copies of training clips", copies, remedy, same
    )


def _same_part(clips, train, valid):
    """Whether a file of each set is read for one item there, in the same way."""
    ways = []
    for split, path in (("train", train), ("valid", valid)):
        items = {str(use.items.static(use.i).get("id", use.i)): use for use in clips.uses[path] if use.items.split == split}
        if len(items) > 1:
            return False  # noise, an enrolment, or a recording of many parts
        (use,) = items.values()
        ways.append((use.source.keys, sorted(_numbers(use.items.static(use.i)))))  # parts of a recording differ in numbers
    return ways[0] == ways[1]


def _numbers(value, keys=()):
    """Each number within a value, which CSV files hold as text, and the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "id":
                yield from _numbers(inner, (*keys, str(key)))
        return
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        yield keys, float(value)


def _equal(one, other):
    """Whether two files hold the same samples."""
    try:
        return (soundfile.read(one)[0] == soundfile.read(other)[0]).all()
    except soundfile.SoundFileError:
        return False


def _durations(clips):
    """Clips far from the usual duration, and from the spread of the durations too."""
    logs = defaultdict(dict)
    for path, header in clips.headers.items():
        frames = clips.looks[path].frames if path in clips.looks else 0 if header.subtype == MP3 else header.frames
        if frames and len(clips.uses[path]) == 1:  # else it is no clip, but a recording of many
            logs[clips.uses[path][0].source.keys][path] = math.log(frames / header.rate)
    for of in logs.values():
        if len(of) < 2:
            continue
        low, middle, high = statistics.quantiles(of.values(), n=4)
        reach = max(math.log(FAR), 5 * (high - low))
        far = [path for path, log in of.items() if abs(log - middle) > reach]
        what = f"far from the usual duration of {math.exp(middle):.2g} s"
        yield from clips.finding("note", "audio-duration", what, far, "listen to them; cut or drop what is no clip")
