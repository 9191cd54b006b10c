"""What ``fit`` is given."""

from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from speechbrain.preflight.observe.items import Items
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@dataclass(frozen=True)
class Given:
    """What ``fit`` is given, and what the preflight is asked for."""

    brain: Any  # the Brain whose ``fit`` was called
    train_set: Any = None  # the sets as passed to ``fit``; ``valid_set`` may be None
    valid_set: Any = None
    epochs: Iterable = (1,)  # the epoch counter
    train_options: dict = field(default_factory=dict)  # the options of the dataloaders, as passed to ``fit``
    valid_options: dict = field(default_factory=dict)
    progressbar: Any = None  # the argument of this name, which is a bool or None
    script: Path | None = None  # the training script; None if ``preflight()`` was called as a function
    scan_seconds: float = 20.0  # how many seconds to spend on reading audio
    look: Path | None = None  # the folder for what the model hears; None if that is not asked for
    overfit: int = 0  # how many steps to take on the first batch
    longest: bool = False  # whether to take a step on the longest batch

    @property
    def hparams(self):
        """dict: The Brain's hparams by name."""
        return hparams_of(self.brain)

    @cached_property
    def sets(self):
        """dict: The items of the training and the validation set, by "train" and "valid", if they are known."""
        found = {"train": Items.of("train", self.train_set), "valid": Items.of("valid", self.valid_set)}
        return {split: items for split, items in found.items() if items is not None and len(items)}

    @property
    def modules(self):
        """torch.nn.ModuleDict: The Brain's modules, without the wrappers of torchrun and torch.compile."""
        modules = {}
        for name, module in self.brain.modules.items():
            while isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
                module = module.module
            modules[name] = getattr(module, "_orig_mod", module)
        return torch.nn.ModuleDict(modules)


def hparams_of(brain):
    """Return the hparams of a Brain by name; empty if it has none."""
    return vars(getattr(brain, "hparams", SimpleNamespace()))


def unwrapped(loader):
    """Return the dataloader inside a LoopedLoader, or the loader itself."""
    return getattr(loader, "loader", loader)


def is_compiled(brain):
    """Return whether torch.compile has wrapped a module; hooks would change what it compiles, and it writes files."""
    return any(hasattr(module, "_orig_mod") for module in brain.modules.modules())


@contextmanager
def hooked(brain, before=None, after=None):
    """Call functions before and after each module while this context lasts, unless modules are compiled."""
    with ExitStack() as stack:
        for register, hook in ((register_module_forward_pre_hook, before), (register_module_forward_hook, after)):
            if hook and not is_compiled(brain):
                stack.callback(register(hook).remove)
        yield


def of_batch(batch, key):
    """Return the values of a key in a batch: a tensor, or None."""
    try:
        value = batch[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    value = getattr(value, "data", value)  # PaddedData and tensors have it
    return value if isinstance(value, torch.Tensor) else None


def ids_of(batch):
    """Return the ids of the items of a batch; an empty list if they are unknown."""
    ids = getattr(batch, "id", None)
    return list(map(str, ids)) if isinstance(ids, list) else []


def held(brain, kind):
    """Find the objects of a type among a Brain's attributes and hparams, and in lists and dicts there, by their first names."""
    found = {}
    for name, value in {**hparams_of(brain), **vars(brain)}.items():
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        for key, item in [(name, value), *((f"{name}[{key!r}]", item) for key, item in inner)]:
            if isinstance(item, kind) and not any(item is other for other in found.values()):
                found[key] = item
    return found


def parts(brain):
    """Yield all modules of a Brain, of its hparams, and of lists and dicts there, with their names."""
    tops = [("", brain.modules), *held(brain, torch.nn.Module).items()]
    known = {id(brain.modules)}
    while tops:
        holder, top = tops.pop(0)
        for name, module in top.named_modules():
            if id(module) not in known:
                known.add(id(module))
                yield ".".join(filter(None, (holder, name))), module
                inner = getattr(module, "augmentations", None)  # of an Augmenter
                tops += inner.items() if isinstance(inner, dict) else []


def named(given, module):
    """The name of a module, as the Brain's code can use it."""
    name = next((name for name, part in parts(given.brain) if part is module), type(module).__name__)
    return f"self.hparams.{name}" if name in given.hparams else name
