"""Takes the first training step, without changing a weight."""

import math
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter
from typing import NamedTuple

import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.core import Brain
from speechbrain.nnet.losses import AngularMargin
from speechbrain.preflight.observe import weights
from speechbrain.preflight.observe.calls import Call, graph, watched_calls
from speechbrain.preflight.observe.given import hooked
from speechbrain.preflight.observe.items import LOSSES as SPEECHBRAIN
from speechbrain.preflight.observe.items import Watch
from speechbrain.preflight.observe.kept import Graphs
from speechbrain.preflight.observe.not_finite import Origin, first_nan, watched_modules
from speechbrain.preflight.observe.resume import equal, state
from speechbrain.preflight.observe.start import parameters_of
from speechbrain.preflight.observe.weights import COUNTS, STATISTICS
from speechbrain.preflight.quiet import alone, replaced
from torch.nn.modules.batchnorm import _BatchNorm

try:
    import resource
except ImportError:  # on Windows
    resource = None


class Stopped(BaseException):
    """Leaves fit_batch after the first backward; a BaseException, so that a script's ``except Exception`` cannot catch it."""


class Backward(NamedTuple):
    """A backward pass."""

    value: float  # of the loss
    flat: bool  # whether all gradients are zero after it
    by_hand: bool  # whether the loss depends on no parameter, but was made to require a gradient
    nodes: set  # of the graph


@dataclass
class FirstStep:
    """What happens in the first step."""

    custom: bool = False  # whether the Brain has its own ``fit_batch``
    frozen: frozenset = frozenset()  # the ids of the parameters that were frozen when the step began
    optimizers: dict = field(default_factory=dict)  # all optimizers that the Brain has, or that stepped
    taken: bool = False  # whether the step succeeded, as far as the preflight takes it
    calls: list = field(default_factory=list)  # the calls of loss functions and embeddings
    losses: list = field(default_factory=list)  # the losses among them that are in the graph of a backward pass, or failed
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
    graphs: Graphs = field(default_factory=Graphs)  # those of this step and of the later ones
    lengths: dict = field(default_factory=dict)  # by name of a module, the largest of its relative lengths
    returned: list = field(default_factory=list)  # what the Brain's own ``fit_batch`` returned
    seconds: float = 0.0  # how long it took
    memory: int = 0  # the peak of the memory at its end, in bytes: allocated on a GPU, else resident; 0 if unknown

    @property
    def finite(self):
        """bool: Whether all losses that were minimized are finite."""
        return all(math.isfinite(backward.value) for backward in self.backwards)


def first_step(given, start, stepped, log):
    """Take the first step with the Brain's own ``fit_batch``."""
    brain, modules = given.brain, given.modules
    known = [*modules.parameters(), *parameters_of(start.optimizers)]
    frozen = frozenset(id(p) for p in known if not p.requires_grad)
    step = FirstStep(type(brain).fit_batch is not Brain.fit_batch, frozen, {**start.optimizers})
    if start.ready:
        before, clock = statistics(modules.named_modules()), perf_counter()
        well, _ = log.attempt("first-step-failed", _take, brain, modules, start, step, known, log)
        step.seconds, step.memory, after = perf_counter() - clock, peak(brain.device), statistics(modules.named_modules())
        step.moved = {name for name in after if not equal(before.get(name), after[name])}
        step.error = "".join(finding.what for finding in log.findings if finding.code == "first-step-failed")
        step.taken, step.losses = well and start.batch is not None, _counted(step)
    for optimizer in stepped:
        if not any(optimizer is other for other in step.optimizers.values()):
            step.optimizers[f"{type(optimizer).__name__} {len(step.optimizers) + 1}"] = optimizer
    return step


def _take(brain, modules, start, step, known, log):
    """Take the step, and record it."""
    real_backward = torch.autograd.backward

    def backward(tensors, *args, **kwargs):
        outputs = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        nodes = graph(outputs)
        step.graphs.mark(outputs, 0)
        leaves = [*_leaves(outputs, nodes)]
        parameters = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
        if step.custom or any(output.requires_grad for output in outputs):
            real_backward(tensors, *args, **kwargs)
        step.reached.update((id(p), p) for p in chain(known, parameters) if p.grad is not None)
        # A hook may have taken a step with the gradient, and cleared it.
        step.reached.update((id(p), p) for p in parameters if getattr(p, "_post_accumulate_grad_hooks", None))
        value = float(sum(output.detach().float().sum() for output in outputs)) / brain.scaler.get_scale()
        flat = value == 0 and not any(p.grad.any() for p in step.reached.values() if p.grad is not None)
        step.backwards.append(Backward(value, flat, bool(leaves) and not parameters, nodes))
        step.identical.update(log.guarded("gradients", weights.identical_units, start.weights) or {})
        if not step.custom:
            raise Stopped

    def note_input(module, args):
        if args:
            step.norm_inputs.setdefault(norms[module], args[0].shape)

    def note_mode(module, args):
        step.ran[id(module)] = step.ran.get(id(module), False) or torch.is_grad_enabled()

    if start.batch is None:
        return
    norms = {module: name for name, module in modules.named_modules() if isinstance(module, _BatchNorm)}
    with ExitStack() as stack:
        for module in norms:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(note_input).remove)
        stack.enter_context(replaced(torch.autograd, "backward", backward))
        stack.enter_context(alone(brain))
        brain.step += 1
        seen = stack.enter_context(watched_modules(brain))
        stack.enter_context(hooked(brain, note_mode))
        stack.enter_context(watched_calls(brain, step.calls, step.lengths))
        try:
            with Watch() as watch, suppress(Stopped):
                step.returned.append(brain.fit_batch(start.batch))
        finally:
            step.resampled = watch.resampled
            log.guarded("losses", _note, step, [call for call in watch.calls if call.value is not None])
        if any(math.isnan(backward.value) for backward in step.backwards):
            step.origin = log.guarded("NaN", first_nan, brain, seen)


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
            found = Call(name, one, other, options, call.value.detach(), {call.value.grad_fn}, call.slope)
            step.calls.insert(0, found)  # before the last call, which may have failed


def _counted(step):
    """The calls of losses that count: others are metrics."""
    nodes = set().union(*(backward.nodes for backward in step.backwards))
    failed = [call for call in step.calls[-1:] if call.value is None and call.target is not None and not step.backwards]
    counted = [call for call in step.calls if call.nodes & nodes] or failed
    for noted in (*step.calls, *step.backwards):
        noted.nodes.clear()  # a hook of the graph holds the call, so that neither would ever be freed
    return counted


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


def statistics(modules):
    """By name of a module, the state of its running statistics."""
    found = {}
    for name, module in modules:
        own = {**module._buffers, **module.__dict__}
        if any(key in own for key in STATISTICS):
            found[name] = state([own.get(key) for key in STATISTICS + COUNTS])
    return found
