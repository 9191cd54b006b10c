"""Leaves out findings that another finding explains."""

import os
import re

from speechbrain.preflight.observe.calls import TRANSDUCER
from speechbrain.preflight.observe.items import AUDIO

AUDIO_PATH = re.compile(rf"[^'\"<>|]+(?:{'|'.join(map(re.escape, AUDIO))})\b", re.IGNORECASE)


def _names_a_file(finding, cause):
    """Whether an exception's message names an audio file: one that does not exist if others do not exist."""
    paths = AUDIO_PATH.findall(finding.what.partition("\n")[0])
    paths = [found for path in paths for found in (path, path.rpartition(" ")[2])]
    return bool(paths) and (cause.code != "audio-missing" or not any(map(os.path.exists, paths)))


def _says(*texts):
    """Explains a finding that says one of these texts."""
    return lambda finding, cause: any(text in finding.what for text in texts)


def _same_error(finding, cause):
    first = finding.what.partition("\n")[0]
    return f"Expected key {cause.what.split(chr(39))[1]} " in first if cause.code == "item-lacks-key" else first in cause.what


def _is_of_ctc(finding, cause):
    return cause.level == "error" and cause.where.startswith(("ctc_loss", TRANSDUCER))


ALWAYS = _says("")
# Why a batch could not be loaded.
LOADING = (
    (("audio-missing", "audio-unreadable", "audio-truncated"), _names_a_file),
    (("label-encoder-stale", "label-encoder-empty", "label-unknown"), _says("unknown label")),
    (("item-failed", "item-lacks-key"), _same_error),
)
# The code of a finding, the codes of its causes, and when these explain it.
EXPLAINED = (
    *(("first-batch-failed", *why) for why in LOADING),
    *(("first-validation-failed", *why) for why in LOADING),
    ("label-unknown", ("label-encoder-stale", "label-encoder-empty"), ALWAYS),
    ("first-step-failed", ("label-outside", "token-outside"), _says("out of bounds")),
    ("dataloader-failed", ("no-batch",), _says("num_samples")),
    (
        "output-not-finite",
        ("audio-empty", "audio-not-finite"),
        lambda finding, cause: cause.where.startswith(f"{finding.where} "),
    ),
    ("real-step-failed", ("augmentation-fails",), _same_error),
    ("frozen-statistics-move", ("nothing-trainable",), ALWAYS),
    ("depends-on-batch", ("validation-in-training-mode",), lambda finding, cause: finding.where in cause.what),
    ("input-unused", ("update-too-large",), ALWAYS),
    ("nothing-changes", ("gradient-clipped-to-zero",), ALWAYS),
    ("validation-loss", ("buffer-not-finite", "weight-not-finite"), ALWAYS),
    ("first-step-failed", ("labels-not-repeated",), ALWAYS),
    ("first-batch-failed", ("tensor-without-dimension",), _says("list index out of range")),
    ("batch-not-finite", ("audio-not-finite",), lambda finding, cause: finding.where.split()[:1] == cause.where.split()[:1]),
    ("first-loss", ("more-labels-than-frames",), lambda finding, cause: "all of the first batch" in cause.what),
    ("first-loss", ("loss-of-itself",), _says("exactly 0")),
    *((code, ("lengths-not-relative",), _is_of_ctc) for code in ("token-is-blank", "more-labels-than-frames", "first-loss")),
    ("first-step-failed", ("lengths-not-relative",), _says("length", "size")),
)


def without_explained(findings):
    """Leave out findings that another one explains."""

    def explained(finding):
        reasons = [(causes, explains) for code, causes, explains in EXPLAINED if code == finding.code]
        return any(cause.code in causes and explains(finding, cause) for causes, explains in reasons for cause in findings)

    return [finding for finding in findings if not explained(finding)]
