"""What was seen of a run up to its first step: what the checks work on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LossCall:
    """A call of one of torch's loss functions in the first step.

    Attributes
    ----------
    name : str
        Its name in ``torch.nn.functional``.
    input, target : torch.Tensor
        What it was given, detached.
    options : dict
        Its other arguments by name, defaults included: ``ignore_index``, ``reduction``.
    value : torch.Tensor
        What it gave, detached.
    """

    name: str
    input: Any
    target: Any
    options: dict = field(default_factory=dict)
    value: Any = None


@dataclass
class Load:
    """A call of ``load_state_dict``.

    Attributes
    ----------
    module : torch.nn.Module
        What was loaded into.
    own, given : frozenset of str
        The keys that the module has, and those that were given.
    nested : tuple of str
        Those of the given keys that hold a dict instead of a tensor.
    """

    module: Any
    own: frozenset
    given: frozenset
    nested: tuple = ()


@dataclass
class Seen:
    """What was seen of a run up to its first step.

    Attributes
    ----------
    brain : speechbrain.Brain
        The Brain whose ``fit`` was called.
    hparams : dict
        What its YAML gave.
    train_set, valid_set : Dataset or DataLoader
        As they were given to ``fit``; the latter may be None.
    train_loader, valid_loader : DataLoader
        What ``make_dataloader`` made of them; None where it was not reached, failed, or there is no such set.
    batch : object
        The first training batch as the loader gave it; None without one.
    losses : list of LossCall
        The calls of loss functions in the first step.
    norm_inputs : dict of str to torch.Size
        The shape of each BatchNorm's first input in the first step, by the module's name.
    script : pathlib.Path
        The training script; None where ``preflight()`` was called as a function.
    scan_seconds : float
        How long reading audio may take.
    said : list of str
        Plain remarks for the report.
    failures : list of Finding
        What went wrong on the way to the first step.
    custom_step : bool
        Whether the Brain has a ``fit_batch`` of its own.
    stepped : bool
        Whether the first step went well, as far as it was taken.
    backwards : int
        How many backward passes the first step had.
    reached : dict of int to torch.Tensor
        The parameters that a gradient reached in the first step, by id.
    frozen : set of int
        The ids of the parameters that were frozen before the first step.
    optimizers : dict of str to torch.optim.Optimizer
        All optimizers that the Brain holds.
    weights : list of speechbrain.preflight.weights.Weight
        What the weights were like before the first step.
    moved : set of str
        The modules whose running statistics the first step has changed, by name.
    loads : list of Load
        What ``load_state_dict`` was given since the script started.
    pretrained : list of object
        What a Pretrainer has loaded from files.
    copies : list of tuple of pathlib.Path
        The file that a Pretrainer took, and the file that it was asked for.
    encoders : list of tuple
        A label encoder, the file that it was loaded from instead of being made
        of data, and the arguments that name these data.
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
    custom_step: bool = False
    stepped: bool = False
    backwards: int = 0
    reached: dict = field(default_factory=dict)
    frozen: set = field(default_factory=set)
    optimizers: dict = field(default_factory=dict)
    weights: list = field(default_factory=list)
    moved: set = field(default_factory=set)
    loads: list = field(default_factory=list)
    pretrained: list = field(default_factory=list)
    copies: list = field(default_factory=list)
    encoders: list = field(default_factory=list)
