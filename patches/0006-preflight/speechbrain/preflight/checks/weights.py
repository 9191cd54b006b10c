"""Checks that the weights before training are finite, of a usual scale, and not all equal."""

import math

from speechbrain.preflight.observe.weights import LARGEST, SMALLEST, STATISTICS
from speechbrain.preflight.report import Finding

CODES = {
    "weight-not-finite": "a parameter contains NaN or Inf before the first step",
    "buffer-not-finite": "a buffer contains NaN, or running statistics contain Inf, before the first step",
    "weight-scale": "std * sqrt(fan_in) of a Linear, Conv or RNN weight is above 30 or below 1e-3; healthy ones are near 1",
    "units-identical": "all values of a layer's weight are equal and all its units get the same gradient, so they never differ",
}


def weights(seen):
    """Yield what is wrong with the weights."""
    parameters = {id(parameter) for parameter in seen.given.modules.parameters()}
    for weight in seen.start.weights:
        if not math.isfinite(weight.norm):
            yield from _not_finite(weight, id(weight.tensor) in parameters)
        elif seen.step.identical.get(weight.name) and not any(backward.flat for backward in seen.step.backwards):
            yield Finding(
                "error",
                "units-identical",
                f"all values are {float(weight.tensor.detach().flatten()[0]):g}, and all units get the same gradient",
                weight.name,
                "initialize it with random values",
            )
        elif weight.fan_in and not weight.constant and not SMALLEST <= weight.scale <= LARGEST:
            yield Finding(
                "warning",
                "weight-scale",
                f"std * sqrt(fan_in) is {weight.scale:.3g}; healthy layers have 0.03 to 3",
                weight.name,
                "check its initialization, or the checkpoint that it comes from",
            )


def _not_finite(weight, is_parameter):
    values = weight.tensor.detach()
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    what = " and ".join(f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count)
    if is_parameter and what:
        remedy = "check its initialization, or the checkpoint that it comes from"
        yield Finding("error", "weight-not-finite", f"{what} of {values.numel()} values", weight.name, remedy)
    elif nan or (inf and weight.name.rpartition(".")[2] in STATISTICS):  # Inf is normal in a mask
        remedy = "recompute it, or load an older checkpoint in which it is finite"
        yield Finding("error", "buffer-not-finite", f"{what} of {values.numel()} values", weight.name, remedy)


RULES = (weights,)
