"""Reads the labels that a classifier learns.

A key of the batch contains the labels if its values in the first batch, one for each item, are the targets of a loss. This
key is then evaluated for all items, unless that reads audio. Other kinds of targets are not read.
"""

import numbers
import time
import traceback
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.preflight.observe.items import ENCODER, Items, Watch
from torch.nn.functional import one_hot

AT_LEAST = 0.25  # seconds to spend on labels, even if fewer are spent on audio
COMPARING = 1.0  # seconds to spend on comparing a label encoder with the labels of the data


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

    A value is an int, a tuple of int for a sequence, :class:`Unknown`, or None for anything else.
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


@dataclass(frozen=True)
class Labels:
    """The labels."""

    targets: dict = field(default_factory=dict)  # by key of the batch, the labels that the first step learned
    columns: dict = field(default_factory=dict)  # by set and key of the batch, the labels of all items
    # By the file that a label encoder was loaded from, the labels of its data that it does not have.
    lacking: dict = field(default_factory=dict)


def labels(given, loaded, start, step, log):
    """Read the labels of the training and the validation set."""
    targets, columns = _targets(given, start.batch, step.losses), {}
    deadline = time.perf_counter() + max(given.scan_seconds, AT_LEAST)
    for split, dataset in (("train", given.train_set), ("valid", given.valid_set)):
        items = Items.of(split, dataset)
        if items is None or items.pipeline is None or not len(items):
            continue
        for outer, key in items.pipeline.output_mapping.items():
            column = log.guarded(f"{split} {key}", evaluate, items, key, deadline, outer in targets)
            if column is not None:
                columns[split, outer] = column
                if len(column.values) < len(items):
                    log.said.append(f"Labels ({column.where}): {len(column.values)} of {len(items)} items were checked.")
    lacking = {
        str(path): log.guarded(str(path), _lacking, encoder, path, arguments, log)
        for encoder, path, arguments in loaded.encoders
    }
    return Labels(targets, columns, {path: found for path, found in lacking.items() if found})


def _lacking(encoder, path, arguments, log):
    """The labels of the data that a label encoder does not have."""
    found, end = set(), time.monotonic() + COMPARING
    for label in _labels(arguments) if not hasattr(encoder, "unk_label") else ():
        if label not in encoder.lab2ind:
            found.add(label)
        if time.monotonic() > end:
            log.said.append(f"{path}: there was no time to compare it with all labels of the data.")
            break
    return found


def _labels(arguments):
    """The labels of the data that an encoder would have been built from."""
    for source in arguments["from_iterables"]:
        yield from _flat(source, arguments["sequence_input"])
    key = arguments["output_key"]
    for dataset in arguments["from_didatasets"]:
        with dataset.output_keys_as([key]):
            for number in range(len(dataset)):
                for item in dataset.pipeline.dynamic_items:
                    item.reset()  # after an exception, a generator would continue where it stopped
                yield from _flat([dataset[number][key]], arguments["sequence_input"])


def _flat(source, sequences):
    for item in source:
        yield from item if sequences else [item]


def evaluate(items, key, deadline, wanted=True):
    """Evaluate a key for all items; None if that reads audio, or if it uses no label encoder and is not ``wanted``."""
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
    if isinstance(value, (torch.Tensor, np.ndarray)) and len(value.shape) == 1:
        return tuple(value.tolist()) if "int" in str(value.dtype) else None
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _targets(given, batch, losses):
    """The Target of each key of the batch that contains labels."""
    items = Items.of("train", given.train_set)
    targets = {}
    if batch is None or items is None or items.pipeline is None:
        return targets
    for call in losses:
        target = _target(call)
        if target is None:
            continue
        keys = [key for key in items.pipeline.output_mapping if _is_in(target.labels, _of_batch(batch, key))]
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
