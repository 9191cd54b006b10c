"""A finding is left out if another one explains it, and only then."""

import pytest
from speechbrain.preflight.explained import EXPLAINED, without_explained
from speechbrain.preflight.report import Finding

ABSENT = "LibsndfileError: Error opening '/no/such/clip 1.wav': System error."
UNKNOWN = "KeyError: 'Cannot encode unknown label cat.'"
LACKS = "KeyError: 'Expected key text in data!'"
# What is found, its cause, and whether the cause explains it: the code, what, and where of each.
TABLE = [
    (("first-batch-failed", ABSENT, "train.py:1"), ("audio-missing", "1 of 9", "train wav: /no/such/clip 1.wav"), True),
    (("first-batch-failed", f"OSError: {__file__}.wav", ""), ("audio-unreadable", "1 of 9", "train wav: a.wav"), True),
    (("first-batch-failed", "KeyError: 'speaker'", "train.py:1"), ("audio-missing", "1 of 9", "train wav: a.wav"), False),
    (("first-batch-failed", UNKNOWN, "train.py:1"), ("label-encoder-stale", "it lacks cat", "label_encoder.txt"), True),
    (("first-batch-failed", "KeyError: 'cat'", "train.py:1"), ("label-encoder-stale", "it lacks dog", "encoder.txt"), False),
    (("first-validation-failed", UNKNOWN, "train.py:1"), ("label-unknown", "'cat'", "valid label: v1"), True),
    (("first-validation-failed", "KeyError: 'WER'", "train.py:1"), ("label-unknown", "'cat'", "valid label: v1"), False),
    (("first-batch-failed", LACKS, "train.py:1"), ("item-lacks-key", "'text' is missing in 1 of 9 items", "train: t1"), True),
    (("first-batch-failed", LACKS, "train.py:1"), ("item-lacks-key", "'tex' is missing in 1 of 9 items", "train: t1"), False),
    (("first-batch-failed", "ValueError: x", "a"), ("item-failed", "ValueError: x (2 of 9 items: t1, t2)", "a"), True),
    (("first-batch-failed", "ValueError: y", "a"), ("item-failed", "ValueError: x (2 of 9 items: t1, t2)", "a"), False),
    (("frozen-statistics-move", "of 1 BatchNorm", "body.1"), ("nothing-trainable", "all are frozen", "body"), True),
    (("depends-on-batch", "80%", "norm"), ("validation-in-training-mode", "runs with norm in training mode", "a"), True),
    (("depends-on-batch", "80%", "pool"), ("validation-in-training-mode", "runs with norm in training mode", "a"), False),
    (("input-unused", "batch.sig has no effect", "ASR"), ("update-too-large", "9 times", "opt"), True),
    (("nothing-changes", "without a gradient", "opt"), ("gradient-clipped-to-zero", "by 0", "max_grad_norm: 0"), True),
    (("validation-loss", "nan", "Brain"), ("weight-not-finite", "1 NaN among 8 values", "head.weight"), True),
    (("label-unknown", "cat", "train label: t1"), ("label-encoder-stale", "it lacks cat", "label_encoder.txt"), True),
    (("label-unknown", "cat", "train label: t1"), ("label-only-in-valid", "1 of 4", "valid label"), False),
    (("first-step-failed", "IndexError: Target 4 is out of bounds.", "a"), ("label-outside", "4", "train label: cat"), True),
    (("first-step-failed", "RuntimeError: shapes", "a"), ("label-outside", "4", "train label: cat"), False),
    (("first-step-failed", "IndexError: token 9 is out of bounds", "a"), ("token-outside", "9", "train tokens: t1"), True),
    (("first-step-failed", "IndexError: list index", "a"), ("token-outside", "9", "train tokens: t1"), False),
    (("first-step-failed", "RuntimeError: input_lengths of value", "a"), ("lengths-not-relative", "2", "ctc_loss"), True),
    (("first-step-failed", "RuntimeError: other", "a"), ("lengths-not-relative", "2", "ctc_loss, input lengths"), False),
    (("token-is-blank", "0", "train tokens: t1"), ("lengths-not-relative", "2", "ctc_loss, target lengths"), True),
    (("more-labels-than-frames", "4", "train tokens"), ("lengths-not-relative", "2", "ctc_loss, input lengths"), True),
    (("more-labels-than-frames", "4", "train tokens"), ("lengths-not-relative", "2", "pool"), False),
    (
        ("first-loss", "it is exactly 0", "ASR"),
        ("more-labels-than-frames", "4 of 9 items, and all of the first batch, have", "train"),
        True,
    ),
    (("first-loss", "it is exactly 0", "ASR"), ("more-labels-than-frames", "4 of 9 items", "train tokens"), False),
    (("dataloader-failed", "ValueError: num_samples should be positive", ""), ("no-batch", "no items", "train"), True),
    (("real-step-failed", "ValueError: x", "a"), ("augmentation-fails", "the step fails: ValueError: x", "a"), True),
    (("real-step-failed", "ValueError: y", "a"), ("augmentation-fails", "the step fails: ValueError: x", "a"), False),
    (("dataloader-failed", "TypeError: batch_sise", ""), ("no-batch", "no items", "valid"), False),
    (("output-not-finite", "NaN", "add_noise"), ("audio-empty", "1 of 9", "add_noise wav_data: a.wav"), True),
    (("output-not-finite", "NaN", "encoder.conv"), ("audio-empty", "1 of 9", "add_noise wav_data: a.wav"), False),
    (("batch-not-finite", "NaN", "train sig: t1"), ("audio-not-finite", "1 of 9", "train wav: a.wav"), True),
    (("batch-not-finite", "NaN", "train sig: t1"), ("audio-not-finite", "1 of 9", "valid wav: a.wav"), False),
]


@pytest.mark.parametrize(("one", "other", "explained"), TABLE, ids=[f"{a[0]} {b[0]} {yes}" for a, b, yes in TABLE])
def test_what_another_finding_explains_is_left_out(one, other, explained):
    finding, cause = (Finding("error", *texts) for texts in (one, other))
    assert without_explained([finding, cause]) == [cause] if explained else [finding, cause]
    assert without_explained([finding]) == [finding]


def test_every_pair_has_a_case():
    assert {code for code, _, _ in EXPLAINED} == {one[0] for one, _, explained in TABLE if explained}
