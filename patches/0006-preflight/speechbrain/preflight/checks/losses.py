"""Checks the first loss: its input, its value, and where NaN comes from."""

import math
import re

import torch
from speechbrain.preflight.observe.items import SIGNED
from speechbrain.preflight.report import Finding, some

CODES = {
    "nll-without-log-softmax": "nll_loss gets values that are not log-probabilities, so it can fall without limit",
    "cross-entropy-on-probabilities": "cross_entropy gets probabilities, and applies a second softmax to them",
    "bce-on-probabilities": "binary_cross_entropy_with_logits gets probabilities, and applies a second sigmoid to them",
    "loss-broadcast": "the input and the target of a loss have different shapes, so it compares each item with all others",
    "loss-of-itself": "the input and the target of a loss are the same tensor",
    "loss-maximized": "training minimizes the negative of a loss, so the loss grows",
    "margin-without-cosine": "an angular margin gets values that are not cosines",
    "smoothing-strong": "label smoothing is 0.9 or more",
    "batch-not-finite": "the first loss is NaN or infinite, and so are values in the first batch as it was loaded",
    "output-not-finite": "the first loss is NaN, although the weights and the first batch are finite",
    "first-loss": "the first loss is 0, NaN or infinite; a classifier's is negative, or above ln(number of classes) + 20",
}

ELEMENTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
MARGINS = ("AngularMargin", "AdditiveAngularMargin")
STRONG = 0.9  # label smoothing
HUGE = 1e30  # the norm of a weight that makes outputs overflow
REMEDY = "check the scale of the classifier's inputs and weights, the targets, and the masks"


def origin(seen):
    """Yield where a loss that is NaN comes from."""
    if seen.step.finite or _spoiled(seen):
        return
    for key, items in seen.start.spoiled.items():
        what = f"{len(items)} items of the first batch have NaN or infinite values when they are loaded"
        yield Finding("error", "batch-not-finite", what, f"train {key}: {some(items)}", "fix these items, or the data pipeline")
    if seen.step.origin and not seen.start.spoiled:
        name, within, augments = seen.step.origin
        makes = "this module makes the first NaN from finite values" if within else "this is the first module that gets NaN"
        remedy = "look there and before it for logarithms, roots and divisions of 0, overflow, and masks that leave nothing"
        if augments:
            remedy = "check the options of this augmentation, and the files that it reads"
        yield Finding("error", "output-not-finite", f"the first loss is NaN: {makes}", name, remedy)


def _unnormalized(call):
    scores, classes = _scores(call, "nll_loss"), 1 if call.input.dim() > 1 else 0
    if scores is not None and (scores.logsumexp(classes).abs() > 0.1).float().mean() > 0.5:
        return f"the probabilities of all classes sum to {scores.logsumexp(classes).exp().median():.3g}, not to 1"


def _normalized(call):
    scores, classes = _scores(call, "cross_entropy"), 1 if call.input.dim() > 1 else 0
    if scores is not None and scores.shape[classes] > 1 and (scores >= 0).all():
        sums = (scores.sum(classes) - 1).abs()
        return "its input is probabilities already: they are not negative and sum to 1" if (sums < 1e-3).all() else None


def _scores(call, *names):
    """The scores of a classifier's loss, unless they are NaN; a mask may set the log-probability of a class to -inf."""
    if call.name in names and call.value is not None and call.input.dim() and call.input.numel():
        return None if call.input.isnan().any() else call.input.float().nan_to_num(neginf=-math.inf)


def _squashed(call):
    if call.name == "binary_cross_entropy_with_logits" and re.match("(Hards|S)igmoid|Softmax", call.made_by):
        return "its input is probabilities already: they come from a sigmoid or softmax"


def _broadcast(call):
    shapes = [tuple(getattr(tensor, "shape", ())) for tensor in (call.input, call.target)]
    same = [[size for size in shape if size > 1] for shape in shapes]
    if call.name in ELEMENTWISE and call.value is not None and len(shapes[0]) != len(shapes[1]) and same[0] == same[1]:
        both = torch.broadcast_shapes(*shapes)
        if both.numel() > call.input.numel():
            one, other, all_ = (" x ".join(map(str, shape)) for shape in (*shapes, both))
            return f"its input has shape {one}, but its target {other}, so it compares {all_} pairs"


def _itself(call):
    one, other = call.input, call.target
    if call.name in ELEMENTWISE and isinstance(other, torch.Tensor) and one.numel() > 1:
        places = {(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in (one, other)}
        return "its input and its target are the same tensor" if len(places) == 1 else None


def _no_cosine(call):
    most = float(call.input.abs().max()) if call.name in MARGINS and call.input.numel() else 0.0
    if most > 1.01 and call.options["margin"]:
        clamped = ", which it sets to 1" * (call.name == MARGINS[1])
        return f"it takes cosines, from -1 to 1, but gets values up to {most:.3g}{clamped}"


def _smooth(call):
    share = call.options.get("label_smoothing") or 0
    return f"label_smoothing is {share:g}, so the right class gets only {1 - share:.2g}" if share >= STRONG else None


# What a call of a loss may get wrong: the code, the level, a function that says what it is, and the remedy.
MISTAKES = (
    ("nll-without-log-softmax", "error", _unnormalized, "apply a log_softmax before it, or use cross_entropy"),
    ("cross-entropy-on-probabilities", "error", _normalized, "remove the softmax before it"),
    ("bce-on-probabilities", "error", _squashed, "remove the sigmoid before it, or use binary_cross_entropy"),
    ("loss-broadcast", "error", _broadcast, "give both the same shape: squeeze one, or unsqueeze the other"),
    ("loss-of-itself", "error", _itself, "give the loss the predictions and the targets"),
    ("margin-without-cosine", "warning", _no_cosine, "normalize embeddings and weights, as ECAPA_TDNN's Classifier does"),
    ("smoothing-strong", "warning", _smooth, "use a smaller value, such as 0.1"),
)


def mistakes(seen):
    """Yield calls of losses that get something wrong, each kind once."""
    for code, level, look, remedy in MISTAKES:
        for call, what in ((call, look(call)) for call in seen.step.losses):
            if what:
                yield Finding(level, code, what, _where(call), remedy)
                break


def maximized(seen):
    """Yield a loss that is nothing but the negative of losses that should become small."""
    calls = [call for call in seen.step.losses if call.slope is not None and call.name not in MARGINS]
    calls = [call for call in calls if "." not in call.name or call.name.endswith(SIGNED)]
    down = calls and all((call.slope <= 0).all() and call.slope.any() for call in calls)
    if down and len(seen.step.backwards) == 1 and len(seen.step.optimizers) < 2:
        total = sum(float((call.slope * call.value).sum()) for call in calls)
        if math.isclose(total, seen.step.backwards[0].value, rel_tol=1e-3):
            what = "training minimizes its negative, so it grows"
            yield Finding("error", "loss-maximized", what, _where(calls[0]), "remove the minus sign before the loss")


def value(seen):
    """Yield a first loss that is impossible, or far from guessing."""
    if _spoiled(seen):
        return
    backwards, where = seen.step.backwards, type(seen.given.brain).__name__
    for call in (call for call in seen.step.losses if _scores(call, "cross_entropy", "nll_loss") is not None):
        first, usual = float(_mean(call)), math.log(call.input.shape[1 if call.input.dim() > 1 else 0])
        known = seen.step.origin or seen.start.spoiled
        if not 0 <= first <= usual + 20 and not known and not any(look(call) for _, _, look, _ in MISTAKES):
            what = f"the first loss is {first:.4g}, but guessing among {round(math.exp(usual))} classes gives {usual:.3g}"
            yield Finding("warning", "first-loss", what, _where(call), REMEDY)
            return
    wild = [backward.value for backward in backwards if not math.isfinite(backward.value)]
    if wild and not seen.step.origin and not seen.start.spoiled:
        yield Finding("warning", "first-loss", f"the first loss is {wild[0]}, although no module returns NaN", where, REMEDY)
    if backwards and all(backward.flat and not backward.by_hand for backward in backwards):
        yield Finding("warning", "first-loss", "the first loss and all gradients are exactly 0", where, REMEDY)


def _spoiled(seen):
    """Whether weights are not finite, or close to it, which another check reports."""
    return any(not weight.norm < HUGE for weight in seen.start.weights)


def _where(call):
    return f"{call.name}, input {' x '.join(map(str, call.input.shape))}"


def _mean(call):
    if call.options.get("reduction") == "sum":
        ignored = call.target == call.options.get("ignore_index")
        return call.value.float() / max(1, call.target.numel() - int(ignored.sum()))
    return torch.mean(call.value.float())


RULES = (origin, mistakes, maximized, value)
