"""Checks the weights before training, and that the running statistics of frozen and loaded modules stay the same."""

import math

import torch
from speechbrain.preflight.observe.weights import LARGEST, SMALLEST, STATISTICS
from speechbrain.preflight.report import Finding, some

CODES = {
    "weight-not-finite": "a parameter contains NaN or Inf before the first step",
    "buffer-not-finite": "a buffer contains NaN, or running statistics contain Inf, before the first step",
    "weight-scale": "std * sqrt(fan_in) of a Linear, Conv or RNN weight is above 30 or below 1e-3; healthy ones are near 1",
    "units-identical": "all values of a layer's weight are equal and all its units get the same gradient, so they never differ",
    "frozen-statistics-move": "training updates the running statistics of BatchNorms whose weights are frozen",
    "loaded-normaliser-moves": "training updates the statistics of a normalization module that was loaded from a file",
}

BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm
CHECK = "check its initialization, or the checkpoint that it comes from"


def weights(seen):
    """Yield what is wrong with the weights."""
    parameters = {id(parameter) for parameter in seen.given.modules.parameters()}
    for weight in seen.start.weights:
        if not math.isfinite(weight.norm):
            yield from _not_finite(weight, id(weight.tensor) in parameters)
        elif seen.step.identical.get(weight.name) and not any(backward.flat for backward in seen.step.backwards):
            what = f"all its values are {float(weight.tensor.detach().flatten()[0]):g}, and all units get the same gradient"
            yield Finding("error", "units-identical", what, weight.name, "initialize it with random values")
        elif weight.fan_in and not weight.constant and not SMALLEST <= weight.scale <= LARGEST:
            what = f"its std * sqrt(fan_in) is {weight.scale:.3g}; healthy layers have 0.03 to 3"
            yield Finding("warning", "weight-scale", what, weight.name, CHECK)


def _not_finite(weight, is_parameter):
    values = weight.tensor.detach()
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    what = " and ".join(f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count)
    what = f"{what} among {values.numel()} values"
    if is_parameter and (nan or inf):
        yield Finding("error", "weight-not-finite", what, weight.name, CHECK)
    elif nan or (inf and weight.name.rpartition(".")[2] in STATISTICS):  # Inf is normal in a mask
        remedy = "recompute it, or load an older checkpoint in which it is finite"
        yield Finding("error", "buffer-not-finite", what, weight.name, remedy)


def moving_statistics(seen):
    """Yield statistics that change although they should not: those of frozen BatchNorms for each of the Brain's modules."""
    modules, step, frozen = seen.given.modules, seen.step, {}
    loaded = {id(part) for item in seen.loaded.pretrained if isinstance(item, torch.nn.Module) for part in item.modules()}
    for name, module in modules.named_modules():
        top = name.partition(".")[0]
        if name in step.moved and isinstance(module, BATCH_NORM):
            parameters = list((module if module.affine else modules[top]).parameters())
            if parameters and all(id(p) in step.frozen and not p.requires_grad for p in parameters):
                frozen.setdefault(top, []).append(name)
        elif name in step.moved and id(module) in loaded:
            what = "its statistics were loaded from a file, but training keeps updating them"
            remedy = "call its eval() in compute_forward, or pass an epoch of at least its update_until_epoch"
            yield Finding("warning", "loaded-normaliser-moves", what, name, remedy)
    for top, names in frozen.items():
        what = f"training updates the running statistics of {len(names)} BatchNorm{'s' * (len(names) > 1)} with frozen weights"
        remedy = f"call self.modules.{top}.eval() in compute_forward, because fit() puts every module into training mode"
        where = names[0] if len(names) == 1 else f"{top} ({some(names, 1)})"
        yield Finding("warning", "frozen-statistics-move", what, where, remedy)


RULES = (weights, moving_statistics)
