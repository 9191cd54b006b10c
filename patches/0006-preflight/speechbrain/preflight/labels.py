"""Check 5: the labels that a classifier learns, and the batches that they come in.

Which key holds the labels is known where the targets of a loss are that key's values in the first batch, one for each
item. That key is then evaluated for all items, if it can be without audio. Targets of another kind are left alone.
"""

import numbers
import time
import traceback
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.preflight.items import ENCODER, Items, Watch
from speechbrain.preflight.report import Finding
from torch.nn.functional import one_hot
from torch.utils.data import BatchSampler, SequentialSampler

CODES = {
    "label-outside": "a label is none of the classifier's outputs",
    "label-ignored": "a class has the label that the loss ignores",
    "label-only-in-valid": "the validation set has classes that the training set lacks",
    "label-unknown": "a label encoder does not know labels of the data",
    "labels-sorted": "the batches come in the order of the classes, most of them of one class",
    "no-batch": "a loader gives no batch at all",
    "batch-of-one": "a batch of one item is left over, and a BatchNorm sees one value of it a channel",
}

AT_LEAST = 0.25  # seconds for the labels, however few the audio gets
SHOWN = 4
SORTED = 0.1  # of the changes from class to class that a random order has


class Target(NamedTuple):
    """What a loss was given in the first step: a label for each item, the number of classes, the label it ignores."""

    labels: torch.Tensor
    classes: int
    ignored: int


class Unknown(NamedTuple):
    """In place of a label: what the label encoder did not know."""

    label: object


class Column(NamedTuple):
    """A key, evaluated for all items, or as many as the time allowed.

    A value is an int, or :class:`Unknown`, or None where it is something else.
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
        """str: Which key of which set."""
        return f"{self.items.split} {self.key}"

    def say(self, i):
        """Say what an item's label is made of."""
        static = self.items.static(i)
        return " ".join(str(static[key])[:40] for key in self.takes if key != "id" or len(self.takes) == 1) or str(static["id"])


def check(seen):
    """Check labels and batches.

    Arguments
    ---------
    seen : speechbrain.preflight.seen.Seen
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
                    seen.said.append(f"Labels ({column.where}): {len(column.values)} of {len(items)} items were looked at.")
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
        The key, by its name within the pipeline.
    deadline : float
        When to stop, by ``time.perf_counter``.
    wanted : bool
        Whether to go on if no label encoder was asked for the first of them.

    Returns
    -------
    Column
        None if that reads audio, or is not wanted.
    """
    known, values = {}, []
    with items.providing([key]):
        with Watch() as watch:
            _value(items, len(items) - 1, key)  # the first ones may be cached
        if watch.opened or not (wanted or watch.encoders):
            return None
        takes = items.needed([key])
        for i in range(len(items)):
            static = items.static(i)
            made_of = tuple(static.get(name) for name in takes)
            try:
                value = known[made_of] if made_of in known else known.setdefault(made_of, _value(items, i, key))
            except TypeError:  # made of lists, say
                value = _value(items, i, key)
            values.append(value)
            if time.perf_counter() > deadline:
                break
    return Column(items, key, takes, values, watch.encoders)


def _value(items, i, key):
    """A value of a Column."""
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
    """The keys that hold the labels: a dict of the batch's key to Target."""
    items = Items.of("train", seen.train_set)
    targets = {}
    if seen.batch is None or items is None or items.pipeline is None:
        return targets
    for call in seen.losses:
        target = _target(call)
        if target is None:
            continue
        keys = [key for key in items.pipeline.output_mapping if _is_in(target.labels, _of_batch(seen.batch, key))]
        if len(keys) == 1:  # two are one too many to tell
            targets[keys[0]] = target
    return targets


def _target(call):
    """The labels that a loss was given; None if it was given no single one for each item."""
    given, scores = call.target, call.input
    if not isinstance(given, torch.Tensor) or not isinstance(scores, torch.Tensor) or scores.dim() < 2:
        return None
    if call.name in ("cross_entropy", "nll_loss") and not given.is_floating_point() and given.numel() == len(given):
        return Target(given.reshape(-1).cpu(), scores.shape[1], call.options.get("ignore_index", -100))
    if call.name == "kl_div" and given.dim() == 2 and given.shape == scores.shape:  # the wrapper of the margin losses
        labels = given.argmax(1)
        if torch.equal(given, one_hot(labels, given.shape[1]).to(given.dtype)):
            return Target(labels.cpu(), given.shape[1], -100)
    return None


def _of_batch(batch, key):
    """A batch's values of a key: a tensor, or None."""
    try:
        value = batch[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    value = getattr(value, "data", value)  # PaddedData, but also a tensor
    return value if isinstance(value, torch.Tensor) else None


def _is_in(labels, value):
    """Whether labels are a key's values, once or, where a batch was augmented, several times over."""
    if value is None or value.is_floating_point() or not value.dim() or value.numel() != len(value) or len(value) < 2:
        return False
    times, left = divmod(len(labels), len(value))
    return not left and torch.equal(labels, value.reshape(-1).cpu().to(labels.dtype).repeat(times))


def _some(texts):
    """The first of many, and how many more there are."""
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
                what = f"the label encoder knows none of the labels: all items are {encoder.unk_label!r} to it"
    if what:
        remedy = "remove the file that the encoder was loaded from, so that it is made of this data, or use labels it knows"
        yield Finding("error", "label-unknown", what, column.where, remedy)


def _outside(column, target):
    last = target.classes - 1
    found = [i for i, value in enumerate(column.values) if isinstance(value, int) and value != target.ignored]
    found = [i for i in found if not 0 <= column.values[i] <= last]
    if found:
        labels = _some(str(label) for label in sorted({column.values[i] for i in found}))
        what = f"the classifier's outputs are 0 to {last}, but labels are {labels}: {len(found)} of {len(column.items)} items"
        remedy = "give the classifier as many outputs as there are labels, and count these from 0"
        yield Finding("error", "label-outside", what, f"{column.where}: {_some(map(column.say, found))}", remedy)
    ignored = [i for i, value in enumerate(column.values) if value == target.ignored and 0 <= target.ignored <= last]
    if ignored:
        what = f"the loss ignores label {target.ignored}, which is a class: {len(ignored)} of {len(column.items)} items"
        remedy = "set ignore_index (-100 is torch's own), or count the labels otherwise"
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
        yield Finding("warning", "label-only-in-valid", what, where, "split so that every class is in the training set")


def _sorted(train, loader):
    loader = getattr(loader, "loader", loader)  # of a LoopedLoader
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or type(batches.sampler) is not SequentialSampler or batches.batch_size < 2:
        return
    labels, size = train.values, batches.batch_size
    parts = [labels[i : i + size] for i in range(0, len(labels), size)]
    pure = sum(len(set(part)) == 1 for part in parts)
    # Where one class is most of the data, batches of one class are no sign of order: there are few changes anyway.
    shares = [count / len(labels) for count in Counter(labels).values()]
    fewest, at_random = len(shares) - 1, (len(labels) - 1) * (1 - sum(share**2 for share in shares))
    changes = sum(a != b for a, b in pairwise(labels))
    if len(parts) > 1 and pure > len(parts) / 2 and changes - fewest < SORTED * (at_random - fewest):
        what = f"{pure} of {len(parts)} batches are of one class, and they are not shuffled"
        yield Finding("warning", "labels-sorted", what, train.where, "give fit train_loader_kwargs with shuffle: True")


def _no_batch(seen):
    for split, loader in (("train", seen.train_loader), ("valid", seen.valid_loader)):
        loader = getattr(loader, "loader", loader)
        try:
            batches, items = len(loader), len(loader.dataset)
        except (TypeError, AttributeError, NotImplementedError):  # no loader, or no telling
            continue
        if not batches:
            remedy = "take a smaller batch_size, or leave out drop_last"
            what = f"{items} items are too few for a batch of {loader.batch_size}, and drop_last is set"
            if not items or not loader.drop_last:
                what, remedy = f"its sampler gives none of {items} items", "look at what the items and the sampler are made of"
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
        what = f"{items} items leave a last batch of one, of which BatchNorm cannot take a variance: training will stop there"
        remedy = "set drop_last: True in train_loader_kwargs, or take another batch_size"
        yield Finding("error", "batch-of-one", what, _some(alone), remedy)


def _values_an_item(module, shape, items):
    """How many values a channel a BatchNorm in training sees of an item: 2 if the batch was augmented once."""
    if module is None or isinstance(module, torch.nn.SyncBatchNorm) or not module.training or len(shape) < 2:
        return None
    return shape.numel() / shape[1] / items
