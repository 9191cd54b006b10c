"""Checks that the optimizers have the parameters that the loss depends on, and that these are clipped and saved."""

from itertools import chain
from types import SimpleNamespace

import torch
from speechbrain.core import Brain
from speechbrain.preflight.observe.first_step import held
from speechbrain.preflight.report import Finding
from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS

CODES = {
    "nothing-trainable": "no parameter is trainable in the first step",
    "no-optimizer": "there are trainable parameters, but no optimizer",
    "optimizer-misses-loss": "the loss depends on no parameter that is in an optimizer",
    "gradient-without-optimizer": "parameters get a gradient but are in no optimizer, so they never change",
    "trained-not-saved": "the checkpointer does not save some of the trained parameters",
    "group-not-clipped": "the gradient of a parameter group exceeds max_grad_norm, but is not clipped",
    "trainable-without-gradient": "parameters are trainable, but get no gradient in the first step",
}


def check(seen):
    """Yield what is wrong with the optimizers and with the parameters that they train."""
    if not seen.started:
        return
    names = _names(seen)
    owned = {id(p): p for o in seen.optimizers.values() for group in o.param_groups for p in group["params"]}
    trainable = {id(p): p for p in chain(seen.modules.parameters(), owned.values()) if p.requires_grad}
    brain, hooks = seen.brain, ("fit_batch", "optimizers_step", "on_fit_batch_end")
    plain = all(getattr(type(brain), hook) is getattr(Brain, hook) for hook in hooks)
    stepping = (brain.optimizers_dict or brain.opt_class) if plain else seen.optimizers
    # The Brain trains in a way that the preflight cannot see, for example by counting.
    own_way = (seen.custom_step and not seen.backwards) or (seen.by_hand and not stepping)
    if not trainable and not seen.reached:
        if not own_way:
            count = sum(1 for _ in seen.modules.parameters())
            yield Finding(
                "error",
                "nothing-trainable",
                f"all {count} parameters are frozen in the first step" if count else "the modules have no parameters",
                ", ".join(seen.modules) or "modules",
                "unfreeze what you want to train before fit(), in on_fit_start or in on_stage_start",
            )
        return
    if not stepping:
        if plain and not own_way:
            yield Finding(
                "error",
                "no-optimizer",
                f"{len(trainable)} parameters are trainable, but no optimizer steps",
                type(brain).__name__,
                "give the Brain an opt_class, or create optimizers in init_optimizers",
            )
    elif seen.backwards:
        yield from _gradients(seen, names, owned, trainable)
    yield from _not_saved(seen, names, owned)


def _gradients(seen, names, owned, trainable):
    """Compare the parameters in the optimizers with those that got a gradient."""
    if not owned.keys() & seen.reached.keys():
        depends = f"on {_some(names[key] for key in seen.reached)}" if seen.reached else "on no parameter: it is detached"
        yield Finding(
            "error",
            "optimizer-misses-loss",
            f"the optimizers have {len(owned)} parameters, but the loss depends {depends}",
            ", ".join(seen.optimizers),
            "give the optimizer the parameters that the loss depends on",
        )
        return
    for module, missed in _by_module(names, seen.reached.keys() - owned.keys()):
        yield Finding(
            "error",
            "gradient-without-optimizer",
            f"in no optimizer, although a gradient arrives: {_some(missed)}",
            module,
            "add it to the Brain's modules, unfreeze it before the optimizer is created, or freeze it",
        )
    if seen.custom_step or not seen.stepped:
        return
    for module, idle in _by_module(names, trainable.keys() - seen.reached.keys()):
        yield Finding(
            "note",
            "trainable-without-gradient",
            f"trainable, but without a gradient in the first step: {_some(idle)}",
            module,
            "freeze it if it should not be trained",
        )
    yield from _not_clipped(seen)


def _not_clipped(seen):
    brain = seen.brain
    if not _clips_first_group_only(brain):
        return
    for name, optimizer in seen.optimizers.items():
        for number, group in enumerate(optimizer.param_groups[1:], 1):
            gradients = [p.grad.float() / brain.scaler.get_scale() for p in group["params"] if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
            if norm > brain.max_grad_norm >= 0:
                yield Finding(
                    "warning",
                    "group-not-clipped",
                    f"its gradient norm is {norm:.3g}, above max_grad_norm {brain.max_grad_norm:g}; only group 0 is clipped",
                    f"{name}, group {number}",
                    "use one group, or an optimizers_step that clips all groups",
                )


def _clips_first_group_only(brain):
    """Whether the Brain's step is the stock release's, which clips only the first group of each optimizer."""
    step = type(brain).optimizers_step
    # The fork replaces that step, keeps it under another name, and still uses it where only_finite_steps is False.
    if hasattr(Brain, "_upstream_optimizers_step"):
        return step is Brain._upstream_optimizers_step or (step is Brain.optimizers_step and not brain.only_finite_steps)
    return step is Brain.optimizers_step


def _not_saved(seen, names, owned):
    checkpointer = seen.brain.checkpointer
    if checkpointer is None or _saves_its_own_way(seen.brain):
        return
    saved = {
        id(p) for item in checkpointer.recoverables.values() if isinstance(item, torch.nn.Module) for p in item.parameters()
    }
    trained = {key for key, p in owned.items() if p.requires_grad and (key in seen.reached or not seen.backwards)}
    for module, lost in _by_module(names, trained - saved):
        yield Finding(
            "warning",
            "trained-not-saved",
            f"trained, but in no recoverable of the checkpointer: {_some(lost)}",
            module,
            "add it to the checkpointer's recoverables",
        )


def _saves_its_own_way(brain):
    """Whether parameters may be saved in a way that the recoverables do not show."""
    if brain.checkpointer.custom_save_hooks:
        return True
    for item in brain.checkpointer.recoverables.values():
        saver = next((cls for cls in type(item).__mro__ if cls in DEFAULT_SAVE_HOOKS), type(item))
        if not saver.__module__.startswith(("speechbrain.", "torch.")):
            return True
    return any(
        {"save", "save_pretrained", "state_dict"} & set(getattr(method, "__code__", SimpleNamespace(co_names=())).co_names)
        for cls in type(brain).__mro__
        if cls.__module__ != Brain.__module__
        for method in vars(cls).values()
    )


class _Names(dict):
    """The names of parameters by id, with a default for those that are in no module."""

    def __missing__(self, key):
        return "a parameter outside all modules"


def _names(seen):
    names = _Names()
    for holder, module in held(seen.brain, torch.nn.Module).items():
        names.update((id(p), f"{holder}.{name}") for name, p in module.named_parameters())
    names.update((id(p), name) for name, p in seen.modules.named_parameters())
    return names


def _by_module(names, keys):
    """Group the names of parameters by module."""
    groups = {}
    for name in sorted(names[key] for key in keys):
        groups.setdefault(name.partition(".")[0], []).append(name)
    return groups.items()


def _some(names):
    names = list(names)
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
