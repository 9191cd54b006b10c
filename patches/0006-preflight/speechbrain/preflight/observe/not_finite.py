"""Finds out where a loss that is NaN comes from: from the batch, or from which module."""

import math
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from speechbrain.preflight.observe.given import hooked, ids_of, parts


class Origin(NamedTuple):
    """Where NaN appears first: the module's name, whether it has it in its output or in its input, and whether it augments."""

    module: str
    within: bool
    augments: bool


def tensors(value, every=False):
    """Yield the tensors of floating-point values, or ``every`` one, inside a value, with the keys that lead to them."""
    if isinstance(value, torch.Tensor):
        if (every or value.is_floating_point()) and not value.is_sparse:
            yield (), value
        return
    if not isinstance(value, (Mapping, list, tuple)) or hasattr(value, "_fields"):
        value = getattr(value, "__dict__", None) or getattr(value, "_asdict", dict)()
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, (torch.Tensor, Mapping, list, tuple)):
            yield from (((str(key), *keys), tensor) for keys, tensor in tensors(inner, every))


def spoiled_items(batch):
    """Find the items of a batch that are not finite: by key, their ids or numbers."""
    found, ids = {}, ids_of(batch)
    for keys, tensor in tensors(batch):
        bad = (~tensor.isfinite()).nonzero()[:, :1].unique().tolist() if not tensor.isfinite().all() else ()
        if bad:
            names = ids if len(ids) == len(tensor) else range(len(tensor))
            found[keys[0] if keys else "batch"] = [str(names[i]) for i in bad]
    return found


@contextmanager
def watched_modules(brain):
    """Record which modules get or return NaN while this context lasts, without waiting for the device."""
    seen, inside = (
        [],
        [],
    )  # by value: the module that made it (None: the Brain), the one that gets it, sums of its tensors

    def before(module, arguments):
        seen.append((inside[-1] if inside else None, module, _sums(arguments)))
        inside.append(module)

    def after(module, arguments, output):
        inside.pop()
        seen.append((module, None, _sums(output)))

    with hooked(brain, before, after):
        yield seen


def first_nan(brain, seen):
    """Find where NaN appears first; None if no module gets or returns NaN."""
    for module, follower, sums in seen:
        if any(math.isnan(float(one)) for one in sums):
            augments = type(module).__module__.startswith("speechbrain.augment")
            return Origin(_name(brain, follower if module is None else module), module is not None, augments)
    return None


def _sums(value):
    """The sums of all tensors: one is NaN if the tensor has NaN."""
    with suppress(Exception):  # of an unusual type, which must not stop the module
        return [tensor.detach().sum() for _, tensor in tensors([value])]  # faster than to look for NaN
    return []


def _name(brain, module):
    names = [name for name, part in parts(brain) if part is module]
    return names[0] if names else type(module).__name__
