"""The checks: one module for each subject.

A module has ``CODES``, one line of documentation for each kind of finding, and ``RULES``. A rule takes a
:class:`~speechbrain.preflight.observe.Observed`, changes nothing, and yields a
:class:`~speechbrain.preflight.report.Finding` for each mistake.
"""

from speechbrain.preflight import attempts
from speechbrain.preflight.checks import (
    audio,
    augmentation,
    batches,
    behaviour,
    frozen,
    hparams,
    labels,
    losses,
    manifests,
    optimised,
    plan,
    pretrained,
    resume,
    sequences,
    validation,
    versions,
    weights,
)

SUBJECTS = (
    *(audio, losses, augmentation, frozen, batches, hparams, labels, manifests, sequences),
    *(behaviour, optimised, plan, pretrained, resume, validation, versions, weights),
)
RULES = tuple(rule for subject in SUBJECTS for rule in subject.RULES)
CODES = {code: line for subject in (attempts, *SUBJECTS) for code, line in subject.CODES.items()}
