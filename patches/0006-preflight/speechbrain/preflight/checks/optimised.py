"""Checks that the optimizers have the parameters that the loss depends on, and that these are clipped and saved."""

import torch
from speechbrain.core import Brain
from speechbrain.preflight.observe.resume import saver
from speechbrain.preflight.report import Finding, some
from torch.nn.parallel import DistributedDataParallel

CODES = {
    "no-backward": "the Brain has its own fit_batch, which does not call backward in the first step",
    "nothing-trainable": "no parameter is trainable in the first step",
    "no-optimizer": "there are trainable parameters, but no optimizer",
    "optimizer-misses-loss": "the optimizers have none of the parameters that the loss depends on",
    "gradient-without-optimizer": "parameters get a gradient but are in no optimizer, so they never change",
    "trained-not-saved": "the checkpointer does not save some of the trained parameters",
    "group-not-clipped": "the gradient of a parameter group exceeds max_grad_norm, but is not clipped",
    "ddp-without-gradient": "under torchrun, parameters without a gradient, or frozen late, make the second step fail",
    "ddp-unfrozen-late": "parameters are unfrozen after DistributedDataParallel has wrapped the modules",
    "ddp-not-wrapped": "under torchrun, parameters outside the Brain's modules are trained, and not averaged",
    "ddp-bypassed": "under torchrun, a module is called without its wrapper, which would average its gradients",
    "trainable-without-gradient": "parameters are trainable, but get no gradient in the first step",
}


def nothing_trainable(seen):
    """Yield a training in which nothing is trainable."""
    training, modules = seen.training, seen.given.modules
    if seen.start.began and not training.trains and not training.own_way:
        count = sum(1 for _ in modules.parameters())
        what = f"all {count} parameters are frozen in the first step" if count else "the modules have no parameters"
        remedy = "unfreeze what you want to train before fit(), in on_fit_start or in on_stage_start"
        yield Finding("error", "nothing-trainable", what, ", ".join(modules) or "modules", remedy)


def no_step(seen):
    """Yield a training without an optimizer, and a step that trains in a way that the preflight cannot see."""
    training, step, name = seen.training, seen.step, type(seen.given.brain).__name__
    if step.custom and step.taken and not step.backwards:
        what = "its own fit_batch does not call backward() in the first step, so the preflight cannot check what it trains"
        yield Finding("note", "no-backward", what, name, "check that it calls loss.backward(), if it should")
    if training.trains and not training.stepping and training.plain and not training.own_way:
        what = f"{len(training.trainable)} parameters are trainable, but no optimizer steps"
        remedy = "give the Brain an opt_class, or create optimizers in init_optimizers"
        yield Finding("error", "no-optimizer", what, name, remedy)


def other_parameters(seen):
    """Yield parameters that get a gradient and are in no optimizer."""
    training = seen.training
    if training.known and not training.fits:
        named = some(training.names[key] for key in training.reached)
        what = f"the optimizers have {len(training.owned)} parameters, but the loss depends "
        what += f"on {named}" if named else "on no parameter: it is detached"
        remedy = "give the optimizer the parameters that the loss depends on"
        remedy = remedy if named else "remove item(), detach(), argmax() or numpy() from what the loss is computed of"
        yield Finding("error", "optimizer-misses-loss", what, ", ".join(seen.step.optimizers), remedy)
    missed = training.reached.keys() - training.owned.keys() if training.fits else ()
    for module, names in _by_module(training.names, missed):
        what = f"these parameters get a gradient, but are in no optimizer: {some(names)}"
        remedy = "add the module to the Brain's modules, unfreeze it before the optimizer is created, or freeze it"
        yield Finding("error", "gradient-without-optimizer", what, module, remedy)


def without_gradient(seen):
    """Yield parameters that are trainable, but get no gradient; under DDP, this ends the training."""
    training, brain = seen.training, seen.given.brain
    if not (training.fits and seen.step.taken and not seen.step.custom):
        return
    fatal = set()
    for module in brain.modules.values():
        if isinstance(module, DistributedDataParallel) and seen.step.ran.get(id(module)) and not module.find_unused_parameters:
            waits = seen.start.wrapped.intersection(map(id, module.parameters()))
            fatal |= waits - training.reached.keys() if waits & training.reached.keys() else set()
    for late, keys in ((False, fatal & training.trainable.keys()), (True, fatal - training.trainable.keys())):
        for name, idle in _by_module(training.names, keys):
            what = "DistributedDataParallel waits for the gradients of these parameters, "
            what += "which the script freezes after it wraps them" if late else "but the first step gives them none"
            remedy = "freeze it before fit(), or run with --find_unused_parameters"
            yield Finding("error", "ddp-without-gradient", f"{what}: the second step fails: {some(idle)}", name, remedy)
    for name, idle in _by_module(training.names, training.trainable.keys() - training.reached.keys() - fatal):
        level, why, remedy = "note", "", "freeze it if it should not be trained"
        if _modes(seen, idle) == {False}:
            level, why, remedy = "warning", ", because it runs under torch.no_grad()", f"remove no_grad(), or {remedy}"
        what = f"these parameters are trainable, but get no gradient in the first step{why}: {some(idle)}"
        yield Finding(level, "trainable-without-gradient", what, name, remedy)


def _modes(seen, names):
    """Whether the modules that have the named parameters run with gradients."""
    found = {name: id(module) for name, module in seen.given.modules.named_modules()}
    return {seen.step.ran.get(found.get(name.rpartition(".")[0])) for name in names} - {None}


def not_averaged(seen):
    """Yield trained parameters whose gradients DDP does not average."""
    training, brain, inside = seen.training, seen.given.brain, {id(p) for p in seen.given.modules.parameters()}
    own_way = codes_of(brain, "co_names") & {"all_reduce", "ddp_all_reduce"}
    if own_way or not (brain.distributed_launch and seen.start.began and torch.distributed.get_world_size() > 1):
        return
    by_hook = {key for key, p in training.owned.items() if p._backward_hooks or p._post_accumulate_grad_hooks}
    trained = (training.reached.keys() & training.owned.keys()) - by_hook
    wrapped, ran = seen.start.wrapped, seen.step.ran
    wrappers = [module for module in brain.modules.values() if isinstance(module, DistributedDataParallel)]
    bypassed = {id(p) for module in wrappers if ran and not ran.get(id(module)) for p in module.parameters()}
    late = "the script unfreezes these after they are wrapped in"
    remedy = "unfreeze them before fit(), and keep their learning rate at 0 until they should train"
    outside = "these are not in the Brain's modules, and not in", "add them to the Brain's modules"
    inner = "the script calls these directly, as self.hparams does, not through", "call those in self.modules"
    cases = [("ddp-unfrozen-late", (trained & inside) - wrapped, late, remedy)]
    cases += [("ddp-not-wrapped", trained - inside - wrapped, *outside), ("ddp-bypassed", trained & wrapped & bypassed, *inner)]
    for code, keys, why, remedy in cases:
        names = sorted(training.names[key] for key in keys)
        if names:
            what = f"{why} DistributedDataParallel, so each process trains its own copy: {some(names)}"
            yield Finding("error", code, what, some((name.partition(".")[0] for name in names), 8), remedy)


def not_clipped(seen):
    """Yield parameter groups that the stock release does not clip."""
    brain = seen.given.brain
    if not (seen.training.fits and seen.step.taken and not seen.step.custom and clips_first_group_only(brain)):
        return
    for name, optimizer in seen.step.optimizers.items():
        for number, group in enumerate(optimizer.param_groups[1:], 1):
            gradients = [p.grad.float() / brain.scaler.get_scale() for p in group["params"] if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
            if norm > brain.max_grad_norm >= 0:
                what = f"its gradient norm is {norm:.3g}, above max_grad_norm {brain.max_grad_norm:g}; only group 0 is clipped"
                remedy = "use one group, or an optimizers_step that clips all groups"
                yield Finding("warning", "group-not-clipped", what, f"{name}, group {number}", remedy)


def clips_first_group_only(brain):
    """Whether the Brain's step is the stock release's, which clips only the first group of each optimizer."""
    step = type(brain).optimizers_step
    # The fork replaces that step, keeps it under another name, and still uses it where only_finite_steps is False.
    if hasattr(Brain, "_upstream_optimizers_step"):
        return step is Brain._upstream_optimizers_step or (step is Brain.optimizers_step and not brain.only_finite_steps)
    return step is Brain.optimizers_step


def not_saved(seen):
    """Yield parameters that are trained, but not saved."""
    training, checkpointer = seen.training, seen.given.brain.checkpointer
    if not training.trains or checkpointer is None or saves_its_own_way(seen.given.brain):
        return
    saved = [item for item in checkpointer.recoverables.values() if isinstance(item, torch.nn.Module)]
    saved = {id(p) for module in saved for p in module.parameters()}
    trained = {key for key, p in training.owned.items() if p.requires_grad}
    trained &= training.reached.keys() if seen.step.backwards else trained
    for module, lost in _by_module(training.names, trained - saved):
        what = f"training changes these parameters, but they are in no recoverable of the checkpointer: {some(lost)}"
        yield Finding("warning", "trained-not-saved", what, module, "add the module to the checkpointer's recoverables")


def saves_its_own_way(brain):
    """Whether parameters may be saved in a way that the recoverables do not show."""
    owners = [saver(item)[1] or type(item) for item in brain.checkpointer.recoverables.values()]
    saved = codes_of(brain, "co_names") & {"save", "save_pretrained", "state_dict"}
    known = all(owner.__module__.startswith(("speechbrain.", "torch.")) for owner in owners)
    return bool(saved or brain.checkpointer.custom_save_hooks or not known)


def codes_of(brain, *kinds):
    """The names (``co_names``) or texts (``co_consts``) that the code of a Brain's own methods uses."""
    methods = [method for cls in type(brain).__mro__ if cls.__module__ != Brain.__module__ for method in vars(cls).values()]
    codes = [method.__code__ for method in methods if hasattr(method, "__code__")]
    return {word for code in codes for kind in kinds for word in getattr(code, kind) if isinstance(word, str)}


def _by_module(names, keys):
    """Group the names of parameters by module."""
    groups = {}
    for name in sorted(names[key] for key in keys):
        groups.setdefault(name.partition(".")[0], []).append(name)
    return groups.items()


RULES = (nothing_trainable, no_step, other_parameters, without_gradient, not_averaged, not_clipped, not_saved)
