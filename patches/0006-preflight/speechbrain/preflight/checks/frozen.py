"""Checks that the running statistics of frozen modules stay the same."""

import torch
from speechbrain.preflight.report import Finding

CODES = {
    "frozen-statistics-move": "training updates the running statistics of BatchNorms whose weights are frozen",
    "loaded-normaliser-moves": "training updates the statistics of a normalization module that was loaded from a file",
}


def moving_statistics(seen):
    """Yield statistics that change although they should not: one finding for each of the Brain's modules."""
    modules, moving = seen.given.modules, {}
    for name, module in modules.named_modules():
        if name in seen.step.moved and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            top = name.partition(".")[0]
            if _frozen(seen.step, module if module.affine else modules[top]):
                moving.setdefault(top, []).append(name)
    for top, names in moving.items():
        yield Finding(
            "warning",
            "frozen-statistics-move",
            f"{len(names)} BatchNorm{'s' * (len(names) > 1)} with frozen weights: training updates the running statistics",
            names[0] if len(names) == 1 else f"{top} ({names[0]} and {len(names) - 1} more)",
            f"call self.modules.{top}.eval() in compute_forward: fit() puts every module into training mode",
        )
    loaded = {id(part) for item in seen.loaded.pretrained if isinstance(item, torch.nn.Module) for part in item.modules()}
    for name, module in modules.named_modules():
        if name in seen.step.moved and id(module) in loaded and not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            yield Finding(
                "warning",
                "loaded-normaliser-moves",
                "its statistics were loaded from a file, and training keeps updating them",
                name,
                "call its eval() in compute_forward, or pass an epoch that is not below its update_until_epoch",
            )


def _frozen(step, module):
    """Whether a module has parameters, and all were frozen when the step began and still are."""
    parameters = list(module.parameters())
    return bool(parameters) and all(id(p) in step.frozen and not p.requires_grad for p in parameters)


RULES = (moving_statistics,)
