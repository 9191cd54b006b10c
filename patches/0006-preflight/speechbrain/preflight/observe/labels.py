"""Reads the labels that a classifier learns.

A key of the batch contains the labels if its values in the first batch, one for each item, are the targets of a loss.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.functional import one_hot

COMPARING = 1.0  # seconds to spend on comparing a label encoder with the labels of the data


class Target(NamedTuple):
    """The arguments of a loss in the first step: one label for each item, the number of classes, and the ignored label."""

    labels: torch.Tensor
    classes: int
    ignored: int


@dataclass(frozen=True)
class Labels:
    """The labels."""

    targets: dict = field(default_factory=dict)  # by key of the batch, the labels that the first step learned
    columns: dict = field(default_factory=dict)  # by set and key of the batch, the Column of a key that reads no audio
    # By the file that a label encoder was loaded from, the labels of its data that it does not have.
    lacking: dict = field(default_factory=dict)


def labels(given, loaded, start, step, columns, log):
    """Read the labels of the training and the validation set."""
    lacking = {
        str(path): log.guarded(str(path), _lacking, encoder, path, arguments, log)
        for encoder, path, arguments in loaded.encoders
    }
    targets = _targets(given, start.batch, step.losses)
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


def _targets(given, batch, losses):
    """The Target of each key of the batch that contains labels."""
    items, targets = given.sets.get("train"), {}
    if batch is None or items is None or items.pipeline is None:
        return targets
    for call in losses:
        target = _target(call)
        if target is None:
            continue
        keys = [key for key in items.pipeline.output_mapping if _is_in(target.labels, of_batch(batch, key))]
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


def of_batch(batch, key):
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
