"""Checks that each item that augmentation makes has the label of the item that it was made from."""

import math
import re

import torch
from speechbrain.preflight.observe.given import named, of_batch
from speechbrain.preflight.report import Finding

CODES = {
    "labels-not-repeated": "augmentation makes several items of each, but the script does not repeat their labels",
    "augmentation-fails": "the step fails in batches that are augmented, or only in batches that are not",
    "labels-in-another-order": "the script repeats labels item by item, but augmentation repeats the whole batch",
}


def _several(seen):
    """The first Augmenter that made several items of each in the first step, by name, and how many all of them made of one."""
    found = [(augmenter, after // before) for augmenter, before, after in seen.step.augmented if before and after > before]
    return named(seen.given, found[0][0]) if found else None, math.prod(times for _, times in found)


def not_repeated(seen):
    """Yield a first step that failed because there are more items than labels."""
    augmenter, times = _several(seen)
    if seen.step.taken or not augmenter or seen.start.batch is None:
        return
    items = seen.step.augmented[0][1]
    first, _, more = seen.step.error.partition("\n")
    call = next((call for call in seen.step.losses[-1:] if call.value is None), None)
    sizes = {len(tensor) for tensor in (call.input, call.target) if getattr(tensor, "shape", ())} if call else set()
    if sizes == {items, items * times} or {str(items), str(items * times)} <= {*re.findall(r"\b\d+\b", first)}:
        what = f"augmentation makes {items * times} items of {items}, but the script does not repeat all labels or lengths: "
        remedy = f"pass the labels and their lengths through {augmenter}.replicate_labels"
        yield Finding("error", "labels-not-repeated", f"{what}{first}\n{more}", augmenter, remedy)


def order(seen):
    """Yield targets that are repeated item by item."""
    augmenter, times = _several(seen)
    batch, mapping = seen.start.batch, getattr(getattr(seen.given.train_set, "pipeline", None), "output_mapping", None)
    keys = mapping or (range(len(batch)) if isinstance(batch, (list, tuple)) else ())
    for call in seen.step.calls if augmenter else ():
        target = call.target if call.ids is None else call.ids
        if call.name == "kl_div" and isinstance(target, torch.Tensor) and target.is_floating_point():
            target = target.argmax(-1)
        for key in keys if isinstance(target, torch.Tensor) else ():
            value = of_batch(batch, key)
            if value is None or not value.dim() or target.numel() != value.numel() * times:
                continue
            value, flat = value.cpu(), target.cpu().flatten().to(value.dtype)
            by_item, by_batch = value.repeat_interleave(times, 0).flatten(), torch.cat([value] * times).flatten()
            if torch.equal(flat, by_item) and not torch.equal(flat, by_batch):
                what = f"the targets of {call.name} are {key!r} with each item {times} times in a row, but augmentation makes "
                what += f"the whole batch {times} times, so items get the labels of others"
                remedy = f"repeat them with {augmenter}.replicate_labels, not with repeat_interleave"
                yield Finding("warning", "labels-in-another-order", what, f"train {key}", remedy)
                return


RULES = (not_repeated, order)
