"""Checks the manifests: what all items contain, and how they are sorted."""

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import pairwise

from speechbrain.preflight.attempts import failure
from speechbrain.preflight.observe.given import unwrapped
from speechbrain.preflight.report import Finding, some

CODES = {
    "item-lacks-key": "an item of the manifest lacks a key that the pipeline takes",
    "item-failed": "the pipeline cannot compute a key of an item, although that needs no audio",
    "id-twice": "a JSON manifest has an id several times; only the last item with it is used",
    "sorted-wrong": "items are sorted by values that are NaN, or by numbers as text",
    "duration-unlike-audio": "durations in the manifest are not in seconds, or all lengths that a sampler gets are 0",
    "label-contradicts": "items with the same audio have different labels",
    "label-constant": "all items, or all frames of all items, have the same label",
    "audio-twice": "several items of the training set have the same audio",
    "audio-constant": "all items have the same audio",
}

FEWEST = 4  # items that must agree
UNITS = {1000: "milliseconds", 1e6: "microseconds", 1 / 60: "minutes"}


def failures(seen):
    """Yield items that cannot be evaluated."""
    for items, ids, lacks, error in seen.failures:
        where, count = f"{items.split}: {some(ids)}", f"{len(ids)} of {len(items)} items"
        code, what, remedy = "item-lacks-key", f"'{lacks}' is missing in {count}, but the data pipeline takes it", "add it to"
        if error is not None:
            one = failure("item-failed", error)
            first, _, more = one.what.partition("\n")
            code, where, remedy = "item-failed", one.where or where, "correct"
            what = f"{first} ({count}: {some(ids)})\n{more}"
        yield Finding("error", code, what, where, f"{remedy} these items, or remove them")


def twice(seen):
    """Yield ids that a JSON manifest has several times."""
    for path in dict.fromkeys(seen.loaded.manifests):
        with open(path, encoding="utf-8") as file:
            names = json.load(file, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
        again = [name for name, count in Counter(names).items() if count > 1]
        if again:
            what = f"{len(names)} items have only {len(set(names))} ids, and the last item with an id replaces the others: "
            what += some(again)
            yield Finding("warning", "id-twice", what, str(path), "give each item its own id")


def selections(seen):
    """Yield orders that are arbitrary."""
    for dataset, given, ids in seen.loaded.selections:
        key, where = given.get("sort_key"), f"sort_key={given.get('sort_key')!r}"
        values = {name: dataset.data[name][key] for name in ids if dataset.data[name].get(key) is not None}
        nan = [name for name, value in values.items() if isinstance(value, float) and math.isnan(value)]
        if nan:
            what = f"{key!r} is NaN for {len(nan)} of {len(ids)} items, so their order is arbitrary"
            yield Finding("warning", "sorted-wrong", what, f"{where}: {some(nan)}", "correct or remove these items")
        wrong = [pair for pair in pairwise(values.values()) if _as_text(*pair, given.get("reverse"))]
        measures = any("." in value for pair in wrong for value in pair) or re.search("dur|len|frames|samples", key or "")
        if wrong and measures:  # else, they may be names, which have no order
            what = f"the items are sorted by {key!r} as text: {wrong[0][0]!r} comes before {wrong[0][1]!r}"
            remedy = "make it a number: pass col_types to from_csv, or write numbers without quotes in JSON"
            yield Finding("warning", "sorted-wrong", what, where, remedy)


def _as_text(one, other, reverse):
    """Whether two neighbours are numbers, but sorted as text."""
    with suppress(ValueError):
        if isinstance(one, str) and isinstance(other, str):
            return float(one) < float(other) if reverse else float(one) > float(other)
    return False


def durations(seen):
    """Yield durations that are in another unit, and lengths of a sampler that are all zero."""
    ratios, units = defaultdict(list), {**UNITS}
    for path in seen.clips.of_sets(seen.clips.headers):
        header, use = seen.clips.headers[path], seen.clips.uses[path][0]
        value = use.items.static(use.i).get("duration")
        if isinstance(value, (int, float)) and header.frames and value > 0:
            ratios[use.items.split].append(value * header.rate / header.frames)
            units[header.rate] = "samples"
    for split, values in ratios.items():
        middle = statistics.median(values)
        equal = sum(math.isclose(value, middle, rel_tol=0.05) for value in values) >= 0.95 * len(values)
        unit = next((name for factor, name in units.items() if 0.9 < middle / factor < 1.1), None)
        if equal and unit and len(values) >= FEWEST:
            what = f"the durations in the manifest are {middle:.4g} times those of the files: are they in {unit}?"
            remedy = "write seconds, unless all code that reads them expects this unit"
            yield Finding("note", "duration-unlike-audio", what, f"{split} duration", remedy)
    lengths = getattr(getattr(unwrapped(seen.start.train_loader), "batch_sampler", None), "_ex_lengths", None)
    if lengths and not any(lengths.values()):
        what = f"the sampler takes the lengths of all {len(lengths)} items as 0, so batches have no limit"
        remedy = "check the durations in the manifest, and length_func"
        yield Finding("warning", "duration-unlike-audio", what, "train DynamicBatchSampler", remedy)


def same_content(seen):
    """Yield sets in which all items have the same audio, and items with the same audio and different labels."""
    for split in ("train", "valid"):
        contents = _contents(seen, split)
        number, again = sum(map(len, contents.values())), [read for read, group in contents.items() if len(group) > 1]
        gain = ", up to a gain" * any(mark in seen.clips.scaled for read in again for mark, *_ in read)
        if len(contents) == 1 and number >= FEWEST:
            what = f"all {number} items have the same audio{gain}"
            yield Finding("warning", "audio-constant", what, split, "check how the manifest and the pipeline name the files")
            continue
        for column in [seen.labels.columns[split, key] for key in seen.labels.targets if (split, key) in seen.labels.columns]:
            groups = [[i for i in group if column.values[i] is not None] for group in contents.values()]
            wrong = [group for group in groups if len({column.values[i] for i in group}) > 1]
            if wrong:
                names = some((f"{column.items.static(i)['id']} ({column.say(i)})" for i in wrong[0]), 4)
                what = f"{len(wrong)} of {len(groups)} clips have items with different labels{gain}, for example {names}"
                yield Finding("warning", "label-contradicts", what, column.where, "keep one item of each clip")
                return
        if again and split == "train":
            items, shared = seen.given.sets[split], contents[again[0]]
            what = f"{number - len(contents)} of {number} items have the audio of another item{gain}"
            where = f"{split}: {some(items.static(i)['id'] for i in shared)}"
            yield Finding("note", "audio-twice", what, where, "keep one of these items, unless this is meant")


def _contents(seen, split):
    """The numbers of the items of a set by all that they read, unless a part of it is silent, or was not read."""
    reads, found = defaultdict(set), defaultdict(list)
    for path, uses in seen.clips.uses.items():
        look = seen.clips.looks.get(path)
        for use in uses:
            if use.items.split == split and use.items.pipeline:
                static, key = use.items.static(use.i), use.source.keys[0]
                takes = [item.takes for item in use.items.pipeline.dynamic_items if key in item.takes]
                # Its start and stop may be other keys, or in the same value.
                segment = [str(static.get(other)).replace(path, "") for other in sorted({key}.union(*takes))]
                reads[use.i].add((look.fingerprint, use.source, *segment) if look and look.low != look.high else None)
    for i, read in reads.items():
        if None not in read:
            found[frozenset(read)].append(i)
    return found


def constant(seen):
    """Yield a training set with only one label, for all items or for all their frames."""
    for key in dict.fromkeys([*seen.labels.targets, *seen.labels.frames]):
        column, target = seen.labels.columns.get(("train", key)), seen.labels.targets.get(key)
        values = column.values if column else []
        labels = (label for value in values for label in (value if isinstance(value, tuple) else [value]))
        first = next(labels, None)
        constant = isinstance(first, (int, float)) and all(label == first for label in labels)
        if constant and len(values) >= FEWEST and (target is None or target.classes > 1):
            what = f"all {len(values)} items have {'only ' * (target is None)}the label {first:g}"
            what += f", but the classifier has {target.classes} outputs" if target else ""
            yield Finding("warning", "label-constant", what, column.where, "check the key that the pipeline makes it from")


RULES = (failures, twice, selections, durations, same_content, constant)
