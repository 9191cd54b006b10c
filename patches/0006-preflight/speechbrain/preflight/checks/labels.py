"""Checks the labels that a classifier learns, and the batches.

A key of the batch contains the labels if its values in the first batch, one for each item, are the targets of a loss. This
key is then evaluated for all items, unless that reads audio. Other kinds of targets are not checked.
"""

import numbers
import time
import traceback
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.preflight.observe.items import ENCODER, Items, Watch
from speechbrain.preflight.report import Finding
from torch.nn.functional import one_hot
from torch.utils.data import BatchSampler, SequentialSampler

CODES = {
    "label-outside": "a label is not one of the classifier's outputs",
    "label-ignored": "a class has the label that the loss ignores (ignore_index)",
    "label-only-in-valid": "the validation set has classes that the training set does not have",
    "label-unknown": "a label encoder does not know some labels of the data",
    "labels-sorted": "the items are sorted by class, so that most batches contain only one class",
    "no-batch": "a loader yields no batches",
    "batch-of-one": "the last batch has only one item, from which a BatchNorm gets only one value per channel",
}

AT_LEAST = 0.25  # seconds to spend on labels, even if fewer are spent on audio
SHOWN = 4  # labels or names in a message
SORTED = 0.1  # items are sorted if the class changes less often than this share of the changes in a random order


class Target(NamedTuple):
    """The arguments of a loss in the first step: one label for each item, the number of classes, and the ignored label."""

    labels: torch.Tensor
    classes: int
    ignored: int


class Unknown(NamedTuple):
    """Replaces a label that the label encoder does not know."""

    label: object


class Column(NamedTuple):
    """The values of a key for all items, or for as many as there was time for.

    A value is an int, :class:`Unknown`, or None for anything else.
    """

    items: Items
    key: str
    takes: list
    values: list
    encoders: list

    @property
    def complete(self):
        """bool: Whether there is a label for each item."""
        return len(self.values) == len(self.items) and all(isinstance(value, int) for value in self.values)

    @property
    def where(self):
        """str: The set and the key."""
        return f"{self.items.split} {self.key}"

    def say(self, i):
        """Return the manifest's values that an item's label is made from, as text."""
        static = self.items.static(i)
        return " ".join(str(static[key])[:40] for key in self.takes if key != "id" or len(self.takes) == 1) or str(static["id"])


def check(seen):
    """Check labels and batches.

    Arguments
    ---------
    seen : speechbrain.preflight.observe.given.Seen
        The run.

    Yields
    ------
    Finding
        See ``CODES``.
    """
    yield from _no_batch(seen)
    yield from _batch_of_one(seen)
    targets = _targets(seen)
    deadline = time.perf_counter() + max(seen.scan_seconds, AT_LEAST)
    columns = {}
    for split, given in (("train", seen.train_set), ("valid", seen.valid_set)):
        items = Items.of(split, given)
        if items is None or items.pipeline is None or not len(items):
            continue
        for outer, key in items.pipeline.output_mapping.items():
            column = evaluate(items, key, deadline, outer in targets)
            if column is not None:
                columns[split, outer] = column
                if len(column.values) < len(items):
                    seen.said.append(f"Labels ({column.where}): {len(column.values)} of {len(items)} items were checked.")
                yield from _unknown(column)
    for outer, target in targets.items():
        train, valid = columns.get(("train", outer)), columns.get(("valid", outer))
        for column in (train, valid):
            if column is not None:
                yield from _outside(column, target)
        if train is not None and train.complete:
            yield from _sorted(train, seen.train_loader)
            if valid is not None and valid.complete:
                yield from _only_in_valid(train, valid, target)


def evaluate(items, key, deadline, wanted=True):
    """Evaluate a key for all items.

    Arguments
    ---------
    items : Items
        The items; at least one.
    key : str
        The key, named as in the pipeline.
    deadline : float
        The value of ``time.perf_counter`` at which to stop.
    wanted : bool
        Whether to continue if the key uses no label encoder.

    Returns
    -------
    Column
        The values; None if evaluating the key reads audio, or if it uses no label encoder and is not ``wanted``.
    """
    known, values = {}, []
    with items.providing([key]):
        with Watch() as watch:
            _value(items, len(items) - 1, key)  # the last item, because the first ones may be cached
        if watch.opened or not (wanted or watch.encoders):
            return None
        takes = items.needed([key])
        for i in range(len(items)):
            static = items.static(i)
            made_of = tuple(static.get(name) for name in takes)
            try:
                value = known[made_of] if made_of in known else known.setdefault(made_of, _value(items, i, key))
            except TypeError:  # unhashable, for example a list
                value = _value(items, i, key)
            values.append(value)
            if time.perf_counter() > deadline:
                break
    return Column(items, key, takes, values, watch.encoders)


def _value(items, i, key):
    """Evaluate one value of a Column."""
    try:
        value = items.evaluate(i)[key]
    except Exception as error:
        frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
        unknown = isinstance(error, KeyError) and frame.f_globals.get("__name__") == ENCODER and "label" in frame.f_locals
        return Unknown(frame.f_locals["label"]) if unknown else None
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.shape.count(1) == len(value.shape):
        value = value.item()
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _targets(seen):
    """The Target of each key of the batch that contains labels."""
    items = Items.of("train", seen.train_set)
    targets = {}
    if seen.batch is None or items is None or items.pipeline is None:
        return targets
    for call in seen.losses:
        target = _target(call)
        if target is None:
            continue
        keys = [key for key in items.pipeline.output_mapping if _is_in(target.labels, _of_batch(seen.batch, key))]
        if len(keys) == 1:  # with two, it is not known which contains the labels
            targets[keys[0]] = target
    return targets


def _target(call):
    """The Target of a call of a loss; None if the call does not have exactly one label for each item."""
    given, scores = call.target, call.input
    if not isinstance(given, torch.Tensor) or not isinstance(scores, torch.Tensor) or scores.dim() < 2:
        return None
    if call.name in ("cross_entropy", "nll_loss") and not given.is_floating_point() and given.numel() == len(given):
        return Target(given.reshape(-1).cpu(), scores.shape[1], call.options.get("ignore_index", -100))
    if (
        call.name == "kl_div" and given.dim() == 2 and given.shape == scores.shape
    ):  # of LogSoftmaxWrapper, used for margin losses
        labels = given.argmax(1)
        if torch.equal(given, one_hot(labels, given.shape[1]).to(given.dtype)):
            return Target(labels.cpu(), given.shape[1], -100)
    return None


def _of_batch(batch, key):
    """The values of a key in a batch: a tensor, or None."""
    try:
        value = batch[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    value = getattr(value, "data", value)  # PaddedData and tensors have it
    return value if isinstance(value, torch.Tensor) else None


def _is_in(labels, value):
    """Whether labels are equal to a key's values, which augmentation may have repeated."""
    if value is None or value.is_floating_point() or not value.dim() or value.numel() != len(value) or len(value) < 2:
        return False
    times, left = divmod(len(labels), len(value))
    return not left and torch.equal(labels, value.reshape(-1).cpu().to(labels.dtype).repeat(times))


def _some(texts):
    """The first few texts, and the number of the others."""
    texts = list(texts)
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def _unknown(column):
    labels = Counter(str(value.label) for value in column.values if isinstance(value, Unknown))
    what = None
    if labels:
        what = f"the label encoder does not know {_some(map(repr, labels))}: {labels.total()} of {len(column.items)} items"
    elif column.complete and column.items.split == "train":
        for encoder in column.encoders:
            all_unknown = set(column.values) == {encoder.lab2ind.get(getattr(encoder, "unk_label", None))}
            if all_unknown and len({column.say(i) for i in range(len(column.items))}) > 1:
                what = f"the label encoder knows none of the labels, and encodes all items as {encoder.unk_label!r}"
    if what:
        remedy = "delete the file that the encoder was loaded from, so that it is built from this data, or use labels it knows"
        yield Finding("error", "label-unknown", what, column.where, remedy)


def _outside(column, target):
    last = target.classes - 1
    found = [i for i, value in enumerate(column.values) if isinstance(value, int) and value != target.ignored]
    found = [i for i in found if not 0 <= column.values[i] <= last]
    if found:
        labels = _some(str(label) for label in sorted({column.values[i] for i in found}))
        what = f"the classifier has outputs 0 to {last}, but labels are {labels}: {len(found)} of {len(column.items)} items"
        remedy = "give the classifier as many outputs as there are labels, and number the labels from 0"
        yield Finding("error", "label-outside", what, f"{column.where}: {_some(map(column.say, found))}", remedy)
    ignored = [i for i, value in enumerate(column.values) if value == target.ignored and 0 <= target.ignored <= last]
    if ignored:
        what = f"the loss ignores label {target.ignored}, but it is a class: {len(ignored)} of {len(column.items)} items"
        remedy = "set another ignore_index (torch's default is -100), or number the labels differently"
        yield Finding("warning", "label-ignored", what, f"{column.where}: {column.say(ignored[0])}", remedy)


def _only_in_valid(train, valid, target):
    first = {}
    for i, value in enumerate(valid.values):
        first.setdefault(value, i)
    known = set(train.values)
    new = [i for value, i in first.items() if value not in known and 0 <= value < target.classes]
    if new:
        what = f"{len(new)} of {len(first)} classes of the validation set are not in the training set"
        where = f"{valid.where}: {_some(valid.say(i) for i in new)}"
        yield Finding("warning", "label-only-in-valid", what, where, "split so that the training set has every class")


def _sorted(train, loader):
    loader = getattr(loader, "loader", loader)  # that of a LoopedLoader
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or type(batches.sampler) is not SequentialSampler or batches.batch_size < 2:
        return
    labels, size = train.values, batches.batch_size
    parts = [labels[i : i + size] for i in range(0, len(labels), size)]
    pure = sum(len(set(part)) == 1 for part in parts)
    # If most of the data is of one class, batches of one class do not show an order: the class rarely changes in any order.
    shares = [count / len(labels) for count in Counter(labels).values()]
    fewest, at_random = len(shares) - 1, (len(labels) - 1) * (1 - sum(share**2 for share in shares))
    changes = sum(a != b for a, b in pairwise(labels))
    if len(parts) > 1 and pure > len(parts) / 2 and changes - fewest < SORTED * (at_random - fewest):
        what = f"{pure} of {len(parts)} batches contain only one class, and the items are not shuffled"
        yield Finding("warning", "labels-sorted", what, train.where, "pass train_loader_kwargs with shuffle: True to fit")


def _no_batch(seen):
    for split, loader in (("train", seen.train_loader), ("valid", seen.valid_loader)):
        loader = getattr(loader, "loader", loader)
        try:
            batches, items = len(loader), len(loader.dataset)
        except (TypeError, AttributeError, NotImplementedError):  # no loader, or one of unknown length
            continue
        if not batches:
            remedy = "use a smaller batch_size, or remove drop_last"
            what = f"{items} items are too few for a batch of {loader.batch_size}, and drop_last is set"
            if not items or not loader.drop_last:
                what, remedy = f"its sampler yields none of {items} items", "check how the items and the sampler are made"
            yield Finding("error", "no-batch", what, split, remedy)


def _batch_of_one(seen):
    loader = getattr(seen.train_loader, "loader", seen.train_loader)
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or batches.drop_last:
        return
    try:
        items = len(batches.sampler)
    except (TypeError, NotImplementedError):
        return
    if not items or items % batches.batch_size != 1 % batches.batch_size:
        return
    modules = dict(seen.modules.named_modules())
    first = min(items, batches.batch_size)
    alone = [name for name, shape in seen.norm_inputs.items() if _values_an_item(modules.get(name), shape, first) == 1]
    if alone:
        what = f"of {items} items, the last batch has one: BatchNorm cannot compute a variance, and training will crash there"
        remedy = "set drop_last: True in train_loader_kwargs, or use another batch_size"
        yield Finding("error", "batch-of-one", what, _some(alone), remedy)


def _values_an_item(module, shape, items):
    """The values per channel and item that a BatchNorm gets in training: 2 if augmentation doubled the batch."""
    if module is None or isinstance(module, torch.nn.SyncBatchNorm) or not module.training or len(shape) < 2:
        return None
    return shape.numel() / shape[1] / items
