"""Takes the first training step, without changing a weight."""

import inspect
import math
import re
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.core import Brain
from speechbrain.nnet.losses import AngularMargin
from speechbrain.preflight.observe import weights
from speechbrain.preflight.observe.given import is_compiled
from speechbrain.preflight.observe.items import LOSSES as SPEECHBRAIN
from speechbrain.preflight.observe.items import Watch, note_slope
from speechbrain.preflight.observe.not_finite import Origin, first_nan, watched_modules
from speechbrain.preflight.observe.sequences import Watched, watched_sequences
from speechbrain.preflight.observe.start import parameters_of
from speechbrain.preflight.observe.weights import COUNTS, STATISTICS
from speechbrain.preflight.quiet import alone, replaced
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

try:
    import resource
except ImportError:  # on Windows
    resource = None

RESHAPING = re.compile("(Unsafe)?(View|Reshape|Squeeze|Unsqueeze|Transpose|Permute|Slice|Select|Alias|Expand|ToCopy|Clone)")
LOSSES = {
    getattr(torch.nn.functional, name): name
    for name in dir(torch.nn.functional)
    if name.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div"))
}


class Stopped(BaseException):
    """Leaves fit_batch after the first backward; a BaseException, so that a script's ``except Exception`` cannot catch it."""


@dataclass
class LossCall:
    """A call of a loss function of torch or SpeechBrain, whose value is part of what is minimized."""

    name: str  # the function's name in ``torch.nn.functional``; with its module, or that of its class, for SpeechBrain's
    input: Any  # its first two arguments, detached
    target: Any
    # Its other arguments by name, including defaults: ``ignore_index``, ``reduction``.
    options: dict = field(default_factory=dict)
    value: Any = None  # its return value, detached; None if the call failed
    nodes: set = field(default_factory=set)  # what the call adds to the graph
    slope: Any = None  # the gradient of what is minimized at the value
    made_by: str = ""  # the operation that made its first argument, apart from changes of shape: ``SigmoidBackward0``


class Backward(NamedTuple):
    """A backward pass.

    The value of the loss, whether all gradients are zero after it, whether the loss depends on no parameter, but was made to
    require a gradient, and the nodes of its graph.
    """

    value: float
    flat: bool
    by_hand: bool
    nodes: set


@dataclass(frozen=True)
class FirstStep:
    """What happens in the first step."""

    custom: bool = False  # whether the Brain has its own ``fit_batch``
    frozen: frozenset = frozenset()  # the ids of the parameters that were frozen when the step began
    optimizers: dict = field(default_factory=dict)  # all optimizers that the Brain has, or that stepped
    taken: bool = False  # whether the step succeeded, as far as the preflight takes it
    # The calls of loss functions that count: that are in the graph of a backward pass, or made the step fail.
    losses: list = field(default_factory=list)
    norm_inputs: dict = field(default_factory=dict)  # the shape of each BatchNorm's first input, by the module's name
    backwards: list = field(default_factory=list)  # the backward passes
    reached: dict = field(default_factory=dict)  # the parameters that got a gradient, by id
    # By the name of a layer's weight whose values are all equal, whether all its units got the same gradient.
    identical: dict = field(default_factory=dict)
    moved: set = field(default_factory=set)  # the names of the modules whose running statistics changed
    resampled: list = field(default_factory=list)  # the rates from which something was resampled; None for an unknown rate
    augmented: list = field(default_factory=list)  # the calls of Augmenters: the Augmenter, items before it and after it
    error: str = ""  # what it raised
    ran: dict = field(default_factory=dict)  # by id of a module that ran, whether it did so with gradients
    origin: Origin | None = None  # if the loss is NaN, where NaN appears first; None if no module gets or returns NaN
    sequences: Watched = field(default_factory=Watched)  # what takes sequences
    returned: list = field(default_factory=list)  # what the Brain's own ``fit_batch`` returned
    seconds: float = 0.0  # how long it took
    memory: int = 0  # the peak of the memory at its end, in bytes: allocated on a GPU, else resident; 0 if unknown


def first_step(given, start, stepped, log):
    """Take the first step with the Brain's own ``fit_batch``."""
    brain, modules = given.brain, given.modules
    known = [*modules.parameters(), *parameters_of(start.optimizers)]
    frozen = frozenset(id(p) for p in known if not p.requires_grad)
    step = FirstStep(type(brain).fit_batch is not Brain.fit_batch, frozen, {**start.optimizers})
    if start.ready:
        before, clock = _statistics(modules), perf_counter()
        well, origin = log.attempt("first-step-failed", _take, brain, modules, start, step, known, log)
        seconds, memory, after = perf_counter() - clock, peak(brain.device), _statistics(modules)
        step.moved.update(name for name, values in after.items() if _differ(before.get(name, ()), values))
        error = "".join(finding.what for finding in log.findings if finding.code == "first-step-failed")
        taken, losses = well and start.batch is not None, _counted(step)
        step = replace(step, taken=taken, losses=losses, origin=origin, error=error, seconds=seconds, memory=memory)
    for optimizer in stepped:
        if not any(optimizer is other for other in step.optimizers.values()):
            step.optimizers[f"{type(optimizer).__name__} {len(step.optimizers) + 1}"] = optimizer
    return step


def _take(brain, modules, start, step, known, log):
    """Take the step, and record it; returns the Origin of a NaN."""
    real_backward = torch.autograd.backward

    def backward(tensors, *args, **kwargs):
        outputs = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        nodes = graph(outputs)
        leaves = [*_leaves(outputs, nodes)]
        parameters = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
        if step.custom or any(output.requires_grad for output in outputs):
            real_backward(tensors, *args, **kwargs)
        step.reached.update((id(p), p) for p in chain(known, parameters) if p.grad is not None)
        value = float(sum(output.detach().float().sum() for output in outputs)) / brain.scaler.get_scale()
        flat = value == 0 and not any(p.grad.any() for p in step.reached.values() if p.grad is not None)
        step.backwards.append(Backward(value, flat, bool(leaves) and not parameters, nodes))
        step.identical.update(log.guarded("gradients", weights.identical_units, start.weights) or {})
        if not step.custom:
            raise Stopped

    def note_input(name):
        def note(module, args):
            if args:
                step.norm_inputs.setdefault(name, args[0].shape)

        return note

    def note_mode(module, args):
        step.ran[id(module)] = step.ran.get(id(module), False) or torch.is_grad_enabled()

    if start.batch is None:
        return
    with ExitStack() as stack:
        for name, module in modules.named_modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(note_input(name)).remove)
        stack.enter_context(replaced(torch.autograd, "backward", backward))
        stack.enter_context(alone(brain))
        brain.step += 1
        calls = stack.enter_context(watched_modules(brain))
        if not is_compiled(brain):
            stack.callback(register_module_forward_pre_hook(note_mode).remove)
        stack.enter_context(watched_sequences(brain, step.sequences))
        try:
            with Watch() as watch, _Losses(step.losses), suppress(Stopped):
                step.returned.append(brain.fit_batch(start.batch))
        finally:
            step.resampled.extend(watch.resampled)
            log.guarded("losses", _note, step, [call for call in watch.calls if call.value is not None])
        if any(math.isnan(backward.value) for backward in step.backwards):
            return log.guarded("NaN", first_nan, brain, calls)


class _Losses(TorchFunctionMode):
    """Records the calls of torch's loss functions."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in LOSSES:
            return func(*args, **(kwargs or {}))
        bound = inspect.signature(func).bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = [item.detach() if isinstance(item, torch.Tensor) else item for item in bound.arguments.values()]
        names = list(bound.arguments)
        call = LossCall(LOSSES[func], *given[:2], dict(zip(names[2:], given[2:])), made_by=_made_by(next(iter(bound.args))))
        self.calls.append(call)  # before the call, which fails for a label that is not a class
        value = func(*args, **(kwargs or {}))
        value = value.clone() if value._is_view() else value  # a change in place would lose the hook of a view
        # Several nodes, because a change of the value in place may take the last one out of the graph.
        arguments = [item.grad_fn for item in bound.arguments.values() if isinstance(item, torch.Tensor)]
        call.value = value.detach()
        call.nodes = {node for node in graph([value], arguments) if not hasattr(node, "variable")}
        note_slope(call, value)
        return value


def _made_by(tensor):
    node = tensor.grad_fn if isinstance(tensor, torch.Tensor) else None
    while node is not None and RESHAPING.match(node.name()):
        node = node.next_functions[0][0]
    return node.name() if node else ""


def _note(step, calls):
    """Note the calls of SpeechBrain's losses that a rule needs, and those of Augmenters."""
    for call in reversed(calls):
        given, owner = call.given, call.given.get("self")
        if isinstance(owner, Augmenter):
            step.augmented.append((owner, len(given["x"]), len(call.value[0])))
        elif owner is None or isinstance(owner, AngularMargin):
            name = f"{SPEECHBRAIN}.{call.name}" if owner is None else type(owner).__name__
            one, other = [value.detach() for value in given.values() if isinstance(value, torch.Tensor)][:2]
            options = {key: value for key, value in given.items() if isinstance(value, float)}
            options.update(margin=getattr(owner, "margin", 0.0))
            found = LossCall(name, one, other, options, call.value.detach(), {call.value.grad_fn}, call.slope)
            step.losses.insert(0, found)  # before the last call, which may have failed


def _counted(step):
    """The calls of losses that count: others are metrics."""
    nodes = set().union(*(backward.nodes for backward in step.backwards))
    failed = [call for call in step.losses[-1:] if call.value is None and not step.backwards]
    return [call for call in step.losses if call.nodes & nodes] or failed


def graph(tensors, without=()):
    """The nodes of the graph of tensors, up to some others."""
    todo, known = [tensor.grad_fn for tensor in tensors], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in known and node not in without:
            known.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return known


def _leaves(tensors, nodes):
    """The leaves of a graph that require a gradient."""
    yield from (tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf)
    variables = (getattr(node, "variable", None) for node in nodes)
    yield from (leaf for leaf in variables if isinstance(leaf, torch.Tensor))


def peak(device):
    """The peak of the memory so far, in bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else 0


def _statistics(modules):
    """By name of a module, its running statistics, each with a counter of writes to the tensor."""
    found = {}
    for name, module in modules.named_modules():
        own = {**module._buffers, **module.__dict__}
        tensors = [own[key] for key in STATISTICS + COUNTS if isinstance(own.get(key), torch.Tensor)]
        if any(key in own for key in STATISTICS):
            found[name] = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    return found


def _differ(old, new):
    return len(old) != len(new) or any(a is not b or v != w for (a, v), (b, w) in zip(new, old))
