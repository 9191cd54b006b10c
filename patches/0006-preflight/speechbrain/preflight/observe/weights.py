"""Checks that the weights before training are finite, of a usual scale, and not all equal."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from speechbrain.preflight.report import Finding
from torch.nn.modules.conv import _ConvNd

CODES = {
    "weight-not-finite": "a parameter contains NaN or Inf before the first step",
    "buffer-not-finite": "a buffer contains NaN, or running statistics contain Inf, before the first step",
    "weight-scale": "std * sqrt(fan_in) of a Linear, Conv or RNN weight is above 30 or below 1e-3; healthy ones are near 1",
    "units-identical": "all values of a layer's weight are equal and all its units get the same gradient, so they never differ",
}

# The attributes in which normalizations (BatchNorm, InputNormalization, GlobalNorm) keep their running statistics, and those in
# which they count the batches or items behind them.
STATISTICS = ("running_mean", "running_var", "running_std", "glob_mean", "glob_std")
COUNTS = ("num_batches_tracked", "weight", "count")

LARGEST, SMALLEST = 30.0, 1e-3

SAMPLE = 1024


@dataclass
class Weight:
    """A parameter or buffer before the first step.

    Attributes
    ----------
    name : str
        Its name in the Brain's modules.
    tensor : torch.Tensor
        The parameter or buffer itself.
    fan_in : int
        The number of inputs of a unit; 0 if it is not a weight of a Linear, Conv or RNN layer.
    gates : int
        The number of gates whose units the rows of the weight belong to: 4 for an LSTM; 0 if its rows are not units.
    norm : float
        Its norm.
    identical : bool
        Whether all its values are equal, and all its units got the same gradient.
    """

    name: str
    tensor: Any
    fan_in: int = 0
    gates: int = 1
    norm: float = 0.0
    identical: bool = False

    @property
    def constant(self):
        """bool: Whether all its values are equal."""
        values = self.tensor.detach().flatten()
        return bool((values[:SAMPLE] == values[0]).all()) and bool((values == values[0]).all())

    @property
    def scale(self):
        """float: std * sqrt(fan_in), the scale of the layer's outputs for inputs of standard deviation 1."""
        root = math.sqrt(self.fan_in)
        values = self.tensor.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLE)].float()
        rough = self.norm / math.sqrt(len(values)) * root
        if rough <= LARGEST and sample.std(correction=0) * root >= SMALLEST:
            return rough
        return float(values.float().std(correction=0)) * root


def look(modules):
    """Read all parameters and buffers once.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The Brain's modules.

    Returns
    -------
    list of Weight
        One for each tensor of floating-point values.

    Example
    -------
    >>> [(weight.name, weight.fan_in) for weight in look(torch.nn.ModuleDict({"head": torch.nn.Linear(3, 2)}))]
    [('head.weight', 3), ('head.bias', 0)]
    """
    plain = [
        (f"{name}.{key}", module.__dict__[key])  # of normalizations that keep their statistics outside their buffers
        for name, module in modules.named_modules()
        for key in STATISTICS
        if isinstance(module.__dict__.get(key), torch.Tensor)
    ]
    tensors = [*modules.named_parameters(), *modules.named_buffers(), *plain]
    found = [Weight(name, tensor) for name, tensor in tensors if _readable(tensor)]
    by_id = {id(weight.tensor): weight for weight in found}
    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in by_id and name.startswith("weight"):
                by_id[id(parameter)].fan_in, by_id[id(parameter)].gates = _shape_of_layer(module, parameter)
    by_device = {}
    for weight in found:
        by_device.setdefault(weight.tensor.device, []).append(weight)
    for weights in by_device.values():  # so that each device is waited for only once
        norms = torch.stack([torch.linalg.vector_norm(weight.tensor.detach()).float() for weight in weights])
        for weight, norm in zip(weights, norms.tolist()):
            weight.norm = norm
    return found


def _readable(tensor):
    lazy = torch.nn.parameter.is_lazy(tensor)
    return not lazy and not tensor.is_meta and tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() > 0


def _shape_of_layer(module, weight):
    """The fan-in as torch counts it (0 to skip the scale check) and the number of gates (0 if the rows are not units)."""
    if isinstance(module, torch.nn.Linear):
        return weight.shape[1], 1
    if isinstance(module, _ConvNd):
        if module.in_channels == 1 and not weight.requires_grad:  # a fixed transform, such as Fourier's
            return 0, 1
        return weight.shape[1] * math.prod(module.kernel_size), 0 if module.transposed else 1
    if isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)) and weight.dim() == 2:
        return weight.shape[1], weight.shape[0] // module.hidden_size
    return 0, 1


def look_at_gradients(found):
    """Record, after a backward pass, which layers have identical units.

    Arguments
    ---------
    found : list of Weight
        The result of :func:`look`; ``identical`` is set in it.
    """
    for weight in found:
        gradient = weight.tensor.grad
        if not weight.fan_in or not weight.gates or gradient is None or gradient.is_sparse or not weight.constant:
            continue
        units = gradient.detach().reshape(weight.gates, -1, gradient[0].numel())
        largest = gradient.abs().max()
        if units.shape[1] > 1 and largest > 0:
            weight.identical = bool((units - units[:, :1]).abs().max() <= 1e-4 * largest)


def check(seen):
    """Yield what is wrong with the weights."""
    parameters = {id(parameter) for parameter in seen.modules.parameters()}
    for weight in seen.weights:
        if not math.isfinite(weight.norm):
            yield from _not_finite(weight, id(weight.tensor) in parameters)
        elif weight.identical:
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
