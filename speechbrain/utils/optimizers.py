"""A parameter that has no shape yet no longer crashes (see PR_2537.md)."""

import torch
from torch.nn.parameter import is_lazy


def rm_vector_weight_decay(modules):
    decay = []
    no_decay = []
    for name, param in modules.named_parameters():
        if not param.requires_grad:
            continue
        if is_lazy(param):
            # No shape yet: biases and norms are vectors
            owner, _, leaf = name.rpartition(".")
            is_vector = leaf == "bias" or isinstance(
                modules.get_submodule(owner),
                torch.nn.modules.batchnorm._NormBase,
            )
        else:
            is_vector = param.dim() == 1
        group = no_decay if is_vector else decay
        group.append(param)
    return [{"params": no_decay, "weight_decay": 0.0}, {"params": decay}]
