"""The checks: one module for each subject.

A module has ``CODES``, one line of documentation for each kind of finding, and ``RULES``. A rule takes a
:class:`~speechbrain.preflight.observe.Observed`, changes nothing, and yields a
:class:`~speechbrain.preflight.report.Finding` for each mistake.
"""

from importlib import import_module

from speechbrain.preflight import attempts

NAMES = "audio losses augmentation batches hparams labels manifests sequences"
NAMES += " behaviour optimised plan pretrained resume validation versions weights"
SUBJECTS = tuple(import_module(f"{__name__}.{name}") for name in NAMES.split())
RULES = tuple(rule for subject in SUBJECTS for rule in subject.RULES)
CODES = {code: line for subject in (attempts, *SUBJECTS) for code, line in subject.CODES.items()}
