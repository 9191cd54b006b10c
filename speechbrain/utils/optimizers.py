"""Parameter groups. The rest of this module is upstream's."""

import torch
from torch.nn.parameter import is_lazy


def rm_vector_weight_decay(modules):
    """Put vectors (biases, norms) into a parameter group without weight decay.

    Upstream's asked every parameter for its shape, so one that is not
    initialised yet (``LazyLinear`` and its kin) ended the run before it began.

    Arguments
    ---------
    modules : torch.nn.Module
        Holds the parameters; the frozen ones are left out. One without a shape
        yet is taken for a vector if it is a bias or belongs to a normalisation
        layer, and for a matrix otherwise.

    Returns
    -------
    list of dict
        Two parameter groups for an optimizer: the vectors, then the others.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.BatchNorm1d(3))
    >>> [len(group["params"]) for group in rm_vector_weight_decay(model)]
    [3, 1]
    """
    vectors, others = [], []
    for name, parameter in modules.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_lazy(parameter):
            owner, _, leaf = name.rpartition(".")
            norm = isinstance(modules.get_submodule(owner), torch.nn.modules.batchnorm._NormBase)
            vector = norm or leaf == "bias"
        else:
            vector = parameter.dim() == 1
        (vectors if vector else others).append(parameter)
    return [{"params": vectors, "weight_decay": 0.0}, {"params": others}]
