"""What an earlier run left in the checkpointer's folder, what is recovered of it, and what a checkpointer could save."""

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from speechbrain.core import Brain, Stage
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.observe.given import held, ids_of, is_compiled, parts
from speechbrain.preflight.observe.loads import BEGAN, sample
from speechbrain.preflight.quiet import alone, seed_all, writes_nothing
from speechbrain.utils import checkpoints
from speechbrain.utils.checkpoints import Checkpointer

SECONDS = 30.0  # how long the recorded batch may take
LOADERS = (torch.utils.data.DataLoader, torch.utils.data.Dataset)
PLAIN = (int, float, complex, str, bytes, type(None))


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self): ...


@dataclass
class Resumed:
    """The earlier run, after ``on_fit_start``."""

    earlier: list = field(default_factory=list)  # the checkpoints of an earlier run in the checkpointer's folder
    searched: bool = False  # whether something has listed them
    recovery: Any = None  # the last Recovery by the Brain's checkpointer; None without one
    absent: list = field(default_factory=list)  # the recoverables for which the recovered checkpoint has no file
    states: dict = field(default_factory=dict)  # by name of what a checkpointer could save: the object and its state
    values: dict = field(default_factory=dict)  # by id of a loaded parameter, some of its values
    record: dict = field(default_factory=dict)  # the recovered checkpoint's record of the first validation batch
    losses: tuple = ()  # of the same batch now: one if it is equal, else two, under different seeds

    @property
    def differs(self):
        """bool: Whether the loss is another one, although it does not depend on the seed."""
        return len(self.losses) == 2 and same(*self.losses)


def same(one, other):
    """Return whether two losses are equal within rounding."""
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-5)


def look(given, loaded, valid_loader, log):
    """Look at what was recovered, and evaluate the batch whose loss the recovered checkpoint records."""
    brain, resumed = given.brain, Resumed()
    log.guarded("resuming", _recover, resumed, given, loaded)
    able = resumed.record and valid_loader is not None and not is_compiled(brain)
    again = _evaluate if able else None
    resumed.losses = log.apart("the recorded batch", brain, SECONDS, again, brain, valid_loader, resumed.record) or ()
    # After this evaluation, because what restores tensors counts as a change
    resumed.states = log.guarded("states", _states, given) or {}
    return resumed


def _recover(resumed, given, loaded):
    """Find what was recovered."""
    brain, checkpointer = given.brain, given.brain.checkpointer
    found = (reference() for load in loaded.states for reference, *_ in load.parameters.values())
    resumed.values = {id(p): sample(p)[0] for p in found if p is not None}
    if not isinstance(checkpointer, Checkpointer):
        return
    resumed.searched = any(one is checkpointer for one in loaded.searched)
    resumed.earlier = [one for one in checkpointer.list_checkpoints() if one.meta["unixtime"] < BEGAN]
    recovery = next((one for one in reversed(loaded.recoveries) if one.checkpointer is checkpointer), None)
    resumed.recovery = recovery
    if recovery is None or recovery.error:
        return
    needed = [name for name in checkpointer.recoverables if not checkpointer.optional_recoverables.get(name)]
    resumed.absent = [name for name in needed if name not in recovery.checkpoint.paramfiles and "dataloader" not in name]
    path = recovery.checkpoint.path / "validation.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    here = {"precision": brain.eval_precision, "device": torch.device(brain.device).type}
    resumed.record = record if here.items() <= record.items() else {}


def begin_validation(brain, epoch, seed):
    """Do what ``fit`` does before the first batch of a validation."""
    seed_all(seed)
    brain.step = 0
    brain.on_stage_start(Stage.VALID, epoch)
    brain.modules.eval()
    brain.step = 1


def _evaluate(brain, loader, record, log):
    """The losses of the batch, if it is the recorded one."""
    batch, losses = next(iter(loader), None), []
    if ids_of(batch) != record["ids"]:
        return ()
    with alone(brain), writes_nothing([]), torch.no_grad(), suppress(Exception):  # which a run would meet only after training
        for seed in (1, 2):
            begin_validation(brain, record["epoch"], seed)
            losses.append(float(brain.evaluate_batch(batch, stage=Stage.VALID)))
            if same(losses[0], record["loss"]):
                break
    return tuple(losses)


def saver(item):
    """The hook that saves an object, and the class that it belongs to; None for both without one."""
    hook = checkpoints.get_default_hook(item, checkpoints.DEFAULT_SAVE_HOOKS)
    return hook, next((cls for cls in type(item).__mro__ if cls in checkpoints.DEFAULT_SAVE_HOOKS), None)


def saved_by_torch(item):
    """Return whether an object is a module, and its saved file has only its state dict."""
    return isinstance(item, torch.nn.Module) and saver(item)[1] is torch.nn.Module


def _states(given):
    """By name, what a checkpointer could save, and its state."""
    kinds = (_Stateful, *checkpoints.DEFAULT_SAVE_HOOKS)
    apart = (Brain, CategoricalEncoder, torch.optim.Optimizer, torch.nn.ModuleDict, *LOADERS)
    own = [(name, module) for name, module in parts(given.brain) if not saved_by_torch(module)]
    found = {}
    for name, item in (*own, *held(given.brain, kinds).items(), ("epoch_counter", given.epochs)):
        if isinstance(item, kinds) and not isinstance(item, apart):
            found.setdefault(id(item), (name, item))
    return {name: (item, state(_content(item))) for name, item in found.values()}


def _content(item):
    if saved_by_torch(item):
        return list(item.parameters())
    if type(item).__module__.startswith("torch.") or not hasattr(item, "__dict__"):
        return item.state_dict()
    return {key: value for key, value in vars(item).items() if key != "training"}


def state(value, depth=5):
    """Return something that is equal if and only if a value is unchanged."""
    if isinstance(value, torch.Tensor):
        return value, 0 if value.is_inference() else value._version
    if isinstance(value, dict):
        return [*value, *(state(part, depth - 1) for part in value.values())] if depth and len(value) < 1000 else len(value)
    if isinstance(value, (list, tuple, deque)):
        return [state(part, depth - 1) for part in value] if depth and len(value) < 1000 else len(value)
    return repr(value) if isinstance(value, PLAIN) else None


def equal(one, other):
    """Return whether two states are equal."""
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return all(map(equal, one, other))
    tensor = isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor)
    return one is other if tensor else one == other


def changed(states):
    """The names of the objects that have another state now."""
    return [name for name, (item, before) in states.items() if not equal(before, state(_content(item)))]


def inside(*roots):
    """The ids of objects, and of all that they save or refer to: of a module that torch saves, what its state dict has."""
    ids, todo = set(), list(roots)
    while todo:
        item = todo.pop()
        if id(item) in ids or isinstance(item, (type, *PLAIN, Brain, Checkpointer, *LOADERS)):
            continue
        ids.add(id(item))
        if saved_by_torch(item):
            ids.update(map(id, item.state_dict(keep_vars=True).values()))
            ids.update(id(module) for module in item.modules() if saved_by_torch(module))
        elif isinstance(item, (dict, list, tuple, set, deque)):
            todo += item.values() if isinstance(item, dict) else item
        elif not callable(item) or isinstance(item, torch.nn.Module) or saver(item)[0]:
            todo += getattr(item, "__dict__", {}).values()
    return ids
