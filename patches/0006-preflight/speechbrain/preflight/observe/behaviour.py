"""Takes real steps apart from the Brain, then compares what items give alone and in a batch."""

import copy
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.core import Brain, Stage
from speechbrain.dataio.batch import PaddedData
from speechbrain.preflight.observe.given import hooked, is_compiled, parts, unwrapped
from speechbrain.preflight.observe.not_finite import tensors
from speechbrain.preflight.observe.start import parameters_of
from speechbrain.preflight.observe.steps import SLOW, take_steps, whole_steps
from speechbrain.preflight.quiet import TimeUp, limited, seed_all, writes_nothing
from torch.overrides import TorchFunctionMode

SECONDS = 40.0  # how long all of it may take
FAILURES = (Exception, SystemExit, TimeUp)
ITEMS = 4  # items that are compared
ROUNDING = 1e-3  # a smaller difference, as a share of an output's variation, is rounding
LONGER = 3  # how often to look for inputs without an effect, with a step in between
ZERO = 1e-6  # a parameter that is smaller hides what it multiplies
SEEN = 0.1  # a smaller one is of no interest: the edges of convolutions and rounded lengths make up to 0.09
CROP = 128  # what is kept of each dimension of a module's output
UNUSUAL = 86028157  # a seed
PASSED_ON = ("to", "cuda", "cpu", "detach", "contiguous", "__get__")  # functions that return the same values
SIZES = ("size", "dim", "__len__", "type", "is_floating_point")


class Differs(NamedTuple):
    """An output of an item that depends on what else is in its batch."""

    output: str  # its keys in what ``compute_forward`` returns
    share: float  # the norm of the difference, as a share of the output's variation
    neighbours: bool = False  # whether another item of its own length is the cause; else, how much it is padded
    module: str = ""  # the first module whose output differs; "" if that is unknown
    lengths: str = ""  # a key of the batch whose lengths have no effect, if padding is the cause


@dataclass
class Behaviour:
    """How the model behaves."""

    losses: tuple = ()  # the losses of the real steps on the first batch
    rates: tuple = ()  # the learning rates of the optimizers that the first of them asked to step
    gradient: bool = False  # whether one of their parameters had a gradient other than 0 then
    frozen: set = field(default_factory=set)  # the ids of their frozen parameters that had a gradient then
    stale: set = field(default_factory=set)  # the ids of those whose gradient then included that of an earlier batch
    changes: dict = field(default_factory=dict)  # Changes of the optimizers' parameters, by id
    last_rates: tuple = ()  # all learning rates after the last of them
    kept: tuple = ()  # the names of what keeps the graph of each step alive; "" if that is not found
    differs: Differs | None = None  # the largest difference of an item's outputs
    # Inputs without an effect: the keys, the number of items, their loss, and whether a module gets it, or there is no other.
    unused: tuple = ()


def behaviour(given, start, step, stepped, log):
    """Take real steps, and evaluate items alone and in a batch."""
    brain = given.brain
    usual = type(brain)._fit_train is Brain._fit_train and not is_compiled(brain)
    learns = any(id(p) in step.reached for p in parameters_of(step.optimizers))
    able = step.taken and usual and step.finite and learns and start.spare is not None and step.seconds < SLOW
    if log.ranks.size > 1 or not able:  # other processes would wait for this one in a step
        return Behaviour()
    return log.apart("the model's behaviour", brain, SECONDS, _behave, brain, start, step, stepped) or Behaviour()


def _behave(brain, start, step, stepped, log):
    writes, made = [], Behaviour()
    with writes_nothing(writes):
        take_steps(made, brain, start, step, stepped, writes, log)
        if made.losses and all(map(math.isfinite, made.losses)):
            loader = unwrapped(start.train_loader if start.valid_loader is None else start.valid_loader)
            with suppress(Exception), torch.no_grad():
                brain.on_stage_start(Stage.VALID, start.epoch)
            brain.modules.eval()
            items = []
            with suppress(Exception):  # of a loader without batch_sampler, or of an item
                picks = next(iter(loader.batch_sampler))
                items = [loader.dataset[i] for i in picks[:: max(1, len(picks) // ITEMS)][:ITEMS]]
            with suppress(*FAILURES), limited(SLOW):  # of a Brain or a loader that does not take single items
                _compare(made, brain, loader.collate_fn, items)
            if items and any(change.by for change in made.changes.values()):
                with suppress(*FAILURES):
                    made.unused = _unused(brain, start.spare, loader.collate_fn, items, step)
    return made


def _compare(made, brain, collate, items):
    """Compare what items give in evaluation mode, alone, beside others, and padded."""
    if len(items) < 2:
        return

    def run(*items, seed=0, halved=None):
        """The outputs with a row for each item, by their keys, and the calls of modules, with what they take and give."""
        calls, batch = [], collate(copy.deepcopy([*items]))
        if halved:
            setattr(batch, halved, PaddedData(batch[halved].data, batch[halved].lengths / 2))
        seed_all(seed)
        with torch.no_grad(), hooked(brain, after=lambda module, *values: calls.append((module, *map(_first_row, values)))):
            outputs = brain.compute_forward(batch, Stage.VALID)
        found = {".".join(keys): tensor.detach().float() for keys, tensor in tensors([outputs])}
        return {key: t for key, t in found.items() if t.dim() > 1 and len(t) == len(items) and t.isfinite().all()}, calls

    one = min(items, key=_size)
    # A BatchNorm in training mode does not take one item, so it is put beside itself, then beside another one.
    (alone, calls), (two, others) = run(one, one), run(one, _twin(one), seed=1)
    found = _largest(alone, alone, two)
    neighbours = found.share > SEEN
    if not neighbours and len(set(map(_size, items))) > 1:  # else, nothing is ever padded
        (twice, calls), (thrice, others) = run(one, _longer(one, 2)), run(one, _longer(one, 3))
        found = _largest(alone, twice, thrice)
    again, _ = run(one, _twin(one), seed=2) if found.share > SEEN else ({}, ())
    if not again or any(_difference(two[key], again[key]) > ROUNDING for key in two):
        return  # it draws random numbers, or keeps a state
    made.differs = found._replace(neighbours=neighbours, module=_first_that_differs(brain, calls, others))
    for key, value in one.items() if isinstance(one, dict) and not neighbours else ():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and len({len(item[key]) for item in items}) > 1:
            halved, _ = run(one, _longer(one, 2), halved=key)
            if all(_difference(twice[name], halved[name]) < ROUNDING for name in twice):
                made.differs = made.differs._replace(lengths=key)


def _unused(brain, batch, collate, items, step):
    """The inputs without an effect: Behaviour.unused. A layer that begins with zeros may hide them in the first steps."""
    steps, found = whole_steps(brain, batch), ()
    with limited(LONGER * SLOW):
        for _ in range(LONGER):
            brain.modules.eval()
            with torch.no_grad():
                found = _without_effect(brain, collate, items)
            if not found:
                break
            brain.modules.train()
            next(steps)
    hidden = found and any(float(p.detach().abs().max()) < ZERO for p in step.reached.values() if p.numel())
    return () if hidden else found


def _without_effect(brain, collate, items):
    """The inputs that ``compute_forward`` uses, but that can be noise: Behaviour.unused."""
    batch, taken = collate(items), set()

    def evaluate(stage, noisy=None):
        own = copy.deepcopy(batch)
        inputs = {keys: tensor for keys, tensor in tensors(own, every=True) if tensor.dim() > 1}  # others may be lengths
        if noisy:
            _spoil(inputs[noisy])
        seed_all(0)
        uses = _Uses(inputs)

        def note(module, arguments):
            taken.update(uses.keys_of(arguments))

        with uses, hooked(brain, note):
            outputs = brain.compute_forward(own, stage)
        return [brain.compute_objectives(outputs, own, stage), *(tensor for _, tensor in tensors([outputs]))], uses.used

    def without_effect(stage, keys):
        try:
            values, used = evaluate(stage, keys)
        except Exception:
            return False
        # What it does not use now may be in a cache
        return keys in used and len(values) == len(usual) and all(map(torch.equal, values, usual))

    unused = ()
    for stage in (Stage.TRAIN, Stage.VALID):  # an input may be used in one of them
        usual, used = evaluate(stage)
        unused = [keys for keys in (unused or sorted(used)) if usual[0].isfinite() and without_effect(stage, keys)]
        if not unused or not usual[0]:
            return ()
    return tuple((keys, len(items), float(usual[0]), keys in taken or len(unused) == len(used)) for keys in unused)


def _spoil(tensor):
    """Put other values into a tensor: noise, or other ids."""
    if tensor.is_floating_point():
        seed_all(UNUSUAL)  # a script may have made its data with the seed 0
        tensor.normal_()
        return
    other = ~tensor if tensor.dtype == torch.bool else tensor.max() + tensor.min() - tensor
    if len(tensor.unique()) < 2:
        raise ValueError("there are no others")
    tensor.copy_(other)


class _Uses(TorchFunctionMode):
    """Notes the keys of the tensors that are used in a computation."""

    def __init__(self, inputs):
        super().__init__()
        self.used, self.known = set(), {id(tensor): (keys, tensor) for keys, tensor in inputs.items()}

    def keys_of(self, value):
        """Return the keys of the inputs inside a value."""
        return [self.known[id(tensor)][0] for _, tensor in tensors([value], every=True) if id(tensor) in self.known]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        given = self.keys_of([args, kwargs])
        if given and name in PASSED_ON and isinstance(value, torch.Tensor):
            self.known[id(value)] = given[0], value
        elif name not in PASSED_ON + SIZES:
            self.used.update(given)
        return value


def _first_row(value):
    """The first row of the first tensor inside a value, as far as it is compared."""
    tensor = next((tensor for _, tensor in tensors([value]) if tensor.dim() > 1), None)
    return None if tensor is None else tensor.detach()[(slice(1), *[slice(CROP)] * (tensor.dim() - 1))].float().clone()


def _first_that_differs(brain, calls, others):
    """The name of the first module whose output differs although its input does not; "" if that is unknown."""

    def same(one, other):
        return one is None or other is None or _difference(one, other) < SEEN / 10

    for (module, taken, given), (other, its, made) in zip(calls, others):
        if module is not other or not same(given, made):
            names = [name for name, part in parts(brain) if part is module]
            return names[0] if module is other and same(taken, its) and names else ""
    return ""


def _largest(alone, one, other):
    """The largest difference between two outputs of an item, over the size that they have if the item is alone."""
    found = Differs("", 0.0)
    for key in alone.keys() & one.keys() & other.keys():
        cut = (slice(1), *map(slice, alone[key].shape[1:]))
        if alone[key].dim() == one[key].dim() == other[key].dim():
            found = max(found, Differs(key, _difference(one[key][cut], other[key][cut])), key=lambda each: each.share)
    return found


def _twin(item):
    """An item of the same shape: turned round, and louder."""
    return _changed(item, lambda tensor: tensor.flip(0) * 3 if tensor.is_floating_point() else tensor.flip(0))


def _longer(item, times):
    return _changed(item, lambda tensor: torch.cat([tensor] * times) if len(tensor) > 1 else tensor)


def _size(item):
    """How long the tensors of an item are."""
    found = []
    _changed(item, lambda tensor: found.append(len(tensor)))
    return max(found, default=0)


def _changed(value, change):
    """An item with other tensors and arrays."""
    if isinstance(value, dict):
        return {key: _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_changed(inner, change) for inner in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.as_tensor(value)
    return change(value) if isinstance(value, torch.Tensor) and value.dim() else value


def _difference(one, other):
    """How much two outputs differ, as a share of their variation; if they differ in size, their fronts are compared."""
    if one.dim() != other.dim():
        return 0.0
    cut = tuple(slice(n if n == m else (min(n, m) + 1) // 2) for n, m in zip(one.shape, other.shape))
    one, other = one[cut], other[cut]
    by = float((one - other).norm())
    variation = float((one - one.mean()).norm()) if one.numel() > 2 else float(one.norm())
    return by / max(variation, 1e-6 * float(one.norm()), 1e-12) if by else 0.0
