"""Checks the audio files of the items.

Before an error is reported, the file is tried in the data pipeline, which may be able to handle it.
"""

import contextlib
import math
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from speechbrain.preflight.observe.clips import is_scaled
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.report import Finding, some

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
RUN = 64  # samples in a row that show that a tensor was read from a file
OF_SHAPE = re.compile("shape|size|dimension|channel|unpack", re.IGNORECASE)  # what exceptions about shapes say
FAR = 20  # times the usual duration, or the usual duration divided by this
AGAIN = "copy or convert them again, or remove their items"
DROP = "remove their items, or fix the program that made the files"
SPLIT = "split the data by speaker or recording, and put each clip into only one set"


def _report(clips, level, code, what, paths, remedy, confirm=None):
    """Report files, except those for which ``confirm`` says that the pipeline can handle them."""
    if confirm is not None:
        tried = paths[:: math.ceil(len(paths) / TRIES)] if paths else []
        sure = [path for path in tried if confirm(path)]
        paths = paths if len(sure) == len(tried) else sure
    if paths:
        first, folder = paths[0], os.path.dirname(paths[0])  # which is written once
        others = (os.path.basename(path) if os.path.dirname(path) == folder else path for path in paths[1:])
        where = f"{clips.uses[first][0]}: {some([first, *others])}"
        yield Finding(level, code, f"{len(paths)} of {len(clips.uses)} files {what}", where, remedy)


def unreadable(seen):
    """Yield files that do not exist, or that cannot be decoded."""
    clips, errors = seen.clips, seen.clips.errors

    def fails(path):
        made = clips.make(path)
        return made.tensors is None and path in made.opened

    missing = [path for path, error in errors.items() if isinstance(error, FileNotFoundError)]
    others = [path for path in errors if path not in missing]
    remedy = next(filter(None, map(_as_written, missing)), "correct the paths, or remove the items")
    yield from _report(clips, "error", "audio-missing", "do not exist", missing, remedy, fails)
    yield from _report(clips, "error", "audio-unreadable", "cannot be decoded", others, AGAIN, fails)


def _as_written(path):
    """How to fix a path that was not made for this place; None for others."""
    mark = re.search(r"\{(\w+)\}|\$(\w+)", path)
    if mark:
        return f"pass replacements= with {mark[1] or mark[2]!r}; a CSV manifest takes $name, a JSON manifest {{name}}"
    return "write the paths as this system does" if "\\" in path else None


def damaged(seen):
    """Yield files that end too early, and files whose samples are missing, not finite, all equal or clipped."""
    clips, looks = seen.clips, {path: look for path, look in seen.clips.looks.items() if look.frames}

    def is_made_empty(path):
        tensors = clips.make(path).tensors
        return tensors is None or any(not tensor.numel() for tensor in tensors.values())

    def is_made_wild(path):
        return any(not tensor.isfinite().all() for tensor in (clips.make(path).tensors or {}).values())

    truncated = [path for path in clips.headers if path in clips.damaged or _lacks(clips, path) > SLACK]
    empty = [path for path, header in clips.headers.items() if not header.frames and path not in truncated]
    wild = [path for path, look in looks.items() if not math.isfinite(look.low + look.high)]
    silent = [path for path, look in looks.items() if look.low == look.high]
    clipped = [path for path in clips.of_sets(looks) if looks[path].clipped >= CLIPPED]
    silence, louder = "remove their items if they should contain sound", "use the recordings from before they were amplified"
    yield from _report(clips, "error", "audio-truncated", "end too early", truncated, AGAIN)
    yield from _report(clips, "error", "audio-empty", "have no samples", empty, DROP, is_made_empty)
    yield from _report(clips, "error", "audio-not-finite", "have samples that are NaN or infinite", wild, DROP, is_made_wild)
    yield from _report(clips, "warning", "audio-silent", "contain only silence", silent, silence)
    yield from _report(clips, "warning", "audio-clipped", "are clipped", clipped, louder)


def _lacks(clips, path):
    """How many seconds are missing in a file."""
    header, look = clips.headers[path], clips.looks.get(path)
    lacks = header.missing
    if look and not lacks and header.frames > look.frames:
        with open(path, "rb") as file:
            start = file.read(4096)
        if header.subtype != MP3 or b"Xing" in start or b"Info" in start:  # else its length is only estimated
            lacks = header.frames - look.frames
    return lacks / header.rate


def rate(seen):
    """Yield clips of another rate than expected whose items show that they were not resampled."""
    clips, expected = seen.clips, expected_rate(seen.given)
    headers = {path: clips.headers[path] for path in clips.of_sets(clips.headers)}
    wrong = [path for path, header in headers.items() if expected and header.rate != expected and header.frames]
    rates = sorted({headers[path].rate for path in wrong})
    if not wrong or not seen.step.taken or not {None, *rates}.isdisjoint(seen.step.resampled):
        return

    def as_read(path):
        made, header = clips.make(path), headers[path]
        if not made.tensors or not {None, header.rate}.isdisjoint(made.resampled):
            return False
        return any(header.frames in tensor.shape or _is_part(tensor, made.read) for tensor in made.tensors.values())

    what = f"have a sample rate of {', '.join(map(str, rates))} Hz, but the model expects {expected} Hz"
    remedy = "resample in the audio pipeline (torchaudio.functional.resample), or convert the files"
    if "sample_rate" in seen.given.hparams and len({header.rate for header in headers.values()}) == 1:
        remedy += f", or set sample_rate to {rates[0]} in the YAML file"
    yield from _report(clips, "error", "audio-rate", what, wrong, remedy, as_read)


def _is_part(tensor, read):
    """Whether a tensor begins with samples as they were read from a file."""
    start = tensor.flatten()[:RUN].float().cpu().numpy()
    if tensor.dim() != 1 or len(start) < RUN or not start.std():
        return False
    for samples in read:
        rows = np.atleast_2d(np.asarray(samples, np.float32))
        for row in rows if rows.shape[0] < rows.shape[1] else rows.T:
            found = np.flatnonzero(row[: len(row) - RUN + 1] == start[0])
            if any((row[i : i + RUN] == start).all() for i in found):
                return True
    return False


def expected_rate(given):
    """Find the sample rate that the model expects: that of the hparams, or of the modules, if they agree; else None."""
    if "sample_rate" in given.hparams:
        rates = [given.hparams["sample_rate"]]
    else:
        rates = [getattr(module, "sample_rate", None) for _, module in parts(given.brain)]
    rates = {rate for rate in rates if isinstance(rate, (int, float)) and rate > 0}
    return rates.pop() if len(rates) == 1 else None


def channels(seen):
    """Yield clips with several channels whose items differ in shape from others of their set, or make the first step fail."""
    clips, step = seen.clips, seen.step
    headers = {path: clips.headers[path] for path in clips.of_sets(clips.headers) if clips.headers[path].frames}
    several = [path for path, header in headers.items() if header.channels > 1]
    ones = {str(clips.uses[path][0]): path for path, header in reversed(headers.items()) if header.channels == 1}

    def shapes(path):
        tensors = clips.make(path).tensors
        return tensors and {key: tensor.dim() for key, tensor in tensors.items()}

    def differs(path):
        other = ones.get(str(clips.uses[path][0]))
        if other:
            mine, its = shapes(path), shapes(other)
            return mine and its and mine != its
        # If all have several, a model that cannot take them fails in the first step.
        failed = seen.start.batch is not None and not step.taken and OF_SHAPE.search(step.error)
        matrices = [tensor for tensor in (clips.make(path).tensors or {}).values() if tensor.dim() == 2]
        return failed and any(tensor.shape[-1] == headers[path].channels for tensor in matrices)

    what = "have several channels, and the pipeline does not mix them down"
    remedy = "mix them down in the audio pipeline (sig.mean(-1)), or convert the files to one channel"
    yield from _report(clips, "error", "audio-channels", what, several, remedy, differs)


def leaks(seen):
    """Yield clips that are in both the training and the validation set, by name or by content."""
    clips = seen.clips
    named, sounding = defaultdict(dict), defaultdict(dict)
    for path in clips.of_sets(clips.uses):
        look = clips.looks.get(path)
        for split in {use.items.split for use in clips.uses[path]}:
            named[os.path.abspath(path)][split] = path
            if look is not None and look.low < look.high:
                sounding[clips.headers[path][:3], look.frames, look.fingerprint].setdefault(split, path)
    both = [found["valid"] for found in named.values() if len(found) == 2 and _same_part(clips, **found)]
    pairs = {found["valid"]: found["train"] for found in sounding.values() if len(found) == 2 and _same_part(clips, **found)}
    copies = [valid for valid, train in pairs.items() if os.path.abspath(valid) != os.path.abspath(train)]
    what, copied = "are in both the training and the validation set", "of the validation set are copies of training files"
    yield from _report(clips, "warning", "audio-leak", what, both, SPLIT)
    for scaled, what in ((False, copied), (True, f"{copied}, up to a gain")):
        found = [path for path in copies if (clips.looks[path].fingerprint in clips.scaled) == scaled]
        yield from _report(clips, "warning", "audio-leak", what, found, SPLIT, lambda one: is_scaled(one, pairs[one]))


def _same_part(clips, train, valid):
    """Whether each file is read by one item of its set, and both are read in the same way."""
    ways = []
    for split, path in (("train", train), ("valid", valid)):
        items = {use.items.name(use.i): use for use in clips.uses[path] if use.items.split == split}
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


def unusual(values, times):
    """The median of values, and the names of those that are far from it, also compared with the spread; the farthest first."""
    logs = {name: math.log(value) for name, value in values.items()}
    low, middle, high = statistics.quantiles(logs.values(), n=4)
    away = {name: abs(log - middle) for name, log in logs.items()}
    reach = max(math.log(times), 5 * (high - low))
    return math.exp(middle), sorted((name for name in away if away[name] > reach), key=away.get, reverse=True)


def durations(seen):
    """Yield clips whose duration is far from the median."""
    clips, seconds = seen.clips, defaultdict(dict)
    for path in clips.of_sets(clips.headers):
        header = clips.headers[path]
        frames = clips.looks[path].frames if path in clips.looks else 0 if header.subtype == MP3 else header.frames
        if frames and len(clips.uses[path]) == 1:  # a file of several items is a recording with many segments
            seconds[clips.uses[path][0].source.keys][path] = frames / header.rate
    for one in seconds.values():
        if len(one) > 1:
            usual, far = unusual(one, FAR)
            what = f"have a duration far from the usual {usual:.2g} s"
            yield from _report(clips, "note", "audio-duration", what, far, "listen to them; cut them, or remove their items")


RULES = (unreadable, damaged, rate, channels, leaks, durations)
