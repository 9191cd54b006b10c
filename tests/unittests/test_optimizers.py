"""Parameter groups of an optimizer."""

import pytest
from speechbrain.utils.optimizers import rm_vector_weight_decay
from torch import nn


@pytest.mark.parametrize(
    "layer, vectors, others",
    [
        (lambda: nn.Linear(4, 3), ["bias"], ["weight"]),
        (lambda: nn.Linear(4, 3).requires_grad_(False), [], []),
        (lambda: nn.BatchNorm1d(4), ["bias", "weight"], []),
        pytest.param(lambda: nn.LazyLinear(3), ["bias"], ["weight"], marks=pytest.mark.regression),
        pytest.param(lambda: nn.LazyConv1d(3, 5), ["bias"], ["weight"], marks=pytest.mark.regression),
        pytest.param(lambda: nn.LazyBatchNorm1d(), ["bias", "weight"], [], marks=pytest.mark.regression),
        pytest.param(lambda: nn.LazyInstanceNorm2d(affine=True), ["bias", "weight"], [], marks=pytest.mark.regression),
    ],
)
@pytest.mark.parametrize("depth", [0, 2])
def test_rm_vector_weight_decay(layer, vectors, others, depth):
    module = layer()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for _ in range(depth):
        module = nn.ModuleDict({"inner": module})
    no_decay, decay = rm_vector_weight_decay(module)
    assert sorted(names[id(p)] for p in no_decay["params"]) == vectors
    assert sorted(names[id(p)] for p in decay["params"]) == others
    assert no_decay["weight_decay"] == 0.0 and "weight_decay" not in decay
