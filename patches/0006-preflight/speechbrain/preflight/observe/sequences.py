"""Reads token sequences: those that losses and embeddings take in the first step, then those of all items.

A key of the batch contains the tokens of a call if its values in the first batch are equal to them.
"""

import inspect
import math
import sys
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torchaudio
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.preflight.observe.given import is_compiled, parts
from speechbrain.preflight.quiet import replaced
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

TRANSDUCER = "transducer_loss"  # SpeechBrain's; it calls log_softmax on its logits, where it can be seen
LENGTHS = ("lengths", "wav_len", "wav_lens")  # arguments of SpeechBrain's modules: relative lengths
SLACK = 2  # frames by which rounding can raise the number of frames above the estimate
CERTAIN = 8  # tokens that are in two keys only if all are
TRUNCATED = 3  # tokens that SpeechBrain's losses cut off, see allowed_len_diff


@dataclass
class TokenCall:
    """A call of a loss over tokens, or of an embedding."""

    name: str  # its name in torch
    ids: Any  # the tokens
    size: int  # the number of outputs or embeddings
    scores: Any = None  # with the classes last; None for an embedding
    options: dict = field(default_factory=dict)  # the other arguments
    weight: Any = None  # the embeddings
    trained: Any = None  # by position, whether the scores got a gradient; None if they got none at all
    # For each embedding that gets the targets shifted by one, the gradient of the first score at later embeddings as a share
    # of the one at the first.
    leaks: list = field(default_factory=list)
    failed: bool = True


@dataclass
class Watched:
    """What takes sequences in the first step."""

    calls: list = field(default_factory=list)
    lengths: dict = field(default_factory=dict)  # by name of a module, the largest of its relative lengths


class Vocabulary(NamedTuple):
    """What a tokenizer or label encoder can decode."""

    ids: Iterable
    unknown: int | None  # the unknown token
    labels: dict


class Taken(NamedTuple):
    """The tokens of a call."""

    call: TokenCall
    key: str | None  # the key of the batch that contains them
    ids: torch.Tensor  # [rows, positions]
    inside: torch.Tensor | None  # which positions are inside the lengths
    names: list  # the id of the item of each row

    @property
    def rows(self):
        """Dict of str to list of int: By item, the tokens inside the lengths."""
        inside = torch.ones_like(self.ids, dtype=torch.bool) if self.inside is None else self.inside
        return {name: row[mask].tolist() for name, row, mask in zip(self.names, self.ids, inside)}


@dataclass(frozen=True)
class Sequences:
    """The token sequences of a run."""

    taken: list = field(default_factory=list)  # what the losses that count, and embeddings, take in the first step
    lengths: dict = field(default_factory=dict)  # by name of a module, the largest of its relative lengths
    # By set and key of the batch, the tokens of each item by its id, and what they are encoded with: a list of Vocabulary.
    rows: dict = field(default_factory=dict)
    vocabularies: dict = field(default_factory=dict)
    # By set and id of an item, its duration; empty unless the lengths in the first batch show that this is right.
    seconds: dict = field(default_factory=dict)
    frames: dict = field(default_factory=dict)  # by number of seconds, the most frames that CTC gets in the first batch

    def most(self, split, name):
        """Return the most frames that CTC can get for an item: inf if unknown."""
        last = self.seconds.get((split, name), math.inf)
        longer = [frames + 1 for seconds, frames in self.frames.items() if seconds >= last]
        rate = max((frames / seconds for seconds, frames in self.frames.items()), default=math.inf)
        return min(rate * last + SLACK, *longer, math.inf)


@contextmanager
def watched_sequences(brain, watched):
    """Record what takes sequences while this context lasts."""
    if is_compiled(brain):
        yield
        return
    rnnt_loss = torchaudio.functional.rnnt_loss

    def noting(*args, **kwargs):
        with suppress(Exception):
            mode.note_transducer(**_bound(rnnt_loss, args, kwargs))
        return rnnt_loss(*args, **kwargs)

    def note_lengths(module, args, kwargs):
        with suppress(Exception):
            given = _bound(module.forward, args, kwargs)
            (lengths,) = [given[key].detach().max() for key in LENGTHS if given.get(key) is not None]
            watched.lengths[names[module]] = torch.maximum(watched.lengths.get(names[module], lengths), lengths)

    names = {module: name for name, module in parts(brain) if type(module).__module__.startswith("speechbrain.")}
    with ExitStack() as stack:
        for module in names:
            if not set(LENGTHS).isdisjoint(inspect.signature(module.forward).parameters):
                stack.callback(module.register_forward_pre_hook(note_lengths, with_kwargs=True).remove)
        stack.enter_context(replaced(torchaudio.functional, "rnnt_loss", noting))
        mode = stack.enter_context(_Calls(watched.calls))
        yield


def _bound(function, args, kwargs):
    bound = inspect.signature(function).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class _Calls(TorchFunctionMode):
    """Records the calls of losses over tokens and of embeddings."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.embedded = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, call, outside = kwargs or {}, None, ()
        with suppress(Exception):  # looking must not fail the step
            if func in (F.nll_loss, F.cross_entropy, F.kl_div, F.ctc_loss, F.embedding):
                call, kwargs = self.note(func, _bound(func, args, kwargs))
                args, outside = (), _outside(call)
            elif func is torch.Tensor.log_softmax:
                frame = sys._getframe(1)
                while frame.f_code.co_name == "__torch_function__":  # of another mode
                    frame = frame.f_back
                if frame.f_code.co_name == TRANSDUCER:
                    self.note_transducer(
                        *map(frame.f_locals.get, ("logits", "targets", "input_lens", "target_lens", "blank_index"))
                    )
        if len(outside):  # on a GPU, the call would stop all others, and CTC may read foreign memory
            raise IndexError(f"token {int(outside[0])} is out of bounds: there are {call.size}")
        value = func(*args, **kwargs)
        if call is not None:
            call.failed = False
            if func is F.embedding and value.requires_grad and call.ids.dim() == 2:
                self.embedded.append((call.ids, value))
        return value

    def note(self, func, given):
        """Note a call; returns it, and its arguments."""
        if func is F.embedding:
            self.calls.append(TokenCall("embedding", given["input"].detach(), len(given["weight"]), weight=given["weight"]))
            return self.calls[-1], given
        name, key = ("log_probs", "targets") if func is F.ctc_loss else ("input", "target")
        scores, ids = given[name], _ids(given[key])
        alias = scores.view_as(scores)  # its gradient is that of this loss only
        last = (lambda tensor: tensor) if func is F.ctc_loss or scores.dim() < 3 else (lambda tensor: tensor.movedim(1, -1))
        options = {option: value for option, value in given.items() if option not in (name, key)}
        call = TokenCall(func.__name__, ids, last(scores).shape[-1], last(scores.detach()), options)
        if scores.requires_grad:
            alias.register_hook(lambda gradient: setattr(call, "trained", last(gradient).ne(0).any(-1)))
            if func is not F.ctc_loss:
                call.leaks = [leak for ids, value in self.embedded for leak in _leaks(call, last(scores), ids, value)]
        self.calls.append(call)
        return call, {**given, name: alias}

    def note_transducer(self, logits, targets, logit_lengths, target_lengths, blank=-1, **_):
        options = {"input_lengths": logit_lengths, "target_lengths": target_lengths, "blank": blank % logits.shape[-1]}
        call = TokenCall(TRANSDUCER, targets.detach(), logits.shape[-1], logits.detach(), options, failed=False)
        self.calls.append(call)


def _outside(call):
    """The tokens of a call that are too large."""
    taken = _taken(call, None, [])
    ids = taken.ids if taken.inside is None else taken.ids[taken.inside]
    ids = ids[(ids < 0) | (ids >= call.size)]
    return ids[ids != call.options["ignore_index"]] if "ignore_index" in call.options else ids


def _ids(target):
    """The tokens of a loss' target, which may be a distribution with one or two values, as of label smoothing."""
    target = target.detach()
    if not target.is_floating_point():
        return target
    if target.dim() == 2 and target.shape[1] > 2 and (target.sort(1).values[:, -2] == target[:, :2].min(1).values).all():
        return target.argmax(1)
    raise TypeError("another distribution")


def _leaks(call, scores, ids, embedded):
    """Yield how much of a target the model sees: TokenCall.leaks."""
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


def sequences(seen):
    """Read the token sequences of the training and the validation set."""
    given, batch, step, columns = seen.given, seen.start.batch, seen.step, seen.labels.columns
    pipeline = getattr(given.sets.get("train"), "pipeline", None)
    keys = [*pipeline.output_mapping] if pipeline is not None and batch is not None else []
    calls = [call for call in step.sequences.calls if call.ids.numel() > 1]
    counts = [call.trained is not None or call.failed or call.name in ("embedding", TRANSDUCER) for call in calls]
    taken = [_taken(call, batch, keys) for call, count in zip(calls, counts) if count]
    vocabularies = {key: [*map(_vocabulary, column.encoders + column.tokenizers)] for key, column in columns.items()}
    rows = {key: _rows(columns[key]) for key in columns if key[1] in {one.key for one in taken}}
    seconds, drawn = _seconds(given, batch, keys, seen.clips)
    lengths = {name: float(value) for name, value in step.sequences.lengths.items()}
    return Sequences(taken, lengths, rows, vocabularies, seconds, _frames(given, drawn, taken))


def _name(items, i):
    return str(items.static(i).get("id", i))


def _rows(column):
    """The tokens of the items by their ids."""
    return {_name(column.items, i): value for i, value in enumerate(column.values) if isinstance(value, tuple)}


def _vocabulary(encoder):
    if hasattr(encoder, "get_piece_size"):
        return Vocabulary(range(encoder.get_piece_size()), encoder.unk_id(), {})
    if hasattr(encoder, "unk_token_id"):  # of the package transformers
        return Vocabulary(range(len(encoder)), encoder.unk_token_id, {})
    unknown = encoder.lab2ind.get(encoder.unk_label) if hasattr(encoder, "unk_label") else None
    return Vocabulary(encoder.ind2lab, unknown, encoder.lab2ind)


def _taken(call, batch, keys):
    """Find the tokens of a call in the batch."""
    ids, lengths = call.ids.cpu(), call.options.get("target_lengths")
    inside = None
    if lengths is not None:
        lengths = torch.as_tensor(lengths).cpu().long().reshape(-1)
        if ids.dim() == 1 and lengths.sum() == len(ids):
            ids = pad_sequence(ids.split(lengths.tolist()), batch_first=True)
        if ids.dim() == 2:
            inside = torch.arange(ids.shape[1]) < lengths[:, None]
    masked = 0 if call.name == "kl_div" else call.options.get("ignore_index")
    placed = {key: _placed(ids, inside, masked, *_sequences_of(batch, key)) for key in keys}
    found = [(key, *place) for key, place in placed.items() if place]
    if len(found) == 1 or (found and found[0][2].sum() >= CERTAIN):  # few tokens may be equal by accident
        key, ids, inside = found[0]
    else:
        key, ids, inside = None, ids if ids.dim() == 2 else ids.reshape(1, -1), inside if ids.dim() == 2 else None
    names = getattr(batch, "id", None)
    if not isinstance(names, list) or not names or len(ids) % len(names):
        names = [f"row {i}" for i in range(len(ids))]
    return Taken(call, key, ids, inside, [str(names[i % len(names)]) for i in range(len(ids))])


def _sequences_of(batch, key):
    """The values of a key in a batch, [items, positions], and their lengths; None if they are something else."""
    value = None
    with suppress(Exception):  # a batch of another kind
        value = batch[key]
    data, lengths = getattr(value, "data", value), getattr(value, "lengths", None)
    if not isinstance(data, torch.Tensor) or data.dim() != 2 or data.shape[1] < 2:
        return None, None
    if not isinstance(lengths, torch.Tensor):
        lengths = torch.ones(len(data))
    return data.cpu(), (lengths.cpu() * data.shape[1]).round().long()


def _placed(ids, inside, masked, data, lengths):
    """The tokens, [rows, positions], and which are inside the lengths, if they are a key's values.

    Augmentation may have repeated them, and a loss cut off the last ones or masked one token.
    """
    if data is None or data.is_floating_point():
        return None
    for width in range(data.shape[1], max(1, data.shape[1] - TRUNCATED - 1), -1):
        times, left = divmod(ids.numel(), len(data) * width)
        if times and not left:
            rows, cut = ids.reshape(-1, width), data[:, :width].repeat(times, 1)
            within = (torch.arange(width) < lengths[:, None]).repeat(times, 1)
            differ = (rows != cut) & within
            same = {*rows[differ].tolist()} <= {masked} and len(cut[differ].unique()) < 2
            if same and (inside is None or torch.equal(within, inside)):
                return cut, within
    return None


def _seconds(given, batch, keys, clips):
    """The duration of each item, and of those of the first batch, if the lengths of a key in it show that they are right."""
    known = [(items, *item) for items in given.sets.values() for item in clips.seconds(items)[0].items()]
    seconds = {(items.split, _name(items, i)): duration for items, i, duration in known}
    ids = getattr(batch, "id", None)
    drawn = [seconds.get(("train", str(name)), 0.0) for name in ids] if isinstance(ids, list) else []
    rates = {header.rate for header in clips.headers.values()} | {given.hparams.get("sample_rate")}
    for lengths in [_sequences_of(batch, key)[1] for key in keys] if all(drawn) else ():
        for rate in filter(None, rates) if lengths is not None and len(lengths) == len(drawn) else ():
            if all(abs(int(samples) - last * rate) <= 2 for samples, last in zip(lengths, drawn)):
                return seconds, drawn
    return {}, []


def _frames(given, drawn, taken):
    """By number of seconds, the most frames that CTC gets for so much audio, in the first batch."""
    speeds = [part.speeds for _, part in parts(given.brain) if isinstance(part, SpeedPerturb)]
    stretch = max((max(each) / min(each) for each in speeds), default=1.0)
    found = {}
    for call in [one.call for one in taken if drawn and one.call.name == "ctc_loss"]:
        frames = torch.as_tensor(call.options["input_lengths"]).reshape(-1).tolist()
        for last, count in zip(drawn * (len(frames) // len(drawn)), frames) if len(frames) % len(drawn) == 0 else ():
            found[last] = max(found.get(last, 0.0), count * stretch)
    return found
