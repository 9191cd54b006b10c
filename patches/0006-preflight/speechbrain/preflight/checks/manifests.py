"""Checks the manifests: what all items contain, and how they are sorted."""

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import pairwise

from speechbrain.preflight.attempts import failure
from speechbrain.preflight.observe.items import Items
from speechbrain.preflight.report import Finding, some

CODES = {
    "item-lacks-key": "an item of the manifest lacks a key that the pipeline takes",
    "item-failed": "a key of an item cannot be evaluated, although that needs no audio",
    "id-twice": "a JSON manifest has an id several times; only the last item with it is used",
    "sorted-wrong": "items are sorted by values that are NaN, or by numbers as text",
    "duration-unlike-audio": "durations in the manifest are not the files' seconds, but a multiple, or a sampler gets zeros",
    "label-contradicts": "items with the same audio have different labels",
    "label-constant": "all items have the same label",
    "audio-twice": "several items of the training set have the same audio",
    "audio-constant": "all items have the same audio",
}

FEWEST = 4  # items that must agree
UNITS = {1000: "milliseconds", 1e6: "microseconds", 1 / 60: "minutes"}


def failures(seen):
    """Yield items that cannot be evaluated."""
    for items, ids, lacks, error in seen.failures:
        which, count = f"{items.split}: {some(ids)}", f"{len(ids)} of {len(items)} items"
        if error is None:
            what = f"'{lacks}' is missing in {count}, but the data pipeline takes it"
            yield Finding("error", "item-lacks-key", what, which, "add it to these items, or remove them")
        else:
            one = failure("item-failed", error)
            first, _, more = one.what.partition("\n")
            what = f"{first} ({count}: {some(ids)})\n{more}"
            yield Finding("error", "item-failed", what, one.where or which, "correct these items, or remove them")


def twice(seen):
    """Yield ids that a JSON manifest has several times."""
    for path in dict.fromkeys(seen.loaded.manifests):
        with open(path, encoding="utf-8") as file:
            names = json.load(file, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
        again = [name for name, count in Counter(names).items() if count > 1]
        if again:
            what = f"{len(names) - len(set(names))} items are lost, because a later item has the same id: {some(again)}"
            yield Finding("warning", "id-twice", what, str(path), "give each item its own id")


def selections(seen):
    """Yield orders that are arbitrary."""
    for dataset, given, ids in seen.loaded.selections:
        key, where = given.get("sort_key"), f"sort_key={given.get('sort_key')!r}"
        values = {name: dataset.data[name][key] for name in ids if dataset.data[name].get(key) is not None}
        nan = [name for name, value in values.items() if isinstance(value, float) and math.isnan(value)]
        if nan:
            what = f"{key!r} is NaN for {len(nan)} of {len(ids)} items, so that the order is arbitrary"
            yield Finding("warning", "sorted-wrong", what, f"{where}: {some(nan)}", "correct or remove these items")
        wrong = [pair for pair in pairwise(values.values()) if _as_text(*pair, given.get("reverse"))]
        measures = any("." in value for pair in wrong for value in pair) or re.search("dur|len|frames|samples", key or "")
        if wrong and measures:  # else, they may be names, which have no order
            what = f"{key!r} is sorted as text: {wrong[0][0]!r} comes before {wrong[0][1]!r}"
            yield Finding("warning", "sorted-wrong", what, where, "make it a number: pass col_types to from_csv, or int()")


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
            what = f"the durations in the manifest are {middle:.4g} times the files' seconds: {unit}?"
            remedy = "write seconds, unless all users expect this"
            yield Finding("note", "duration-unlike-audio", what, f"{split} duration", remedy)
    loader = getattr(seen.start.train_loader, "loader", seen.start.train_loader)
    lengths = getattr(getattr(loader, "batch_sampler", None), "_ex_lengths", None)
    if lengths and not any(lengths.values()):
        what, where = (
            f"the lengths of all {len(lengths)} items are 0, so that batches have no limit",
            "train DynamicBatchSampler",
        )
        yield Finding("warning", "duration-unlike-audio", what, where, "check the durations, and length_func")


def same_content(seen):
    """Yield items of one set that have the same audio: with different labels, or all of them."""
    for split in ("train", "valid"):
        contents = _contents(seen, split)
        number = sum(map(len, contents.values()))
        if len(contents) == 1 and number >= FEWEST:
            what = f"all {number} items have the same audio"
            yield Finding("warning", "audio-constant", what, split, "check how the manifest and the pipeline name the files")
            continue
        for column in [seen.labels.columns[split, key] for key in seen.labels.targets if (split, key) in seen.labels.columns]:
            groups = [[i for i in group if column.values[i] is not None] for group in contents.values()]
            wrong = [group for group in groups if len({column.values[i] for i in group}) > 1]
            if wrong:
                names = ", ".join(f"{column.items.static(i)['id']} ({column.say(i)})" for i in wrong[0][:3])
                what = f"{len(wrong)} times, items with the same audio have different labels: {names}"
                yield Finding("warning", "label-contradicts", what, column.where, "keep one of these items")
                return
        reads, twice = defaultdict(set), defaultdict(list)  # items may read several files
        for content, group in contents.items() if len(seen.clips.looks) == len(seen.clips.uses) else ():
            for i in group:
                reads[i].add(content)
        for i, read in reads.items():
            twice[frozenset(read)].append(i)
        again = [group for group in twice.values() if len(group) > 1]
        if again and split == "train":
            items = Items.of(split, seen.given.train_set)
            what = f"{sum(map(len, again)) - len(again)} of {len(reads)} items have the audio of another item"
            where = f"{split}: {some(items.static(i)['id'] for i in again[0])}"
            yield Finding("note", "audio-twice", what, where, "keep one of these items, unless this is meant")


def _contents(seen, split):
    """The numbers of the items of a set by what they read, except silence."""
    found = defaultdict(list)
    for path, look in seen.clips.looks.items():
        for use in seen.clips.uses[path]:
            if use.items.split == split and use.items.pipeline and look.low != look.high:
                static, key = use.items.static(use.i), use.source.keys[0]
                takes = [item.takes for item in use.items.pipeline.dynamic_items if key in item.takes]
                # Its start and stop may be other keys, or in the same value.
                segment = [str(static.get(other)).replace(path, "") for other in sorted({key}.union(*takes))]
                found[(look.fingerprint, use.source, *segment)].append(use.i)
    return found


def constant(seen):
    """Yield a training set with only one label."""
    for key, target in seen.labels.targets.items():
        column = seen.labels.columns.get(("train", key))
        if column and column.complete and len(set(column.values)) == 1 and len(column.values) >= FEWEST and target.classes > 1:
            what = f"all {len(column.values)} items have the label {column.values[0]}"
            what += f"; the classifier has {target.classes} outputs"
            yield Finding("warning", "label-constant", what, column.where, "check the key that the label is made from")


RULES = (failures, twice, selections, durations, same_content, constant)
