"""Checks the first loss of a classifier: its input, and its value."""

import math

import torch
from speechbrain.preflight.report import Finding

CODES = {
    "nll-without-log-softmax": "nll_loss gets values that are not log-probabilities, so it can fall without limit",
    "cross-entropy-on-probabilities": "cross_entropy gets probabilities, and applies a second softmax to them",
    "first-loss": "the first cross_entropy or nll_loss is negative, not finite, or above ln(number of classes) + 20",
}


def losses(seen):
    """Yield what is wrong with the first loss, at most one finding for each code."""
    found = {}
    spoiled = not all(math.isfinite(weight.norm) for weight in seen.start.weights)  # which another check reports
    for call in seen.step.losses:
        failed = call.value is None
        if call.name in ("cross_entropy", "nll_loss") and not failed and call.input.dim() > 0 and call.input.numel():
            for finding in _look(call, spoiled):
                found.setdefault(finding.code, finding)
    yield from found.values()


def _look(call, spoiled):
    scores = call.input.float()
    classes = 1 if scores.dim() > 1 else 0
    if not scores.isfinite().all():
        scores = scores.nan_to_num(neginf=-math.inf)  # a mask may set the log-probability of a class to -inf
    where = f"{call.name}, input {' x '.join(map(str, call.input.shape))}"
    if call.name == "nll_loss" and (scores.logsumexp(classes).abs() > 0.1).float().mean() > 0.5:
        what = f"the classes' probabilities sum to {scores.logsumexp(classes).exp().median():.3g}, not to 1"
        yield Finding("error", "nll-without-log-softmax", what, where, "apply a log_softmax, or use cross_entropy")
        return
    probabilities = scores.shape[classes] > 1 and (scores >= 0).all() and ((scores.sum(classes) - 1).abs() < 1e-3).all()
    if call.name == "cross_entropy" and probabilities:
        what = "its inputs are probabilities: they are not negative and sum to 1"
        yield Finding("error", "cross-entropy-on-probabilities", what, where, "remove the softmax before it")
        return
    value = float(_mean(call))
    usual = math.log(scores.shape[classes])
    if not (0 <= value <= usual + 20 or (spoiled and not math.isfinite(value))):
        yield Finding(
            "warning",
            "first-loss",
            f"it is {value:.4g}; guessing among {scores.shape[classes]} classes gives {usual:.3g}",
            where,
            "check the scale of the classifier's inputs and weights, the targets, and the masks",
        )


def _mean(call):
    if call.options.get("reduction") == "sum":
        ignored = call.target == call.options.get("ignore_index")
        return call.value.float() / max(1, call.target.numel() - int(ignored.sum()))
    return torch.mean(call.value.float())


RULES = (losses,)
