"""Reads the weights before training."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd

# The attributes in which normalizations (BatchNorm, InputNormalization, GlobalNorm) keep their running statistics, and those in
# which they count the batches or items behind them.
STATISTICS = ("running_mean", "running_var", "running_std", "glob_mean", "glob_std")
COUNTS = ("num_batches_tracked", "weight", "count")

LARGEST, SMALLEST = 30.0, 1e-3

SAMPLE = 1024


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer before the first step."""

    name: str  # its name in the Brain's modules
    tensor: Any  # the parameter or buffer itself
    fan_in: int = 0  # the number of inputs of a unit; 0 if it is not a weight of a Linear, Conv or RNN layer
    # The number of gates whose units the rows of the weight belong to: 4 for an LSTM; 0 if its rows are not units.
    gates: int = 1
    norm: float = 0.0  # its norm

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
        return float(values.double().std(correction=0)) * root


def look(modules):
    """Read all parameters and buffers of floating-point values once."""
    plain = ((f"{name}.{key}", vars(module).get(key)) for name, module in modules.named_modules() for key in STATISTICS)
    plain = ((name, value) for name, value in plain if isinstance(value, torch.Tensor))  # statistics that are not buffers
    tensors = [*modules.named_parameters(), *modules.named_buffers(), *plain]
    tensors = {id(tensor): (name, tensor) for name, tensor in tensors if _readable(tensor)}
    shapes, norms, by_device = {}, {}, {}
    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in tensors and name.startswith("weight"):
                shapes[id(parameter)] = _shape_of_layer(module, parameter)
    for key, (_, tensor) in tensors.items():
        by_device.setdefault(tensor.device, {})[key] = torch.linalg.vector_norm(tensor.detach()).float()
    for found in by_device.values():  # so that each device is waited for only once
        norms.update(zip(found, torch.stack([*found.values()]).tolist()))
    for key, (_, tensor) in tensors.items():
        if not math.isfinite(norms[key]):  # which may be an overflow
            norms[key] = float(torch.linalg.vector_norm(tensor.detach().cpu().double()))
    return [Weight(*tensors[key], *shapes.get(key, (0, 1)), norms[key]) for key in tensors]


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


def identical_units(found):
    """Find out, for each layer whose values are all equal, whether all its units got the same gradient in a backward pass."""
    layers = [weight for weight in found if weight.fan_in and weight.tensor.grad is not None]
    layers = [weight for weight in layers if not weight.tensor.grad.is_sparse]
    # A gradient of 0 counts only if all layers get it: a layer of zeros after this one may change, and with it this gradient.
    stuck = not any(weight.tensor.grad.any() for weight in layers)
    identical = {}
    for weight in layers:
        if weight.gates and weight.constant:
            gradient = weight.tensor.grad.detach()
            units = gradient.reshape(weight.gates, -1, gradient[0].numel())
            largest = gradient.abs().max()
            if units.shape[1] > 1 and (largest > 0 or stuck):
                identical[weight.name] = bool((units - units[:, :1]).abs().max() <= 1e-4 * largest)
    return identical
