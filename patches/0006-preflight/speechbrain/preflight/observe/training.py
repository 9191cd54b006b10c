"""Derives what the optimizers train, and how, from the first step."""

from itertools import chain

import torch
from speechbrain.core import Brain
from speechbrain.preflight.observe.given import held
from speechbrain.preflight.observe.start import parameters_of

HOOKS = ("fit_batch", "optimizers_step", "on_fit_batch_end")  # with which a Brain takes its own steps


class Training:
    """What the optimizers train, and how; the parameters that are owned by one, trainable, or reached by a gradient, by id."""

    def __init__(self, seen):
        brain, step, modules = seen.given.brain, seen.step, seen.given.modules
        self.owned = {id(p): p for p in parameters_of(step.optimizers)}
        self.names = _names(brain, modules, {**step.reached, **self.owned})
        self.trainable = {id(p): p for p in chain(modules.parameters(), self.owned.values()) if p.requires_grad}
        self.reached = step.reached
        self.plain = all(getattr(type(brain), hook) is getattr(Brain, hook) for hook in HOOKS)
        self.stepping = (brain.optimizers_dict or brain.opt_class) if self.plain else step.optimizers
        by_hand = any(backward.by_hand for backward in step.backwards)
        # The Brain trains in a way that the preflight cannot see, for example by counting.
        self.own_way = (step.custom and not step.backwards) or (by_hand and not self.stepping)
        self.trains = seen.start.began and bool(self.trainable or self.reached)
        self.known = self.trains and self.stepping and bool(step.backwards)
        self.fits = self.known and bool(self.owned.keys() & self.reached.keys())


def _names(brain, modules, others):
    """The names of a Brain's parameters by id; of others, which are in no module, the shape."""
    names = {}
    for holder, module in held(brain, torch.nn.Module).items():
        names.update((id(p), f"{holder}.{name}") for name, p in module.named_parameters())
    names.update((id(p), name) for name, p in modules.named_parameters())
    others = {key: " x ".join(map(str, p.shape)) or 1 for key, p in others.items() if key not in names}
    return names | {key: f"a parameter of shape {shape} outside all modules" for key, shape in others.items()}
