"""Does what ``fit`` does before the first step: loaders, hooks, first batch."""

import copy
import gc
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np
import torch
from speechbrain.core import Brain, Stage
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.preflight.observe import resume, weights
from speechbrain.preflight.observe.given import held
from speechbrain.preflight.observe.loads import Loaded
from speechbrain.preflight.observe.not_finite import spoiled_items
from speechbrain.preflight.observe.resume import Resumed
from speechbrain.preflight.quiet import IDLE, noted, replaced
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@dataclass
class Start:
    """The Brain and its first batch before the first step."""

    train_loader: Any = None  # the dataloaders; None if ``make_dataloader`` failed or there is no such set
    valid_loader: Any = None
    batch: Any = None  # the first training batch as the loader yielded it; None without one
    seconds: float = 0.0  # how long it took to load this batch
    spare: Any = None  # a copy of it, because a step may change it; None if it cannot be copied
    spoiled: dict = field(default_factory=dict)  # by key of the batch, the ids of the items that are not finite
    epoch: int = 1  # the epoch that begins
    began: bool = False  # whether ``on_fit_start`` and ``on_stage_start`` succeeded
    ready: bool = False  # whether everything that a step needs succeeded
    optimizers: dict = field(default_factory=dict)  # the optimizers that the Brain has after ``on_fit_start``
    weights: list = field(default_factory=list)  # the weights before the first step
    resumed: Resumed = field(default_factory=Resumed)  # what an earlier run left, and what is recovered of it
    exhausted: bool = False  # whether the epoch counter has no epoch left
    wrapped: set = field(default_factory=set)  # the ids of the parameters that were trainable when DDP wrapped their module


def start(given, log, loaded=None):
    """Do what ``fit`` does before the first step."""
    brain, made, options = given.brain, Start(), given.train_options
    well, made.train_loader = log.attempt("dataloader-failed", _loader, brain, given.train_set, Stage.TRAIN, options)
    if given.valid_set is not None:
        options = {**given.valid_options, "ckpt_prefix": None}
        _, made.valid_loader = log.attempt("dataloader-failed", _loader, brain, given.valid_set, Stage.VALID, options)

    def wrap(wrapper, module, *args, **kwargs):
        made.wrapped.update(id(p) for p in module.parameters() if p.requires_grad)

    for wrapper in gc.get_objects() if brain.distributed_launch else ():  # the script may have wrapped modules, too
        if issubclass(type(wrapper), DistributedDataParallel):
            wrap(wrapper, wrapper.module)
    with noted(DistributedDataParallel, "__init__", wrap):
        made.began, _ = log.attempt("fit-start-failed", brain.on_fit_start)
    made.optimizers = held(brain, Optimizer)
    if made.began:
        made.resumed = resume.look(given, loaded or Loaded(), made.valid_loader, log)
        made.began, made.epoch = log.attempt("stage-start-failed", _start_stage, given, made)
    made.weights = log.guarded("weights", weights.look, given.modules) or []
    clock = perf_counter()
    if well:
        drawn, made.batch = log.attempt("first-batch-failed", lambda: next(iter(made.train_loader), None))
        made.ready = drawn and made.began  # equal on all processes, so that all make the same attempts
    made.seconds = perf_counter() - clock
    with suppress(Exception):
        made.spare = copy.deepcopy(made.batch)
    made.spoiled = log.guarded("batch", spoiled_items, made.batch) or {}
    return made


def _loader(brain, dataset, stage, options):
    if isinstance(dataset, (torch.utils.data.DataLoader, LoopedLoader)):
        return dataset
    return brain.make_dataloader(dataset, stage=stage, **options)


def _start_stage(given, made):
    brain, epoch = given.brain, next(iter(given.epochs), None)
    made.exhausted, epoch = epoch is None, 1 if epoch is None else epoch
    epoch = epoch.item() if isinstance(epoch, np.generic) else epoch  # JSON has no numbers of NumPy
    brain.on_stage_start(Stage.TRAIN, epoch)
    brain.modules.train()
    for parameter in chain(brain.modules.parameters(), parameters_of(made.optimizers)):
        parameter.grad = None
    brain.zero_grad()
    brain.nonfinite_count = 0
    if hasattr(brain.train_sampler, "set_epoch"):
        brain.train_sampler.set_epoch(epoch)
    return epoch


def parameters_of(optimizers):
    """Yield the parameters of optimizers."""
    return (p for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"])


def rates_of(optimizers):
    """Return the learning rates of optimizers."""
    return tuple(float(group.get("lr", 1.0)) for optimizer in optimizers.values() for group in optimizer.param_groups)


class Stepped(list):
    """The optimizers that were asked to step, and whether they really do."""

    real = False


@contextmanager
def nothing_changes(said):
    """Keep ``fit``, checkpointers and optimizers from doing anything; yield the optimizers that were asked to step."""
    emptied, stepped = defaultdict(list), Stepped()

    def empty(optimizer, args, kwargs):
        if stepped.real:
            return
        stepped.append(optimizer)
        lists = [(group, "params", group["params"]) for group in optimizer.param_groups]
        own = getattr(optimizer, "_params", None)  # LBFGS has its own list
        lists += [(vars(optimizer), "_params", own)] if isinstance(own, list) else []
        emptied[id(optimizer)].append(lists)  # a step() may call that of its parent class, for which this counts, too
        given = [item for item in (*args[1:], *kwargs.values()) if callable(item)]
        known = any(cls.__module__.startswith("torch.") for cls in type(optimizer).__mro__ if cls not in Optimizer.__mro__)
        for owner, name, parameters in lists:
            # A step with a closure, as that of SAM, may not take an empty list.
            owner[name] = [_idle(parameters[0])] if parameters and (name == "_params" or (given and not known)) else []

    def fill(optimizer, args, kwargs):
        for owner, name, parameters in emptied[id(optimizer)].pop() if emptied[id(optimizer)] else ():
            for idle in owner[name]:
                optimizer.state.pop(idle, None)
            owner[name] = parameters

    def skipped(*args, **kwargs):
        said.append("A call of fit() inside fit() was skipped.")

    with ExitStack() as stack:
        stack.enter_context(replaced(Brain, "fit", skipped))
        for name in IDLE:
            stack.enter_context(replaced(Checkpointer, name, lambda *args, **kwargs: None))
        for register, hook in ((register_optimizer_step_pre_hook, empty), (register_optimizer_step_post_hook, fill)):
            stack.callback(register(hook).remove)
        try:
            yield stepped
        finally:
            for lists in emptied.values():  # of steps that raised an exception; the first list is the real one
                for owner, name, parameters in lists[0] if lists else ():
                    owner[name] = parameters


def _idle(parameter):
    """A parameter that stays 0."""
    idle = torch.nn.Parameter(parameter.new_zeros(1))
    idle.grad = torch.zeros_like(idle)
    return idle
