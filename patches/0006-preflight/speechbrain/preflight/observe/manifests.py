"""Looks for items that cannot be evaluated: those that lack a key, or whose values raise an exception."""

import random
import time
import traceback
from contextlib import suppress
from typing import NamedTuple

from speechbrain.preflight.observe.items import ENCODER, Items, Watch

SECONDS = 5.0  # how long to evaluate the items of a set


class Failure(NamedTuple):
    """Items that cannot be evaluated: the set, their ids, the key that they lack, or else the exception of the first one."""

    items: Items
    ids: list
    lacks: str | None
    error: Exception | None


def failures(given, log):
    """Evaluate all keys of all items, except those that read audio."""
    found = []
    for split, dataset in (("train", given.train_set), ("valid", given.valid_set)):
        items = Items.of(split, dataset)
        if items is None or items.pipeline is None or not len(items):
            continue
        lacking = _lacking(items)
        found += [Failure(items, ids, key, None) for key, ids in lacking.items()]
        found += _failing(items, set().union(*lacking.values()), min(SECONDS, given.scan_seconds), log)
    return found


def _lacking(items):
    """By key that the pipeline takes, the ids of the items that lack it."""
    found, needed = {}, set(items.needed())
    for i in range(len(items)):
        static = items.static(i)
        for key in needed - static.keys():
            found.setdefault(key, []).append(static["id"])
    return found


def _failing(items, known, seconds, log):
    """The items whose evaluation raises an exception, grouped by the line of code that raises it."""
    keys = [key for key in items.pipeline.output_mapping.values() if not _reads_audio(items, key)]
    order = random.Random(0).sample(range(len(items)), len(items))
    found, end = {}, time.monotonic() + seconds
    with items.providing(keys):
        for number, i in enumerate(order if keys else ()):
            name = items.static(i)["id"]
            try:
                if name not in known:
                    items.evaluate(i)
            except Exception as error:
                frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
                if frame.f_globals.get("__name__") != ENCODER:  # which the checks of labels report
                    group = found.setdefault((frame.f_code, line), Failure(items, [], None, error))
                    group.ids.append(name)
            if time.monotonic() > end:
                log.said.append(f"Items ({items.split}): {number + 1} of {len(items)} were evaluated without their audio.")
                break
    return found.values()


def _reads_audio(items, key):
    """Whether evaluating a key opens an audio file; of two items, because one may be cached or fail."""
    with items.providing([key]):
        for i in {len(items) - 1, len(items) // 2}:
            with Watch() as watch, suppress(Exception):
                items.evaluate(i)
            if watch.opened:
                return True
    return False
