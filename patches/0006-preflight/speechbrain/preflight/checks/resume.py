"""Checks that a run can be resumed, and that it continues what it should if it is."""

import torch
from speechbrain.core import Brain
from speechbrain.preflight.checks.optimised import codes_of, saves_its_own_way
from speechbrain.preflight.observe.given import parts
from speechbrain.preflight.observe.resume import inside, saved_by_torch, saver
from speechbrain.preflight.report import Finding, some
from speechbrain.utils.checkpoints import Checkpointer

CODES = {
    "used-not-saved": "a scheduler, counter, optimizer or normaliser changes in training, but is in no recoverable",
    "saver-not-called": "a recoverable has a method that should save it, but the checkpointer calls another one",
    "adapted-saved-whole": "the checkpointer saves the model inside an AdaptedModel, with all its frozen parameters",
    "nothing-left": "the epoch counter or optimizer_step_limit is at its limit, so fit() trains nothing",
    "not-recovered": "the folder has checkpoints of an earlier run, but training starts from scratch",
    "recovered-in-part": "the recovered checkpoint lacks files or keys of what the checkpointer saves",
    "learning-rate-differs": "an optimizer continues with another learning rate than the script asks for",
    "resume-differs": "after recovery, the loss of a validation batch is not the one that the checkpoint records",
}

AUTOMATIC = ("brain", "optimizer", "scaler")  # the recoverables that a Brain adds itself


def _unsaved(seen):
    """What changes in training and is in no recoverable: by name, the object and the recoverable that it is part of."""
    brain, start = seen.given.brain, seen.start
    checkpointer = brain.checkpointer
    if not start.began or type(checkpointer) is not Checkpointer or saves_its_own_way(brain):
        return {}
    recoverables = {name: item for name, item in checkpointer.recoverables.items() if "dataloader" not in name}
    if not recoverables.keys() - {*AUTOMATIC}:
        return {}
    kept = inside(*recoverables.values())
    used = {name: start.resumed.states[name][0] for name in seen.valid.changed}
    for name, optimizer in seen.step.optimizers.items():
        plain = isinstance(optimizer, torch.optim.SGD) and not any(group["momentum"] for group in optimizer.param_groups)
        if not plain and any(id(p) in seen.step.reached for group in optimizer.param_groups for p in group["params"]):
            used[name] = optimizer
    lost = {}
    for name, item in used.items():
        content = map(id, item.parameters()) if saved_by_torch(item) else [id(item)]
        if not kept.issuperset(content):
            modules = {name: one for name, one in recoverables.items() if isinstance(one, torch.nn.Module)}
            holder = next((name for name, one in modules.items() if any(part is item for part in one.modules())), None)
            lost[name] = item, holder
    return lost


def not_saved(seen):
    """Yield what changes in training, but is not saved."""
    for name, (item, holder) in _unsaved(seen).items():
        why = f"the saved state dict of {holder!r} does not contain its state" if holder else "it is in no recoverable"
        what = f"this {type(item).__name__} changes in training, but {why}: a resumed run starts with a new one"
        yield Finding("warning", "used-not-saved", what, name, "add it to the checkpointer's recoverables")


def savers(seen):
    """Yield recoverables that are saved in another way than their class, or their AdaptedModel, says."""
    checkpointer = seen.given.brain.checkpointer
    recoverables = getattr(checkpointer, "recoverables", {})
    for name, item in recoverables.items():
        (hook, owner), classes = saver(item), type(item).__mro__
        if hook is None or isinstance(item, Brain) or name in checkpointer.custom_save_hooks:
            continue
        methods = [(cls, *pair) for cls in classes[: classes.index(owner)] for pair in vars(cls).items()]
        for cls, method, function in methods:
            if hasattr(function, "_speechbrain_saver") or method == hook.__name__:
                what = f"the checkpointer does not call {cls.__name__}.{method}, but {hook.__name__} of {owner.__name__}"
                remedy = f"mark it with mark_as_saver, and decorate {cls.__name__} with register_checkpoint_hooks"
                yield Finding("warning", "saver-not-called", what, name, remedy)
    for _, module in parts(seen.given.brain):
        inner = module._modules.get("adapted_model") if hasattr(module, "replace_layers") else None
        names = [name for name, item in recoverables.items() if item is inner is not None]
        if names and not any(item is module for item in recoverables.values()):
            total = sum(p.numel() for p in inner.parameters())
            trained = sum(p.numel() for p in inner.parameters() if id(p) in seen.step.reached)
            if trained < 0.5 * total:
                what = f"each checkpoint has all {total:,} parameters of the adapted model, but only {trained:,} are trained"
                remedy = "put the AdaptedModel itself into the recoverables: it saves only what is trained"
                yield Finding("note", "adapted-saved-whole", what, names[0], remedy)


def nothing_left(seen):
    """Yield a training without epochs or steps."""
    given, resumed, brain = seen.given, seen.start.resumed, seen.given.brain
    limited = seen.start.began and getattr(brain, "_optimizer_step_limit_exceeded", False)
    if not seen.start.exhausted and not limited:
        return
    where = "optimizer_step_limit" if limited else type(given.epochs).__name__
    remedy = "raise this limit to train on, or choose another output_folder to start again"
    if not limited and any(item is given.epochs for item in seen.loaded.pretrained):
        what, remedy = "a Pretrainer has set the epoch counter to its limit", "remove the counter from its loadables"
    elif resumed.recovery and not resumed.recovery.error:
        what = f"{resumed.recovery.checkpoint.path} is from the end of a run"
    else:
        what, remedy = "fit() gets no epochs", "raise the number of epochs"
    yield Finding("warning", "nothing-left", f"nothing is left to train: {what}", where, remedy)


def recovered(seen):
    """Yield what is not, or not completely, recovered from an earlier run."""
    resumed, brain = seen.start.resumed, seen.given.brain
    recovery, number = resumed.recovery, len(resumed.earlier)
    if number and (recovery.error if recovery else not resumed.searched):
        what = f"the folder has {number} checkpoint{'s' * (number > 1)} of an earlier run, but training starts from scratch"
        what += f", because the recovery failed ({recovery.error.splitlines()[0]})" if recovery else ""
        remedy = "call super().on_fit_start() in your on_fit_start() to continue that run, or choose another output_folder"
        yield Finding("warning", "not-recovered", what, str(brain.checkpointer.checkpoints_dir), remedy)
    if not recovery or recovery.error:
        return
    path = str(recovery.checkpoint.path)
    trained = "brain" not in resumed.absent  # else it is not from a training
    absent = [name for name in resumed.absent if trained or name not in AUTOMATIC]
    lacking = [f"files for {some(absent)} (allow_partial_load is True)"] if absent else []
    for load in seen.loaded.states:
        module = load.module() if load.file == path and load.by == "checkpoint" else None
        own = dict(module.named_parameters()) if module is not None else {}
        keys = [key for key, p in own.items() if key not in load.given and key in load.own and id(p) not in seen.step.frozen]
        lacking += [f"values for {some(keys)} of {type(module).__name__}"] if keys else []
    if lacking:
        remedy = "use the settings of the run that saved it, or choose another output_folder"
        what = f"this checkpoint has no {' and no '.join(lacking)}: they keep their initial state"
        yield Finding("warning" if len(lacking) > bool(absent) else "note", "recovered-in-part", what, path, remedy)


def learning_rates(seen):
    """Yield optimizers whose learning rate comes from a checkpoint, where no scheduler sets it."""
    brain, recovery = seen.given.brain, seen.start.resumed.recovery
    if not recovery or recovery.error:
        return
    known = {**vars(brain), **brain.checkpointer.recoverables, **seen.given.hparams}
    texts = [text for name, item in known.items() for text in (name.lower(), type(item).__module__)]
    if "param_groups" in codes_of(brain, "co_names", "co_consts") or any("sched" in text or "anneal" in text for text in texts):
        return
    for name, asked in recovery.rates.items():
        groups = getattr(brain.checkpointer.recoverables.get(name), "param_groups", [])
        for rate, now in {(rate, group.get("lr")) for group, rate in zip(groups, asked)}:
            if rate and now not in (None, rate):  # a rate of 0 is the start of a warm-up
                what = f"{name} continues with the learning rate {now:g} of the checkpoint, not with the script's {rate:g}"
                remedy = "set it in on_fit_start(), after the recovery, if you want the new one"
                yield Finding("note", "learning-rate-differs", what, str(recovery.checkpoint.path), remedy)


def proof(seen):
    """Yield a recovery after which a validation batch has another loss than before."""
    resumed = seen.start.resumed
    if not resumed.differs:
        return
    kept = [name for name in resumed.recovery.checkpoint.paramfiles if "dataloader" not in name]
    lost = _unsaved(seen)
    what = f"the loss of the same {len(resumed.record['ids'])} items is {resumed.losses[0]:.5g} after recovery, but was"
    what += f" {resumed.record['loss']:.5g} when the checkpoint was saved, with {some(sorted(kept), 8)}"
    what += f"; used, but not saved: {some(lost, 8)}" if lost else ""
    remedy = "find out what else the loss depends on, and save it; or which settings or data you have changed"
    yield Finding("warning", "resume-differs", what, str(resumed.recovery.checkpoint.path), remedy)


RULES = (not_saved, savers, nothing_left, recovered, learning_rates, proof)
