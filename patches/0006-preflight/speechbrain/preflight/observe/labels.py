"""Reads the labels that a classifier learns: a key of the batch with one value for each item or frame, a loss's targets."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from speechbrain.preflight.observe.columns import Unknown
from speechbrain.preflight.observe.given import of_batch
from speechbrain.preflight.observe.sequences import find_place, sequences_of
from torch.nn.functional import one_hot


class Target(NamedTuple):
    """The arguments of a loss in the first step."""

    labels: torch.Tensor  # one label for each item
    classes: int
    ignored: int  # the ignored label


@dataclass(frozen=True)
class Labels:
    """The labels."""

    targets: dict = field(default_factory=dict)  # by key of the batch, the labels that the first step learned
    frames: list = field(default_factory=list)  # the keys of the batch with a target for each frame
    columns: dict = field(default_factory=dict)  # by set and key of the batch, the Column of a key that reads no audio
    # By the file that a label encoder was loaded from instead of being built, the labels of the data that it does not have.
    lacking: dict = field(default_factory=dict)


def labels(given, loaded, start, step, columns):
    """Find the labels of the training and the validation set, and what encoders of an earlier run lack."""
    lacking = {}
    for encoder, path, _ in loaded.encoders:
        for (split, _), column in columns.items():
            if split == "train" and any(encoder is other for other in column.encoders):
                lacking.setdefault(str(path), set()).update(one.label for one in column.values if isinstance(one, Unknown))
    lacking = {path: found for path, found in lacking.items() if found}
    frames = [key for split, key in columns if split == "train" and _of_frames(start.batch, key, step.losses)]
    return Labels(_targets(given, start.batch, step.losses), frames, columns, lacking)


def _of_frames(batch, key, losses):
    """Whether a key's values, several for each item, are a loss's targets."""
    data, lengths = (None, None) if batch is None else sequences_of(batch, key)
    targets = [call.target.cpu() for call in losses if data is not None and isinstance(call.target, torch.Tensor)]
    return any(find_place(target, None, None, data, lengths) for target in targets)


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
    if call.name == "kl_div" and given.dim() == 2 and given.shape == scores.shape:  # of LogSoftmaxWrapper, for margin losses
        labels = given.argmax(1)
        if torch.equal(given, one_hot(labels, given.shape[1]).to(given.dtype)):
            return Target(labels.cpu(), given.shape[1], -100)
    return None


def _is_in(labels, value):
    """Whether labels are equal to a key's values, which augmentation may have repeated."""
    if value is None or value.is_floating_point() or not value.dim() or value.numel() != len(value) or len(value) < 2:
        return False
    times, left = divmod(len(labels), len(value))
    return not left and torch.equal(labels, value.reshape(-1).cpu().to(labels.dtype).repeat(times))
