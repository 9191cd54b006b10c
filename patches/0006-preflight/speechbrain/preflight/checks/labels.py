"""Checks the labels that a classifier learns."""

from collections import Counter
from itertools import pairwise

import torch
from speechbrain.preflight.observe.columns import Unknown
from speechbrain.preflight.report import Finding, some
from torch.utils.data import BatchSampler, SequentialSampler

CODES = {
    "label-outside": "a label is not one of the classifier's outputs",
    "label-ignored": "a class has the label that the loss ignores (ignore_index)",
    "label-only-in-valid": "the validation set has classes that the training set does not have",
    "label-unknown": "a label encoder does not know some labels of the data",
    "class-imbalance": "one class has 9 of 10 items, or 100 times as many as another, and neither loss nor sampler knows",
    "labels-sorted": "the items are sorted by class, so that most batches contain only one class",
}

MANY, DOMINANT, RARE = 300, 0.9, 100  # items that show an imbalance; the share, or the ratio, from which it is one
SHOWN = 4  # labels or names in a message
SORTED = 0.1  # items are sorted if the class changes less often than this share of the changes in a random order


def unknown(seen):
    """Yield labels that a label encoder does not know."""
    for column in seen.labels.columns.values():
        which = [i for i, value in enumerate(column.values) if isinstance(value, Unknown)]
        labels = Counter(str(value.label) for value in column.values if isinstance(value, Unknown))
        what = None
        if labels:
            count = f"{labels.total()} of {len(column.items)} items"
            what = f"the label encoder does not know {some(map(repr, labels), SHOWN)}: {count}"
        elif column.complete and column.items.split == "train":
            for encoder in column.encoders:
                all_unknown = set(column.values) == {encoder.lab2ind.get(getattr(encoder, "unk_label", None))}
                if all_unknown and len({column.say(i) for i in range(len(column.items))}) > 1:
                    what = f"the label encoder knows none of the labels, and encodes all items as {encoder.unk_label!r}"
        if what:
            where = f"{column.where}: {some((str(column.items.static(i)['id']) for i in which), SHOWN)}".rstrip(": ")
            yield Finding("error", "label-unknown", what, where, _remedy(seen, column))


def _remedy(seen, column):
    """How to fix labels that a label encoder does not know."""
    for encoder, path in seen.loaded.files:
        if any(encoder is used for used in column.encoders):
            return f"use only labels that are in {path}, from which the encoder was loaded, or build it from this data"
    if column.items.split == "valid":
        return "split the data so that the training set has these labels too, or remove these items"
    return "build the label encoder from the training set, or correct these items"


def outside(seen):
    """Yield labels that are no class, and classes that the loss ignores."""
    for (_, outer), column in seen.labels.columns.items():
        if outer in seen.labels.targets:
            yield from _outside(column, seen.labels.targets[outer])


def _outside(column, target):
    last = target.classes - 1
    found = [i for i, value in enumerate(column.values) if isinstance(value, int) and value != target.ignored]
    found = [i for i in found if not 0 <= column.values[i] <= last]
    if found:
        labels = some(map(str, sorted({column.values[i] for i in found})), SHOWN)
        what = f"the classifier has outputs 0 to {last}, but labels are {labels}: {len(found)} of {len(column.items)} items"
        remedy = "give the classifier as many outputs as there are labels, and number the labels from 0"
        yield Finding("error", "label-outside", what, f"{column.where}: {some(map(column.say, found), SHOWN)}", remedy)
    ignored = [i for i, value in enumerate(column.values) if value == target.ignored]
    rest = {column.say(i) for i, value in enumerate(column.values) if value != target.ignored}
    classes = dict.fromkeys(column.say(i) for i in ignored if column.say(i) not in rest)
    # If each output has a label, the others may be ignored because they are unlabelled.
    unused = target.classes > len({value for value in column.values if value != target.ignored})
    if classes and unused and column.complete and column.items.split == "train":
        what = f"the loss ignores label {target.ignored}, but it is a class: {len(ignored)} of {len(column.items)} items"
        remedy = "set another ignore_index (torch's default is -100), or number the labels differently"
        yield Finding("error", "label-ignored", what, f"{column.where}: {some(classes, SHOWN)}", remedy)


def only_in_valid(seen):
    """Yield classes that only the validation set has."""
    for outer, target in seen.labels.targets.items():
        train, valid = (seen.labels.columns.get((split, outer)) for split in ("train", "valid"))
        if train is None or valid is None or not train.complete or not valid.complete:
            continue
        first = {}
        for i, value in enumerate(valid.values):
            first.setdefault(value, i)
        known = set(train.values)
        new = [i for value, i in first.items() if value not in known and 0 <= value < target.classes]
        if new:
            what = f"{len(new)} of {len(first)} classes of the validation set are not in the training set"
            where = f"{valid.where}: {some(map(valid.say, new), SHOWN)}"
            yield Finding("warning", "label-only-in-valid", what, where, "split so that the training set has every class")


def imbalanced(seen):
    """Yield training sets in which one class dominates, or one is rare."""
    sampler = getattr(getattr(seen.start.train_loader, "loader", seen.start.train_loader), "sampler", None)
    weighted = any(isinstance(call.options.get("weight"), torch.Tensor) for call in seen.step.losses)
    for outer in seen.labels.targets if not weighted and not hasattr(sampler, "weights") else ():
        train = seen.labels.columns.get(("train", outer))
        if train is not None and train.complete and len(train.items) >= MANY:
            counts = Counter(train.values).most_common()
            (most, many), (least, few) = counts[0], counts[-1]
            if len(counts) > 1 and (many > DOMINANT * len(train.items) or many > RARE * few):
                names = [train.say(train.values.index(value)) for value in (most, least)]
                what = f"of {len(train.items)} items, {many} are of class {names[0]!r}, and only {few} of class {names[1]!r}"
                remedy = "give the loss weights, or use a weighted sampler, if rare classes matter"
                yield Finding("note", "class-imbalance", what, train.where, remedy)


def sorted_by_class(seen):
    """Yield labels whose order makes most batches contain only one class."""
    loader = getattr(seen.start.train_loader, "loader", seen.start.train_loader)  # that of a LoopedLoader
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or type(batches.sampler) is not SequentialSampler or batches.batch_size < 2:
        return
    for outer in seen.labels.targets:
        train = seen.labels.columns.get(("train", outer))
        if train is not None and train.complete:
            yield from _sorted(train, batches.batch_size)


def _sorted(train, size):
    labels = train.values
    parts = [labels[i : i + size] for i in range(0, len(labels), size)]
    pure = sum(len(set(part)) == 1 for part in parts)
    # If most of the data is of one class, batches of one class do not show an order: the class rarely changes in any order.
    shares = [count / len(labels) for count in Counter(labels).values()]
    fewest, at_random = len(shares) - 1, (len(labels) - 1) * (1 - sum(share**2 for share in shares))
    changes = sum(a != b for a, b in pairwise(labels))
    if len(parts) > 1 and pure > len(parts) / 2 and changes - fewest < SORTED * (at_random - fewest):
        what = f"{pure} of {len(parts)} batches contain only one class, and the items are not shuffled"
        yield Finding("warning", "labels-sorted", what, train.where, "pass train_loader_kwargs with shuffle: True to fit")


RULES = (unknown, outside, only_in_valid, imbalanced, sorted_by_class)
