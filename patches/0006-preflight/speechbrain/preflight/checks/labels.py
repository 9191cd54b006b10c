"""Checks the labels that a classifier learns."""

from collections import Counter
from itertools import pairwise

import torch
from speechbrain.preflight.checks.batches import plain_batches
from speechbrain.preflight.observe.columns import Unknown
from speechbrain.preflight.observe.given import unwrapped
from speechbrain.preflight.report import Finding, some
from torch.utils.data import SequentialSampler

CODES = {
    "label-outside": "the classifier has no output for a label",
    "label-ignored": "a class has the label that the loss ignores (ignore_index)",
    "label-only-in-valid": "the validation set has classes that the training set does not have",
    "label-unknown": "a label encoder does not know some labels of the data",
    "class-imbalance": "one class has 9 of 10 items, or 100 times as many as another, and no loss weights or weighted sampler",
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
            what = f"the label encoder does not know the labels of {labels.total()} of {len(column.items)} items: "
            what += some(map(repr, labels), SHOWN)
        elif column.complete and column.items.split == "train":
            for encoder in column.encoders:
                all_unknown = set(column.values) == {encoder.lab2ind.get(getattr(encoder, "unk_label", None))}
                if all_unknown and len({column.say(i) for i in range(len(column.items))}) > 1:
                    what = f"the label encoder knows no label of the data, and encodes all items as {encoder.unk_label!r}"
        if what:
            where = f"{column.where}: {some((str(column.items.static(i)['id']) for i in which), SHOWN)}".rstrip(": ")
            yield Finding("error", "label-unknown", what, where, _remedy(seen, column))


def _remedy(seen, column):
    """How to fix labels that a label encoder does not know."""
    for encoder, path in seen.loaded.files:
        if any(encoder is used for used in column.encoders):
            return f"use only labels that are in {path}, the encoder's file, or build the encoder from this data"
    if column.items.split == "valid":
        return "split the data so that the training set has these labels too, or remove these items"
    return "build the label encoder from the training set, or correct these items"


def outside(seen):
    """Yield labels that are no class, and classes that the loss ignores."""
    for (_, outer), column in seen.labels.columns.items():
        if outer in seen.labels.targets:
            yield from _outside(column, seen.labels.targets[outer])


def _outside(column, target):
    last, size = target.classes - 1, len(column.items)
    values = {i: value for i, value in enumerate(column.values) if value != target.ignored}
    found = [i for i, value in values.items() if isinstance(value, int) and not 0 <= value <= last]
    if found:
        labels = some(map(str, sorted({column.values[i] for i in found})), SHOWN)
        what = f"the classifier has outputs 0 to {last}, but {len(found)} of {size} items have other labels: {labels}"
        remedy = "give the classifier as many outputs as there are labels, and number the labels from 0"
        yield Finding("error", "label-outside", what, f"{column.where}: {some(map(column.say, found), SHOWN)}", remedy)
    ignored = [i for i in range(len(column.values)) if i not in values]
    rest = {column.say(i) for i in values}
    classes = [name for name in map(column.say, ignored) if name not in rest]
    # If each output has a label, the others may be ignored because they are unlabelled.
    unused = target.classes > len({*values.values()})
    if classes and unused and column.complete and column.items.split == "train":
        what = f"the loss ignores label {target.ignored}, but it is the class of {len(ignored)} of {size} items"
        remedy = "set another ignore_index (torch's default is -100), or number the labels differently"
        yield Finding("error", "label-ignored", what, f"{column.where}: {some(classes, SHOWN)}", remedy)


def only_in_valid(seen):
    """Yield classes that only the validation set has."""
    for outer, target in seen.labels.targets.items():
        train, valid = (seen.labels.columns.get((split, outer)) for split in ("train", "valid"))
        if train is None or valid is None or not train.complete or not valid.complete:
            continue
        known, first = set(train.values), {value: i for i, value in reversed([*enumerate(valid.values)])}
        new = sorted(i for value, i in first.items() if value not in known and 0 <= value < target.classes)
        if new:
            what = f"the training set has no items of {len(new)} of the {len(first)} classes in the validation set"
            where = f"{valid.where}: {some(map(valid.say, new), SHOWN)}"
            remedy = "split the data so that the training set has every class"
            yield Finding("warning", "label-only-in-valid", what, where, remedy)


def _train_columns(seen):
    """The labels that the classifiers learn, for which all training items are known."""
    columns = [seen.labels.columns.get(("train", outer)) for outer in seen.labels.targets]
    return [column for column in columns if column is not None and column.complete]


def imbalanced(seen):
    """Yield training sets in which one class dominates, or one is rare."""
    sampler = getattr(unwrapped(seen.start.train_loader), "sampler", None)
    weighted = any(isinstance(call.options.get("weight"), torch.Tensor) for call in seen.step.losses)
    for train in _train_columns(seen) if not weighted and not hasattr(sampler, "weights") else ():
        counts = Counter(train.values).most_common()
        (most, many), (least, few) = counts[0], counts[-1]
        uneven = many > DOMINANT * len(train.items) or many > RARE * few
        if len(train.items) >= MANY and len(counts) > 1 and uneven:
            names = [train.say(train.values.index(value)) for value in (most, least)]
            what = f"of {len(train.items)} items, {many} are of class {names[0]!r}, and only {few} of class {names[1]!r}"
            remedy = "give the loss weights, or use a weighted sampler, if rare classes matter"
            yield Finding("note", "class-imbalance", what, train.where, remedy)


def sorted_by_class(seen):
    """Yield labels whose order makes most batches contain only one class."""
    batches = plain_batches(seen.start.train_loader)
    if batches is not None and type(batches.sampler) is SequentialSampler and batches.batch_size > 1:
        for train in _train_columns(seen):
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
        what = f"{pure} of {len(parts)} batches contain only one class, because the items are sorted and not shuffled"
        yield Finding("warning", "labels-sorted", what, train.where, "set shuffle: True in train_loader_kwargs")


RULES = (unknown, outside, only_in_valid, imbalanced, sorted_by_class)
