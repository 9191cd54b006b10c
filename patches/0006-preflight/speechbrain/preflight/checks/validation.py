"""Checks what validation measures."""

import math

from speechbrain.preflight.checks.batches import plain_batches
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.quiet import IDLE
from speechbrain.preflight.report import Finding, some
from speechbrain.processing.features import InputNormalization

FEW = 0.05  # the share of items below which it hardly matters that they are left out

CODES = {
    "validation-in-training-mode": "modules with dropout or running statistics are in training mode in validation",
    "validation-random": "the same validation batch has another loss under another seed",
    "validation-loss": "the validation loss is 0, NaN or infinite, although the training loss is not",
    "processes-apart": "under torchrun, some processes wait in on_fit_batch_end or on_stage_end where the others do not come",
    "validation-drops-items": "the validation loader drops its last batch, because it is smaller than the others",
}


def in_training_mode(seen):
    """Yield modules that are in training mode during validation."""
    valid, brain = seen.valid, seen.given.brain
    modules = [module for name, module in parts(brain) if name in valid.training]
    remedy = "add it to the Brain's modules, which fit() puts into evaluation mode, or do not call it in validation"
    if valid.trains or {*modules} & {*brain.modules.modules()}:
        remedy = "fit() puts the Brain's modules into evaluation mode: call train() only if stage is TRAIN"
    if modules:
        what = f"the first validation batch runs with {some(valid.training)} in training mode"
        what += ": its loss is {:.4g} under one seed and {:.4g} under another".format(*valid.losses) if valid.random else ""
        meant = valid.sampled or all(isinstance(module, InputNormalization) for module in modules)  # which only learns
        level, remedy = ("note", f"if this is not meant, {remedy}") if meant else ("warning", remedy)
        yield Finding(level, "validation-in-training-mode", what, valid.trains or type(brain).__name__, remedy)


def is_random(seen):
    """Yield a validation loss that depends on the seed because of dropout or augmentation."""
    level, does, causes = "warning", "dropout is active in", seen.valid.dropouts
    remedy = "pass training=self.training in one of the Brain's modules, or call it only if stage is TRAIN"
    if not causes:  # noise may be part of the task
        level, does, causes = "note", "validation calls an augmentation in", seen.valid.augments
        remedy = "call it only if stage is TRAIN, unless the task needs it"
    # Without a cause, the model may sample on purpose, as a VAE does.
    if seen.valid.random and causes and not seen.valid.training:
        losses = "{:.4g} under one seed and {:.4g} under another".format(*seen.valid.losses)
        what = f"{does} {some(causes)}: the same batch has a loss of {losses}"
        yield Finding(level, "validation-random", what, type(seen.given.brain).__name__, remedy)


def loss(seen):
    """Yield a validation loss that says nothing."""
    values, where = seen.valid.losses, f"{type(seen.given.brain).__name__}.evaluate_batch"
    if values and not math.isfinite(values[0]):
        what = f"the loss of the first validation batch is {values[0]}, although that of the first training batch is finite"
        remedy = "check the items of this batch, and what the script does differently in validation"
        yield Finding("warning", "validation-loss", what, where, remedy)
    elif values and not any(values) and any(backward.value for backward in seen.step.backwards):
        remedy = "return the loss in validation, too, or choose checkpoints by another value"
        yield Finding("note", "validation-loss", "the loss of the first validation batch is exactly 0", where, remedy)


def drops_items(seen):
    """Yield a validation loader that leaves items out."""
    batches = plain_batches(seen.start.valid_loader)
    if batches is None or not batches.drop_last:
        return
    items = len(batches.sampler)
    dropped = items % batches.batch_size
    if 0 < dropped < items:
        level = "warning" if dropped > items * FEW else "note"
        what = f"validation leaves out {dropped} of {items} items, because drop_last is True"
        yield Finding(level, "validation-drops-items", what, "valid", "remove drop_last from valid_loader_kwargs")


def apart(seen):
    """Yield a save, or another point, at which some processes wait for the others in vain."""
    ranks = {}
    for rank, point in enumerate(seen.valid.apart):
        ranks.setdefault(point, []).append(str(rank))
    waits = [(name, line) for name, line in ranks if line]
    if waits and len(ranks) > 1 and all(name for name, _ in ranks):
        places = [f"rank {', '.join(ranks[name, line])} {f'in {name} ({line})' if line else name}" for name, line in ranks]
        what = f"training hangs or crashes, because the processes wait for one another in different places: {'; '.join(places)}"
        saves = " (the Checkpointer itself writes only on the main one)" * (waits[0][0] in IDLE)
        remedy = f"let all processes call {waits[0][0]}, not only some{saves}"
        yield Finding("error", "processes-apart", what, waits[0][1], remedy)


RULES = (in_training_mode, is_random, loss, drops_items, apart)
