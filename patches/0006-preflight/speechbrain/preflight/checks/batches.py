"""Checks how items become batches."""

import inspect
import os
import pickle
import random
from collections import defaultdict
from contextlib import suppress
from itertools import combinations

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.preflight.isolate import in_child
from speechbrain.preflight.observe.given import unwrapped
from speechbrain.preflight.report import Finding, some
from torch.utils.data import BatchSampler, DataLoader

CODES = {
    "fit-arguments-shifted": "fit gets the options of a dataloader as its argument progressbar, because they have no name",
    "no-batch": "a loader yields no batches",
    "tensor-without-dimension": "an item has a tensor without dimensions, which PaddedBatch cannot pad",
    "generator-copied": "items draw from a generator that each loader worker copies, so that all draw the same numbers",
    "signals-unlike": "the signals of an item differ in length, although those of other items do not",
    "signals-equal": "two keys of each item of a set give the same signal",
    "dynamic-batch-limit": "max_batch_length of a DynamicBatchSampler is below every clip, or far above all: another unit",
    "batch-of-one": "the last batch has only one item, from which a BatchNorm gets only one value per channel",
}

FEWEST = 4  # clips that say something about units
SECONDS = 10.0  # how long it may take to evaluate an item
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
MANY = 1000  # clips of the longest kind that nobody wants in a batch


def plain_batches(loader):
    """The BatchSampler of a loader, whose batches all have the same size, except the last one; None for others."""
    batches = getattr(unwrapped(loader), "batch_sampler", None)
    return batches if type(batches) is BatchSampler else None


def shifted(seen):
    """Yield options of the dataloaders that were passed by position."""
    if isinstance(seen.given.progressbar, dict):
        what = f"fit takes {seen.given.progressbar} as its fourth argument, progressbar, and no loader gets these options"
        remedy = "pass train_loader_kwargs= and valid_loader_kwargs= by name"
        yield Finding("error", "fit-arguments-shifted", what, type(seen.given.brain).__name__, remedy)


def no_batch(seen):
    """Yield loaders without batches."""
    given, start = seen.given, seen.start
    sets = ("train", given.train_set, start.train_loader), ("valid", given.valid_set, start.valid_loader)
    for split, dataset, loader in sets:
        loader = unwrapped(loader)
        try:
            items = len(getattr(loader, "dataset", dataset))
            batches = items and len(loader)  # for a set without items, a loader may not even be made
        except (TypeError, AttributeError, NotImplementedError):  # no loader, or one of unknown length
            continue
        if batches:
            continue
        what, remedy = f"its sampler yields none of {items} items", "check how the items and the sampler are made"
        if not items:
            what, remedy = "the set has no items", "check its manifest, and how the set is filtered"
        elif loader.drop_last:
            what = f"{items} items are too few for a batch of {loader.batch_size}, and drop_last is True"
            remedy = "use a smaller batch_size, or remove drop_last"
        yield Finding("error", "no-batch", what, split, remedy)


def batch_of_one(seen):
    """Yield BatchNorms that the last batch gives one value per channel."""
    batches, items = plain_batches(seen.start.train_loader), 0
    with suppress(TypeError, NotImplementedError, AttributeError):  # no such batches, or a sampler of unknown length
        items = 0 if batches.drop_last else len(batches.sampler)
    if not items or items % batches.batch_size != 1 % batches.batch_size:
        return
    modules, first = dict(seen.given.modules.named_modules()), min(items, batches.batch_size)
    alone = [name for name, shape in seen.step.norm_inputs.items() if _values_an_item(modules.get(name), shape, first) == 1]
    if alone:
        what = f"the last batch has 1 of {items} items: BatchNorm cannot compute its variance, and training crashes there"
        remedy = "set drop_last: True in train_loader_kwargs, or use another batch_size"
        if batches.batch_size == 1:
            what = "each batch has 1 item: BatchNorm cannot compute its variance, and training crashes in the first step"
            remedy = "use a larger batch_size"
        elif items == 1:
            remedy = "use more items"
        yield Finding("error", "batch-of-one", what, some(alone, 4), remedy)


def _values_an_item(module, shape, items):
    """The values per channel and item that a BatchNorm gets in training: 2 if augmentation doubled the batch."""
    if module is None or isinstance(module, torch.nn.SyncBatchNorm) or not module.training or len(shape) < 2:
        return None
    return shape.numel() / shape[1] / items


def without_dimension(seen):
    """Yield keys that make the first batch fail, because PaddedBatch pads along a dimension that they do not have."""
    loader, items = seen.start.train_loader, seen.given.sets.get("train")
    if seen.start.batch is not None or getattr(loader, "collate_fn", None) is not PaddedBatch or not items:
        return
    with suppress(Exception):  # which other checks report
        for key, value in items.evaluate(len(items) - 1).items():
            if isinstance(value, torch.Tensor) and not value.dim():
                what = f"{key!r} is a tensor without dimensions, but PaddedBatch pads the first dimension"
                remedy = "return a number, or a tensor with one dimension: torch.LongTensor([label])"
                yield Finding("error", "tensor-without-dimension", what, f"train {key}", remedy)


def dynamic(seen):
    """Yield samplers whose limit has another unit than the lengths of the items."""
    for split, loader in (("train", seen.start.train_loader), ("valid", seen.start.valid_loader)):
        sampler = getattr(unwrapped(loader), "batch_sampler", None)
        while not isinstance(sampler, DynamicBatchSampler) and hasattr(sampler, "sampler"):
            sampler = sampler.sampler  # of a wrapper for several processes
        lengths = sorted(getattr(sampler, "_ex_lengths", {}).values())
        if not isinstance(sampler, DynamicBatchSampler) or len(lengths) < FEWEST or not lengths[-1] > 0:
            continue
        limit, most, what = sampler._max_batch_length, sampler._max_batch_ex, ""
        if lengths[0] > limit and most > 1:
            what = f"each batch has only one clip: the shortest one has length {lengths[0]:g}"
        elif limit > MANY * lengths[-1] and most > MANY:
            what = f"a batch has room for {limit / lengths[-1]:.0f} clips: the longest one has length {lengths[-1]:g}"
        if what:
            remedy = "give max_batch_length in the unit of the lengths (of length_func; by default, the manifest's durations)"
            where = f"{split} DynamicBatchSampler"
            yield Finding("warning", "dynamic-batch-limit", f"{what}, and max_batch_length is {limit:g}", where, remedy)


def _signals(clips):
    """The files of each item that names several, by set and id, and by their keys in the manifest."""
    files = defaultdict(dict)
    for path in clips.of_sets(clips.headers):
        for use in clips.uses[path]:
            files[use.items.split, use.items.name(use.i)][".".join(use.source.keys)] = path
    return {item: paths for item, paths in files.items() if len(paths) > 1}


def signals(seen):
    """Yield what is wrong with items that have several signals."""
    files = _signals(seen.clips)
    yield from _unlike(seen.clips, files)
    yield from _equal(seen.clips, files)


def _unlike(clips, files):
    """Items whose signals differ in length, if those of most other items do not: the model may compare them."""
    odd = [item for item, paths in files.items() if len({clips.headers[path].frames for path in paths.values()}) > 1]
    if not 0 < len(odd) <= 0.1 * len(files):
        return

    def lengths(item):
        tensors = clips.make(next(iter(files[item].values()))).tensors or {}
        return {key: len(tensor) for key, tensor in tensors.items() if tensor.dim() == 1}

    usual, other = lengths(min(files.keys() - odd)), lengths(odd[0])
    alike = {key: other.get(key, 0) for key, length in usual.items() if [*usual.values()].count(length) > 1}
    if len({*alike.values()}) > 1:  # else, the pipeline cuts them
        sizes = ", ".join(f"{key} {length}" for key, length in alike.items())
        what = f"{len(odd)} of {len(files)} items have signals that differ in length: {sizes} samples"
        remedy = "cut them to the same length, or remove these items"
        yield Finding("warning", "signals-unlike", what, some(map(" ".join, odd)), remedy)


def _equal(clips, files):
    """Sets in which two keys of each item give the same signal."""

    def content(path):
        look = clips.looks.get(path)
        return (look.frames, look.fingerprint) if look and look.low < look.high else os.path.realpath(path)

    for split in ("train", "valid"):
        items = [paths for (name, _), paths in files.items() if name == split]
        for keys in combinations(items[0] if len(items) >= FEWEST else (), 2):
            if all({*keys} <= paths.keys() and len({content(paths[key]) for key in keys}) == 1 for paths in items):
                made = (clips.make(items[0][keys[0]]).tensors or {}).values()
                made = [tensor for tensor in made if tensor.is_floating_point()]
                if any(torch.equal(*pair) for pair in combinations(made, 2)):  # else, it takes different parts of a file
                    what = f"{' and '.join(keys)} have the same signal in all {len(items)} items"
                    yield Finding("warning", "signals-equal", what, split, "check which files the two keys name")


def copied(seen):
    """Yield generators that items draw from, that loader workers copy, and that nothing seeds."""
    loader = unwrapped(seen.start.train_loader)
    if not isinstance(loader, DataLoader) or loader.worker_init_fn is not None or not hasattr(os, "fork"):
        return
    workers, held = loader.num_workers, _generators(loader.dataset) if loader.num_workers else {}
    if not held or (workers == 1 and loader.persistent_workers):
        return

    def drawn():
        """The generators that two evaluations of an item change, each time."""
        states = []
        for _ in range(3):
            states.append([pickle.dumps(getattr(one, "get_state", one.__reduce__)()) for one in held.values()])
            loader.dataset[0]
        return [name for name, *three in zip(held, *states) if len(set(three)) == 3]  # else it is seeded for each item

    with suppress(Exception):  # of an item, which other checks report
        names = in_child(drawn, SECONDS)
        if names:
            epochs = "" if loader.persistent_workers else " and each epoch"
            what = f"each of the {workers} workers{epochs} starts with a copy of it, and so draws the same numbers"
            remedy = "use the generators of torch, random or np.random, which workers seed, or seed it in worker_init_fn"
            yield Finding("warning", "generator-copied", what, f"train {some(names)}", remedy)


def _generators(dataset):
    """The random generators that a dataset and the functions of its pipeline refer to, by name."""
    functions = [item.func for item in getattr(getattr(dataset, "pipeline", None), "dynamic_items", ())]
    names, known = {**getattr(dataset, "__dict__", {})}, (np.random.mtrand._rand, random._inst, torch.default_generator)
    for function in (type(dataset).__getitem__, *functions):
        function = getattr(function, "func", function)  # of a partial
        names |= getattr(getattr(function, "__self__", None), "__dict__", {})
        with suppress(TypeError):  # of what is not a function of Python
            found = inspect.getclosurevars(getattr(function, "__func__", function))
            names = {**dict.fromkeys(found.unbound), **names, **found.globals, **found.nonlocals}
    if "get_worker_info" in names:  # it knows that it is in a worker
        return {}
    return {name: value for name, value in names.items() if isinstance(value, GENERATORS) and value not in known}


RULES = (shifted, no_batch, batch_of_one, without_dimension, dynamic, signals, copied)
