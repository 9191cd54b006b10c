"""Reads the audio files of items and augmentations: all headers, then as many whole files as there is time for."""

import math
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from scipy.spatial import cKDTree
from speechbrain.augment.time_domain import AddNoise, AddReverb
from speechbrain.dataio.legacy import ExtendedCSVDataset
from speechbrain.preflight.observe.clips import in_parallel, is_scaled, read_header, read_whole
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.observe.items import Items, is_audio
from speechbrain.utils.distributed import if_main_process

NEAR, SECONDS = 0.01, 2.0  # the distance of envelopes of copies at different gains, and for how long files are compared
PART = re.compile(r"(start|stop|end|begin|offset|seg)", re.IGNORECASE)  # keys of an item that is a part of a file


class Source(NamedTuple):
    """Where a manifest names files."""

    keys: tuple  # the key, and the keys inside its value
    before: str = ""  # what the path has before and after that value
    after: str = ""


class Use(NamedTuple):
    """An item that reads a file."""

    items: Items
    i: int
    source: Source  # the place of the file in the manifest

    def __str__(self):
        return f"{self.items.split} {'.'.join(self.source.keys)}"


def audio(given, log):
    """Read the audio of the training and the validation set, and of augmentations, in the main process."""
    if not if_main_process():
        return Clips({})
    began = time.perf_counter()
    clips = Clips(_uses(given, log))
    if not clips.uses:
        log.said.append("Audio was not scanned: the preflight saw no item read a file that the manifest names.")
        return clips
    clips.read(began + given.scan_seconds)
    which = ", ".join(sorted({str(use) for uses in clips.uses.values() for use in uses}))
    log.said.append(
        f"Audio ({which}): {len(clips.headers)} of {len(clips.uses)} headers and {len(clips.looks)} whole files "
        f"were read in {time.perf_counter() - began:.1f} s."
    )
    return clips


def _uses(given, log):
    """The items that read each file: a dict of path to list of Use."""
    uses = defaultdict(list)
    for items in (*given.sets.values(), *(log.guarded("augmentations", lambda: [*_of_augmentations(given)]) or ())):
        found = sources(items) if len(items) else ()
        for i in range(len(items)) if found else ():
            static = items.static(i)
            for source in found:
                for keys, value in _leaves(static.get(source.keys[0]), source.keys[:1]):
                    if keys == source.keys and value:
                        uses[source.before + value + source.after].append(Use(items, i, source))
    return uses


def _of_augmentations(given):
    """The noises and impulse responses that augmentations read: the items of their CSV files."""
    for name, module in parts(given.brain):
        if isinstance(module, (AddNoise, AddReverb)) and module.csv_file is not None:
            # As the module does.
            keys, more = getattr(module, "csv_keys", None), getattr(module, "replacements", {})
            yield Items(name, ExtendedCSVDataset(module.csv_file, output_keys=keys, replacements=more))


def sources(items):
    """Find where the manifest names the files that a few items open; if none does, where it names existing audio files."""
    certain, likely = {}, []
    for i, watches in zip(items.probed, zip(*items.probes.values())):
        leaves = list(_leaves(items.static(i)))
        matched = set()
        for path in (path for watch in watches for path in watch.opened):
            fits = [Source(keys, *around) for keys, value in leaves for around in _around(value, path)]
            if fits:
                matched.add(min(fits, key=lambda source: len(source.before + source.after)))
        certain.update((source, None) for source in matched if not source.before + source.after)
        likely.append({source for source in matched if source.before + source.after})
    found = [*certain, *(set.intersection(*likely) if likely else ())]
    if found:
        return found
    taken = items.needed()
    named = [(keys, value) for keys, value in _leaves(items.static(len(items) - 1)) if keys[0] in taken and is_audio(value)]
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


def _sort(results, good, bad):
    """Put results into the one dict, and exceptions into the other."""
    for path, result in results:
        (bad if isinstance(result, Exception) else good)[path] = result


class Clips:
    """The audio files of a run, and what they contain."""

    def __init__(self, uses):
        self.uses = uses
        self.headers, self.looks = {}, {}  # by file, what was read
        self.errors, self.damaged = {}, {}  # by file, why its header, or the rest of it, could not be read
        self.scaled = set()  # the fingerprints of copies at different gains

    def read(self, deadline):
        """Read all headers, then whole files until the deadline."""
        paths = list(self.uses)
        random.Random(0).shuffle(paths)  # so that the files for which there is time are a random sample
        _sort(in_parallel(read_header, paths, math.inf, "headers"), self.headers, self.errors)
        splits = defaultdict(set)
        for path, header in self.headers.items():
            splits[header[:3]].update(use.items.split for use in self.uses[path])
        paths = [path for path in paths if path in self.headers]
        paths.sort(key=lambda path: len(splits[self.headers[path][:3]]) < 2)  # first, files that may be in both sets
        _sort(in_parallel(read_whole, paths, deadline, "audio"), self.looks, self.damaged)
        self._unite(time.perf_counter() + SECONDS)

    def _unite(self, deadline):
        """Give copies at different gains one fingerprint, if items read one file each: mixtures use a source again."""
        uses = Counter((use.items.split, use.i) for of in self.uses.values() for use in of)
        groups, marks = defaultdict(dict), {look.fingerprint: look.fingerprint for look in self.looks.values()}
        for path in self.of_sets(self.looks):
            look = self.looks[path]
            if look.envelope is not None and all(uses[use.items.split, use.i] == 1 for use in self.uses[path]):
                groups[self.headers[path][:2], look.frames][look.fingerprint] = path
        for paths in map(list, map(dict.values, groups.values())):
            envelopes = [self.looks[path].envelope for path in paths]
            for i, found in enumerate(cKDTree(envelopes).query(envelopes, 2, distance_upper_bound=NEAR)[1]):
                j = found[int(found[0] == i)]  # the nearest other one, or none
                if j < len(paths) and time.perf_counter() < deadline and is_scaled(paths[i], paths[j]):
                    one, other = (marks[self.looks[paths[k]].fingerprint] for k in (i, j))
                    marks |= {mark: other for mark, now in marks.items() if now == one}
        self.looks = {path: look._replace(fingerprint=marks[look.fingerprint]) for path, look in self.looks.items()}
        self.scaled = {new for old, new in marks.items() if old != new}

    def seconds(self, items):
        """By number of an item, its duration: of its files, or as the manifest says if it may be a part of one; and which."""
        uses = [(use, self.headers.get(path)) for path, of in self.uses.items() for use in of if use.items.split == items.split]
        source, found = min((use.source for use, _ in uses), default=None), {}
        for use, header in uses:
            if use.source == source and header:
                found[use.i] = found.get(use.i, 0.0) + header.frames / header.rate
        if found and not any(PART.match(key) for key in items.needed()):
            return found, ""
        found = {}
        for i in range(len(items)):
            with suppress(KeyError, TypeError, ValueError):
                found[i] = float(items.static(i)["duration"])
        return found, " by the manifest"

    def of_sets(self, paths):
        """Choose files of the training and the validation set."""
        return [path for path in paths if self.uses[path][0].items.split in ("train", "valid")]

    def make(self, path):
        """Evaluate an item that reads a file."""
        use = self.uses[path][0]
        return use.items.watched(use.i)
