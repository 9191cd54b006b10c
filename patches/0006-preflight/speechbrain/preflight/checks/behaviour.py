"""Checks what real steps do to the model, and what it makes of an item alone and in a batch."""

from statistics import median

import torch
from speechbrain.core import Brain
from speechbrain.preflight.observe.asked import still_falls
from speechbrain.preflight.report import Finding, some

CODES = {
    "real-step-failed": "a step in which the optimizers change the weights raised an exception",
    "nothing-changes": "a step of the optimizers changes no parameter",
    "frozen-changes": "an optimizer changes parameters that are frozen",
    "update-too-large": "a step changes most weights by more than their own size",
    "gradients-not-cleared": "a step uses gradients that include those of the batch before",
    "not-finite-after-step": "after a step, parameters are NaN or infinite",
    "memory-grows": "something keeps the graph of each step, so memory grows until it runs out",
    "input-unused": "an input of the model has no effect on the outputs and on the loss",
    "cannot-overfit": "--overfit does not bring the loss of the first batch to a tenth, and it does not fall any more",
    "out-of-memory": "a step on the longest batch runs out of memory (--longest)",
    "depends-on-batch": "the output of an item depends on the other items of its batch, or on its padding",
}

TINY = 1e-6  # a learning rate with which a warm-up may begin


def _names(seen, keys):
    names = seen.training.names
    return some(names[key] for key in (sorted(keys, key=names.get) if isinstance(keys, set) else keys))


def _where(seen):
    return ", ".join(seen.step.optimizers)


def nothing_changes(seen):
    """Yield steps after which all parameters are the same."""
    made, brain = seen.behaviour, seen.given.brain
    if not made.losses or not seen.training.fits or any(c.by or not c.finite for c in made.changes.values()):
        return
    if brain.scaler.is_enabled() or not all(rate > TINY for rate in made.rates) or _not_finite(seen):
        return
    what, level = "", "error"
    if made.gradient:
        what = f"the optimizers step with gradients (learning rate {max(made.rates):.3g}), but all parameters stay the same"
        remedy = "raise the learning rate, keep the weights in float32, and look for code that restores them"
    elif made.rates and any(p.grad is not None and p.grad.any() for p in seen.step.reached.values()):
        what = "the optimizers step without a gradient, although backward() gave one"
        remedy = "call zero_grad() before backward() or after step(), not between them"
    elif not made.rates and not seen.step.custom and type(brain).freeze_optimizers is Brain.freeze_optimizers:
        what, level = "fit_batch ends without a step of an optimizer", "warning"
        remedy = "call the step() of each optimizer in optimizers_step"
    if what:
        yield Finding(level, "nothing-changes", what, _where(seen), remedy)


def frozen(seen):
    """Yield frozen parameters that an optimizer changes."""
    moved = {key for key in seen.behaviour.frozen if key in seen.behaviour.changes and seen.behaviour.changes[key].by}
    if moved:
        what = f"its step changes frozen parameters, because they have an old gradient: {_names(seen, moved)}"
        remedy = "set their gradients to None when you freeze them, or leave them out of the optimizer"
        yield Finding("warning", "frozen-changes", what, _where(seen), remedy)


def not_cleared(seen):
    """Yield gradients of earlier batches that a step uses again."""
    stale = seen.behaviour.stale
    if stale:
        what = f"a step also uses the gradients of the batch before, because nothing clears them: {_names(seen, stale)}"
        remedy = "call zero_grad() before backward() or after step()"
        yield Finding("error", "gradients-not-cleared", what, _where(seen), remedy)


def too_large(seen):
    """Yield a step that replaces the weights rather than changes them."""
    owned = seen.training.owned
    changes = {key: c for key, c in seen.behaviour.changes.items() if key in owned and owned[key].dim() > 1}
    changes = {key: c for key, c in changes.items() if c.by and c.finite and c.size > 1e-3 * owned[key].numel() ** 0.5}
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in seen.step.optimizers.values()):
        return  # its step is many
    large = sorted((key for key, c in changes.items() if c.by > c.size), key=lambda key: -changes[key].by / changes[key].size)
    if len(large) > len(changes) / 2:
        times = changes[large[0]].by / changes[large[0]].size
        what = f"one step changes {len(large)} of {len(changes)} weights by at least their own size, up to {times:.3g} times"
        rates = "/".join(f"{rate:.3g}" for rate in sorted(set(seen.behaviour.rates)))
        remedy = f"lower the learning rate (now {rates}), the weight decay, or the scale of the loss"
        yield Finding("warning", "update-too-large", f"{what}: {_names(seen, large)}", _where(seen), remedy)


def _not_finite(seen):
    """The ids of the parameters that are not finite after a step, or that have a gradient that is not."""
    broken = [key for key, change in seen.behaviour.changes.items() if not change.finite]
    gradients = {key: p.grad for key, p in seen.step.reached.items() if p.grad is not None and not p.grad.is_sparse}
    return broken or [key for key, gradient in gradients.items() if not gradient.isfinite().all()]


def not_finite(seen):
    """Yield parameters that are not finite after a step."""
    losses, brain, broken = seen.behaviour.losses, seen.given.brain, _not_finite(seen)
    if broken and losses and not brain.scaler.is_enabled():
        skipped = brain.skip_nonfinite_grads or getattr(brain, "only_finite_steps", False)
        effect = "so the step is skipped" if skipped else "so one step makes the weights NaN or infinite"
        what = f"the loss is {losses[0]:.3g}, but the gradients of {len(broken)} parameters are NaN or infinite, {effect}"
        remedy = "find the operation with torch.autograd.detect_anomaly(): often a square root or a division of 0"
        level = "warning" if skipped else "error"
        yield Finding(level, "not-finite-after-step", f"{what}: {_names(seen, broken)}", _where(seen), remedy)


def memory(seen):
    """Yield what keeps the graph of each step."""
    kept = sorted(seen.behaviour.kept)
    kept = [name for name in kept if not name.startswith("self._")] or kept  # what is private is of less help
    if kept:
        what = f"{some(kept) if kept[0] else 'something outside of the Brain'} keeps the graph of each step"
        what += ", so memory grows until it is emptied"
        remedy = "keep loss.item(), or the detach() of a tensor, instead of the tensor"
        yield Finding("warning", "memory-grows", what, kept[0] or type(seen.given.brain).__name__, remedy)


def unused(seen):
    """Yield inputs that have no effect."""
    for (name, *_), items, loss, taken in seen.behaviour.unused:
        key = f"batch[{name}]" if name.isdigit() else f"batch.{name}"
        what = f"{key} has no effect: with other values, the outputs and the loss ({loss:.4g}) of {items} items are the same"
        remedy = "look for where it gets lost: overwritten, multiplied by 0, not passed on, or in a layer that gives only zeros"
        level, remedy = ("warning", remedy) if taken else ("note", f"unless it is only for metrics, {remedy}")
        yield Finding(level, "input-unused", what, f"{type(seen.given.brain).__name__}.compute_forward", remedy)


def depends(seen):
    """Yield an output of an item that depends on what else is in the batch."""
    found = seen.behaviour.differs
    if found is None:
        return
    where = found.module or f"output {found.output} of {type(seen.given.brain).__name__}.compute_forward"
    if found.neighbours:
        what = f"the output of an item changes by {found.share:.0%} if another item of the same length is in its batch"
        remedy = "look for a reshape() instead of a transpose(); normalize each item by itself, or with running statistics"
    else:
        what = f"the output of an item changes by {found.share:.0%} with more padding: to three times its length, not twice"
        what += f"; the lengths of {found.lengths} have no effect" if found.lengths else ""
        remedy = "pass the lengths to each module that pools, normalizes or attends over time, or batch clips of one length"
    yield Finding("note", "depends-on-batch", what, where, remedy)


def overfit(seen):
    """Yield a model that does not learn one batch."""
    losses = seen.asked.losses
    if losses and losses[0] > 0 and not min(losses) <= losses[0] / 10 and not still_falls(losses):
        what = f"the loss of the first batch goes from {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps"
        remedy = "try more steps, another learning rate or no augmentation; then check the labels"
        if not median(losses[len(losses) // 2 :]) < 0.95 * losses[0]:
            remedy = "check that each label belongs to its clip and that the loss gets it; then try a larger learning rate"
        yield Finding("warning", "cannot-overfit", what, type(seen.given.brain).__name__, remedy)


def out_of_memory(seen):
    """Yield a longest batch that does not fit into memory."""
    if seen.asked.failed:
        what = f"a step on the longest batch ({seen.asked.longest}) runs out of memory\n{seen.asked.failed}"
        remedy = "make batches smaller, leave out the longest clips, or batch by length with DynamicBatchSampler"
        yield Finding("error", "out-of-memory", what, "train_loader_kwargs", remedy)


RULES = (nothing_changes, frozen, not_cleared, too_large, not_finite, memory, unused, depends, overfit, out_of_memory)
