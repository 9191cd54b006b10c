"""Leaves out findings that another finding explains."""

import os
import re

from speechbrain.preflight.observe.items import AUDIO

AUDIO_PATH = re.compile(rf"[^'\"<>|]+(?:{'|'.join(map(re.escape, AUDIO))})\b", re.IGNORECASE)


def _names_a_file(finding, cause):
    """Whether an exception's message names an audio file: one that does not exist if others do not exist."""
    paths = AUDIO_PATH.findall(finding.what.partition("\n")[0])
    paths = [found for path in paths for found in (path, path.rpartition(" ")[2])]
    return bool(paths) and (cause.code != "audio-missing" or not any(map(os.path.exists, paths)))


def _encodes(finding, cause):
    return "unknown label" in finding.what


def _same_part(finding, cause):
    return cause.where.startswith(f"{finding.where} ")


def _same_set(finding, cause):
    return finding.where.split()[:1] == cause.where.split()[:1]


def _same_error(finding, cause):
    first = finding.what.partition("\n")[0]
    return first in cause.what if cause.code == "item-failed" else f"Expected key {cause.what.split(chr(39))[1]} " in first


# Why a batch could not be loaded.
LOADING = (
    (("audio-missing", "audio-unreadable", "audio-truncated"), _names_a_file),
    (("label-encoder-stale", "label-encoder-empty", "label-unknown"), _encodes),
    (("item-failed", "item-lacks-key"), _same_error),
)


def _names_ctc(finding, cause):
    return cause.where.startswith("ctc_loss")


# The code of a finding, the codes of its causes, and when these explain it.
EXPLAINED = (
    *(("first-batch-failed", *why) for why in LOADING),
    *(("first-validation-failed", *why) for why in LOADING),
    ("label-unknown", ("label-encoder-stale", "label-encoder-empty"), lambda finding, cause: True),
    ("first-step-failed", ("label-outside", "token-outside"), lambda finding, cause: "out of bounds" in finding.what),
    ("dataloader-failed", ("no-batch",), lambda finding, cause: "num_samples" in finding.what),
    ("output-not-finite", ("audio-empty", "audio-not-finite"), _same_part),
    ("nothing-changes", ("gradient-clipped-to-zero",), lambda finding, cause: True),
    ("real-step-failed", ("augmentation-fails",), lambda finding, cause: finding.what.partition("\n")[0] in cause.what),
    ("not-finite-after-step", ("update-too-large",), lambda finding, cause: "the same batch" in finding.what),
    ("validation-loss", ("buffer-not-finite", "weight-not-finite"), lambda finding, cause: True),
    ("first-step-failed", ("labels-not-repeated",), lambda finding, cause: True),
    ("first-batch-failed", ("tensor-without-dimension",), lambda finding, cause: "list index out of range" in finding.what),
    ("batch-not-finite", ("audio-not-finite",), _same_set),
    ("first-loss", ("more-labels-than-frames",), lambda finding, cause: cause.what.endswith("batch, all")),
    ("first-loss", ("loss-of-itself",), lambda finding, cause: "exactly 0" in finding.what),
    *((code, ("lengths-not-relative",), _names_ctc) for code in ("token-is-blank", "more-labels-than-frames", "first-loss")),
    ("first-step-failed", ("lengths-not-relative",), lambda finding, cause: "length" in finding.what or "size" in finding.what),
)


def without_explained(findings):
    """Leave out findings that another one explains."""
    return [
        finding
        for finding in findings
        if not any(
            finding.code == code and cause.code in causes and explains(finding, cause)
            for code, causes, explains in EXPLAINED
            for cause in findings
        )
    ]
