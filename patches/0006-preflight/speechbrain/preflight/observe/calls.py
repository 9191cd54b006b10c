"""Records the calls of losses and embeddings while the first step is taken, and the lengths that modules get."""

import inspect
import re
import sys
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torchaudio
from speechbrain.preflight.observe.given import is_compiled, parts
from speechbrain.preflight.observe.items import note_slope
from speechbrain.preflight.quiet import noted
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

NAMES = [name for name in dir(F) if name.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div"))]
LOSSES = {getattr(F, name): name for name in NAMES}
OVER_TOKENS = (F.nll_loss, F.cross_entropy, F.kl_div, F.ctc_loss)
TRANSDUCER = "transducer_loss"  # SpeechBrain's; it calls log_softmax on its logits, where it can be seen
LENGTHS = ("lengths", "wav_len", "wav_lens")  # arguments of SpeechBrain's modules: relative lengths
RESHAPING = re.compile("(Unsafe)?(View|Reshape|Squeeze|Unsqueeze|Transpose|Permute|Slice|Select|Alias|Expand|ToCopy|Clone)")


@dataclass
class Call:
    """A call of a loss function of torch or SpeechBrain, or of an embedding."""

    name: str  # the function's name in ``torch.nn.functional``; with its module, or that of its class, for SpeechBrain's
    input: Any  # its first two arguments, detached; an embedding has no target
    target: Any = None
    # Its other arguments by name, including defaults: ``ignore_index``, ``reduction``.
    options: dict = field(default_factory=dict)
    value: Any = None  # its return value, detached; None if the call failed
    nodes: set = field(default_factory=set)  # what the call adds to the graph
    slope: Any = None  # the gradient of what is minimized at the value
    made_by: str = ""  # the operation that made its first argument, apart from changes of shape: ``SigmoidBackward0``
    ids: Any = None  # the tokens; None if it is not over tokens
    size: int = 0  # the number of outputs or embeddings
    scores: Any = None  # with the classes last; None for an embedding
    weight: Any = None  # the embeddings
    trained: Any = None  # by position, whether the scores got a gradient; None if they got none at all
    # For each embedding that gets the targets shifted by one, the gradient of the first score at later embeddings as a share
    # of the one at the first.
    leaks: list = field(default_factory=list)

    def rows(self):
        """Return the tokens, if possible as [rows, positions], and which are inside the lengths; None if these are unknown."""
        ids, lengths, inside = self.ids.cpu(), self.options.get("target_lengths"), None
        if lengths is not None:
            lengths = torch.as_tensor(lengths).cpu().long().reshape(-1)
            if ids.dim() == 1 and lengths.sum() == len(ids):
                ids = pad_sequence(ids.split(lengths.tolist()), batch_first=True)
            if ids.dim() == 2:
                inside = torch.arange(ids.shape[1]) < lengths[:, None]
        return ids, inside

    def outside(self):
        """Return the tokens that are not an output or an embedding."""
        ids, inside = self.rows()
        ids = ids if inside is None else ids[inside]
        ids = ids[(ids < 0) | (ids >= self.size)]
        return ids[ids != self.options["ignore_index"]] if "ignore_index" in self.options else ids


@contextmanager
def watched_calls(brain, calls, lengths):
    """Record calls, and by name of a module the largest of its relative lengths, while this context lasts."""
    rnnt_loss, compiled = torchaudio.functional.rnnt_loss, is_compiled(brain)
    owned = {} if compiled else {module: name for name, module in parts(brain)}
    names = {module: name for module, name in owned.items() if type(module).__module__.startswith("speechbrain.")}

    def note_transducer(*args, **kwargs):
        with suppress(Exception):
            mode.note_transducer(**_bound(rnnt_loss, args, kwargs))

    def note_lengths(module, args, kwargs):
        with suppress(Exception):
            given = _bound(module.forward, args, kwargs)
            (longest,) = [given[key].detach().max() for key in LENGTHS if given.get(key) is not None]
            lengths[names[module]] = torch.maximum(lengths.get(names[module], longest), longest)

    with ExitStack() as stack:
        for module in names:
            if not set(LENGTHS).isdisjoint(inspect.signature(module.forward).parameters):
                stack.callback(module.register_forward_pre_hook(note_lengths, with_kwargs=True).remove)
        stack.enter_context(noted(torchaudio.functional, "rnnt_loss", note_transducer))
        mode = stack.enter_context(_Calls(calls, compiled))
        yield


def _bound(function, args, kwargs):
    bound = inspect.signature(function).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class _Calls(TorchFunctionMode):
    """Records the calls of losses and embeddings; only those of losses if modules are compiled."""

    def __init__(self, calls, compiled):
        super().__init__()
        self.calls, self.embedded, self.compiled = calls, [], compiled

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, call, outside = kwargs or {}, None, ()
        with suppress(Exception):  # looking must not fail the step
            if func in LOSSES or (func is F.embedding and not self.compiled):
                call, kwargs, args = *self.note(func, _bound(func, args, kwargs)), ()
                outside = call.outside() if call.ids is not None else ()
            elif func is torch.Tensor.log_softmax and not self.compiled:
                frame = sys._getframe(1)
                while frame.f_code.co_name == "__torch_function__":  # of another mode
                    frame = frame.f_back
                if frame.f_code.co_name == TRANSDUCER:
                    names = ("logits", "targets", "input_lens", "target_lens", "blank_index")
                    self.note_transducer(*map(frame.f_locals.get, names))
        _refuse(outside, call)
        value = func(*args, **kwargs)
        if call is None:
            return value
        if func is F.embedding:
            call.value = value.detach()
            if value.requires_grad and call.ids.dim() == 2:
                self.embedded.append((call.ids, value))
            return value
        value = value.clone() if value._is_view() else value  # a change in place would lose the hook of a view
        # Several nodes, because a change of the value in place may take the last one out of the graph.
        arguments = [item.grad_fn for item in kwargs.values() if isinstance(item, torch.Tensor)]
        call.value = value.detach()
        call.nodes = {node for node in graph([value], arguments) if not hasattr(node, "variable")}
        note_slope(call, value)
        return value

    def note(self, func, given):
        """Note a call; returns it, and its arguments."""
        call, (name, scores), *_ = _call(func, given, not self.compiled), *given.items()
        self.calls.append(call)
        if call.scores is None or not scores.requires_grad:
            return call, given
        alias = scores.view_as(scores)  # its gradient is that of this loss only
        alias.register_hook(lambda gradient: setattr(call, "trained", _classes_last(func, gradient).ne(0).any(-1)))
        if func is not F.ctc_loss:
            last = _classes_last(func, scores)
            with suppress(Exception):
                call.leaks = [leak for ids, value in self.embedded for leak in _leaks(call, last, ids, value)]
        return call, {**given, name: alias}

    def note_transducer(self, logits, targets, logit_lengths, target_lengths, blank=-1, **_):
        """Note a call of a transducer's loss."""
        options = {"input_lengths": logit_lengths, "target_lengths": target_lengths, "blank": blank % logits.shape[-1]}
        logits, ids = logits.detach(), targets.detach()
        self.calls.append(Call(TRANSDUCER, logits, None, options, ids=ids, size=logits.shape[-1], scores=logits))


class _Inside(TorchFunctionMode):
    """Refuses tokens that a loss or an embedding does not have."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call, outside = None, ()
        if func in OVER_TOKENS or func is F.embedding:
            with suppress(Exception):
                call = _call(func, _bound(func, args, kwargs or {}))
                outside = call.outside()
        _refuse(outside, call)
        return func(*args, **(kwargs or {}))


def tokens_inside(brain):
    """On a GPU, refuse tokens that a loss or an embedding does not have, because they would end all use of it."""
    on_gpu = torch.device(brain.device).type == "cuda"
    return _Inside() if on_gpu and not is_compiled(brain) else nullcontext()


def _refuse(outside, call):
    if len(outside):  # CTC may read foreign memory
        raise IndexError(f"token {int(outside[0])} is out of bounds: there are {call.size}")


def _call(func, given, over_tokens=True):
    """A call that was not made yet."""
    first, second, *_ = given.values()
    if func is F.embedding:
        return Call("embedding", first, ids=first.detach(), size=len(second), weight=second)
    options = {name: _detached(value) for name, value in [*given.items()][2:]}
    call = Call(LOSSES[func], _detached(first), _detached(second), options, made_by=_made_by(first))
    if func in OVER_TOKENS and over_tokens:
        with suppress(Exception):
            call.ids, call.scores = _ids(call.target), _classes_last(func, call.input)
            call.size = call.scores.shape[-1]
    return call


def _classes_last(func, scores):
    return scores if func is F.ctc_loss or scores.dim() < 3 else scores.movedim(1, -1)


def _detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def _made_by(tensor):
    node = tensor.grad_fn if isinstance(tensor, torch.Tensor) else None
    while node is not None and RESHAPING.match(node.name()):
        node = node.next_functions[0][0]
    return node.name() if node else ""


def graph(tensors, without=()):
    """The nodes of the graph of tensors, up to some others."""
    todo, known = [tensor.grad_fn for tensor in tensors], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in known and node not in without:
            known.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return known


def _ids(target):
    """The tokens of a loss' target, which may be a distribution with one or two values, as of label smoothing."""
    target = target.detach()
    if not target.is_floating_point():
        return target
    if target.dim() == 2 and target.shape[1] > 2 and (target.sort(1).values[:, -2] == target[:, :2].min(1).values).all():
        return target.argmax(1)
    raise TypeError("another distribution")


def _leaks(call, scores, ids, embedded):
    """Yield how much of a target the model sees: Call.leaks."""
    if call.ids.numel() != ids.numel() or ids.shape[1] < 3 or not scores.requires_grad:
        return
    targets = call.ids.reshape(ids.shape)
    first = targets[:, :1].clamp(0, call.size - 1)
    shifted = (ids[:, 1] == targets[:, 0]).float().mean() > 0.9 and (ids[:, 1:] == targets[:, :-1]).float().mean() > 0.5
    if not shifted or (ids == targets).float().mean() > 0.5:
        return
    score = scores.reshape(*ids.shape, -1)[:, 0].gather(1, first.long()).sum()
    try:
        (gradient,) = torch.autograd.grad(score, embedded, retain_graph=True, allow_unused=True)
    except RuntimeError:  # of a function that allows only one backward pass
        return
    if gradient is not None:
        own, later = gradient[:, 0].abs().max(), gradient[:, 1:].abs().max()
        yield float(later / own.clamp(min=1e-20))
