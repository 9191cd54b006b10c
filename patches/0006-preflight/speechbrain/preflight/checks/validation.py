"""Checks what validation measures."""

import math

from speechbrain.preflight.observe.first_valid import same
from speechbrain.preflight.report import Finding, some
from torch.utils.data import BatchSampler

FEW = 0.05  # the share of items below which it hardly matters that they are left out

CODES = {
    "validation-random": "the same validation batch has another loss under another seed",
    "validation-loss": "the validation loss is 0, NaN or infinite, although the training loss is not",
    "validation-drops-items": "the validation loader drops the items of the last batch",
}


def is_random(seen):
    """Yield a validation loss that depends on the seed."""
    if len(seen.valid.losses) < 3:
        return
    one, other, again = seen.valid.losses
    if same(one, again) and not same(one, other):  # else, something moves that is not random
        where, causes = type(seen.given.brain).__name__, some(seen.valid.causes)
        what = f"the same batch has the loss {one:.4g} under one seed and {other:.4g} under another"
        if causes:
            what += f": in validation, dropout or augmentation is active in {causes}"
            remedy = "add the modules to the Brain's modules, which fit() puts into evaluation mode, or skip them in validation"
            yield Finding("warning", "validation-random", what, where, remedy)
        else:
            remedy = "seed what is drawn, so that the losses of two epochs can be compared"
            yield Finding("note", "validation-random", what, where, remedy)


def loss(seen):
    """Yield a validation loss that says nothing."""
    values, where = seen.valid.losses, f"{type(seen.given.brain).__name__}.evaluate_batch"
    if values and not math.isfinite(values[0]):
        what = f"the loss of the first validation batch is {values[0]}, although that of training is finite"
        yield Finding("warning", "validation-loss", what, where, "check the items of this batch, and what differs in validation")
    elif values and not any(values) and any(backward.value for backward in seen.step.backwards):
        level, what, remedy = "note", "the validation loss is exactly 0", "return the loss from compute_objectives"
        if seen.valid.chosen:
            level, what = "warning", f"{what}, and chooses the best checkpoint ({', '.join(seen.valid.chosen)})"
        yield Finding(level, "validation-loss", what, where, f"{remedy}, or choose by another key")


def drops_items(seen):
    """Yield a validation loader that leaves items out."""
    loader = getattr(seen.start.valid_loader, "loader", seen.start.valid_loader)
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler or not batches.drop_last:
        return
    items = len(batches.sampler)
    dropped = items % batches.batch_size
    if 0 < dropped < items:
        level = "warning" if dropped > items * FEW else "note"
        what = f"drop_last leaves out {dropped} of {items} items"
        yield Finding(level, "validation-drops-items", what, "valid", "remove drop_last from valid_loader_kwargs")


RULES = (is_random, loss, drops_items)
