"""What the preflight records of a run up to its first step: the input of the checks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class LossCall:
    """A call of one of torch's loss functions in the first step.

    Attributes
    ----------
    name : str
        The function's name in ``torch.nn.functional``.
    input, target : torch.Tensor
        Its first two arguments, detached.
    options : dict
        Its other arguments by name, including defaults: ``ignore_index``, ``reduction``.
    value : torch.Tensor
        Its return value, detached; None if the call failed.
    """

    name: str
    input: Any
    target: Any
    options: dict = field(default_factory=dict)
    value: Any = None


@dataclass
class Loaded:
    """What was loaded from files: by the script before its ``fit``, or on the way to the first step.

    Attributes
    ----------
    states : list of tuple
        The calls of ``load_state_dict``: a weak reference to the module, its
        keys, the keys of the given state dict, and those of them whose value
        is a dict.
    pretrained : list of object
        The objects that a Pretrainer loaded.
    copies : list of tuple of pathlib.Path
        The file that a Pretrainer used, and the file that it was asked for.
    encoders : list of tuple
        A label encoder, the file that it was loaded from instead of being built
        from data, and the arguments that name these data.
    """

    states: list = field(default_factory=list)
    pretrained: list = field(default_factory=list)
    copies: list = field(default_factory=list)
    encoders: list = field(default_factory=list)


@dataclass
class Seen:
    """What the preflight records of a run up to its first step.

    Attributes
    ----------
    brain : speechbrain.Brain
        The Brain whose ``fit`` was called.
    hparams : dict
        Its hparams by name.
    train_set, valid_set : Dataset or DataLoader
        The sets as passed to ``fit``; ``valid_set`` may be None.
    train_loader, valid_loader : DataLoader
        Their dataloaders; None if ``make_dataloader`` failed or there is no such set.
    batch : object
        The first training batch as the loader yielded it; None without one.
    losses : list of LossCall
        The calls of loss functions in the first step.
    norm_inputs : dict of str to torch.Size
        The shape of each BatchNorm's first input in the first step, by the module's name.
    script : pathlib.Path
        The training script; None if ``preflight()`` was called as a function.
    scan_seconds : float
        How many seconds to spend on reading audio.
    said : list of str
        Remarks for the report.
    failures : list of Finding
        What failed on the way to the first step.
    started : bool
        Whether ``on_fit_start`` and ``on_stage_start`` succeeded.
    stepped : bool
        Whether the first step succeeded, as far as the preflight takes it.
    custom_step : bool
        Whether the Brain has its own ``fit_batch``.
    backwards : int
        The number of backward passes in the first step.
    by_hand : bool
        Whether a loss depends on no parameter, but was made to require a gradient.
    reached : dict of int to torch.nn.Parameter
        The parameters that got a gradient in the first step, by id.
    frozen : set of int
        The ids of the parameters that were frozen when the first step began.
    optimizers : dict of str to torch.optim.Optimizer
        All optimizers that the Brain has, or that stepped in the first step.
    weights : list of speechbrain.preflight.observe.weights.Weight
        The weights before the first step.
    moved : set of str
        The names of the modules whose running statistics changed in the first step.
    loaded : Loaded
        What was loaded from files.
    """

    brain: Any
    hparams: dict = field(default_factory=dict)
    train_set: Any = None
    valid_set: Any = None
    train_loader: Any = None
    valid_loader: Any = None
    batch: Any = None
    losses: list = field(default_factory=list)
    norm_inputs: dict = field(default_factory=dict)
    script: Path | None = None
    scan_seconds: float = 20.0
    said: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    started: bool = False
    stepped: bool = False
    custom_step: bool = False
    backwards: int = 0
    by_hand: bool = False
    reached: dict = field(default_factory=dict)
    frozen: set = field(default_factory=set)
    optimizers: dict = field(default_factory=dict)
    weights: list = field(default_factory=list)
    moved: set = field(default_factory=set)
    loaded: Loaded = field(default_factory=Loaded)

    @property
    def modules(self):
        """torch.nn.ModuleDict: The Brain's modules, without the wrappers of torchrun and torch.compile."""
        modules = {}
        for name, module in self.brain.modules.items():
            while isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
                module = module.module
            modules[name] = getattr(module, "_orig_mod", module)
        return torch.nn.ModuleDict(modules)
