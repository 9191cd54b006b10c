"""Evaluates all output keys that read no audio, once for items that have the same values in the manifest."""

import numbers
import random
import time
import traceback
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.preflight.observe.items import ENCODER, Items
from tqdm import tqdm

AT_LEAST = 0.25  # seconds to spend on items, even if fewer are spent on audio


class Unknown(NamedTuple):
    """Replaces a label that the label encoder does not know."""

    label: object


class Column(NamedTuple):
    """The values of a key."""

    items: Items
    key: str
    takes: list  # the keys of the manifest that it is made from
    # By item: int, tuple of int, float for a tensor of floats that all have this value, Unknown, or None for others.
    values: list
    encoders: list  # the label encoders that make it
    tokenizers: list

    @property
    def complete(self):
        """bool: Whether there is a label for each item."""
        return all(isinstance(value, int) for value in self.values)

    @property
    def where(self):
        """str: The set and the key."""
        return f"{self.items.split} {self.key}"

    def say(self, i):
        """Return the manifest's values that an item's label is made from, as text."""
        static = self.items.static(i)
        return " ".join(str(static[key])[:40] for key in self.takes if key != "id" or len(self.takes) == 1) or str(static["id"])


class Failure(NamedTuple):
    """Items that cannot be evaluated."""

    items: Items
    ids: dict  # their ids
    lacks: str | None  # the key that they lack, or else
    error: Exception | None  # the exception of the first one


def evaluated(given, log):
    """Evaluate the keys of all items, or of as many as there is time for: Columns by set and key of the batch, and Failures."""
    columns, failures, counts = {}, {}, {}
    sets = {split: items for split, items in given.sets.items() if items.pipeline is not None}
    groups = [(items, *group) for items in sets.values() for group in _groups(items).items()]
    left, end = sum(len(items) for items, *_ in groups), time.monotonic() + max(given.scan_seconds / 2, AT_LEAST)
    for items in sets.values():
        _note_lacking(items, failures)
    with tqdm(total=left, desc="items", unit="value", disable=None, leave=False, delay=1) as bar:
        for items, takes, mapping in groups:
            now = time.monotonic()
            deadline = now + (end - now) * len(items) / left
            left -= len(items)
            values, count = _evaluate_all(items, takes, mapping, deadline, failures, bar)
            counts[items.split] = min(count, counts.get(items.split, count))
            for outer, key in mapping.items():
                columns[items.split, outer] = Column(items, key, takes, values[outer], *_makers(items, outer))
    some = [f"{count} of {len(sets[split])} items ({split})" for split, count in counts.items() if count < len(sets[split])]
    if some:
        log.said.append(f"There was only time to evaluate {' and '.join(some)}.")
    return columns, [*failures.values()]


def _note_lacking(items, failures):
    """Note the items that lack a key that the pipeline takes."""
    needed = set(items.needed())
    for i in range(len(items)):
        static = items.static(i)
        for key in needed - static.keys():
            failures.setdefault((items.split, key), Failure(items, {}, key, None)).ids[static["id"]] = None


def _groups(items):
    """The output keys that read no audio, and their names in the pipeline, by the values of the manifest that they take."""
    found = {}
    for outer, key in items.pipeline.output_mapping.items():
        if key != "id" and not any(watch.opened for watch in items.probes[outer]):
            found.setdefault(tuple(sorted(items.needed([key]))), {})[outer] = key
    return found


def _makers(items, outer):
    """The label encoders and the tokenizers that make a key."""
    for name in ("encoders", "tokenizers"):
        yield [*{id(maker): maker for watch in items.probes[outer] for maker in getattr(watch, name)}.values()]


def _evaluate_all(items, takes, mapping, deadline, failures, bar):
    """Evaluate keys that take the same values: their values by key of the batch, and how many items there was time for."""
    values, known, count = {outer: [None] * len(items) for outer in mapping}, {}, 0
    order = random.Random(0).sample(range(len(items)), len(items))  # so that those that there is time for are a random sample
    with items.providing(mapping):
        for i in order:
            count += 1
            static = items.static(i)
            made_of = tuple(static.get(name) for name in takes)
            try:
                found = known.get(made_of)
            except TypeError:  # unhashable, for example a list
                found, made_of = None, None
            if found is None and static.keys() >= set(takes):
                found = _evaluate(items, i, mapping, failures)
                if made_of and "id" not in takes:
                    known[made_of] = found
            one, sites = found or ({}, ())
            for outer, value in one.items():
                values[outer][i] = value
            for site in sites:
                failures[site].ids[static["id"]] = None
            bar.update()
            if time.monotonic() > deadline:
                break
    return values, count


def _evaluate(items, i, mapping, failures):
    """The values of some keys of an item by key of the batch, and where in ``failures`` their exceptions are."""
    try:
        return {outer: _plain(value) for outer, value in items.evaluate(i).items()}, ()
    except Exception as error:
        if len(mapping) > 1:
            found = []
            for outer, key in mapping.items():
                with items.providing({outer: key}):
                    found.append(_evaluate(items, i, {outer: key}, failures))
            return {k: value for one, _ in found for k, value in one.items()}, {site for _, sites in found for site in sites}
        frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
        if frame.f_globals.get("__name__") == ENCODER:  # the checks of labels report it
            unknown = isinstance(error, KeyError) and "label" in frame.f_locals
            return {outer: Unknown(frame.f_locals["label"]) for outer in mapping if unknown}, ()
        site = items.split, frame.f_code, line
        failures.setdefault(site, Failure(items, {}, None, error))
        return {}, (site,)


def _plain(value):
    """A value of a Column."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.shape.count(1) == len(value.shape):
        value = value.item()
    if isinstance(value, (torch.Tensor, np.ndarray)) and len(value.shape) == 1:
        if "int" in str(value.dtype):
            return tuple(value.tolist())
        real = isinstance(value, torch.Tensor) and not value.is_complex() and len(value)
        return float(value[0]) if real and (value == value[0]).all() else None
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
