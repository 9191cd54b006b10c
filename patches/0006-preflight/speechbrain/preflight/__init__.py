"""Finds set-up mistakes before training.

``python -m speechbrain.preflight train.py hparams/x.yaml`` runs a training
script up to its first step; :func:`preflight` does the same with a Brain.

Each module of this package that has ``CODES`` (one line of documentation for
each code) and ``check(seen)`` is a check. ``check`` reads a
:class:`~speechbrain.preflight.observe.given.Seen`, yields a
:class:`~speechbrain.preflight.report.Finding` for each mistake, and may append
remarks to ``seen.said``.
"""

from speechbrain.preflight.report import Finding, Report
from speechbrain.preflight.run import preflight

__all__ = ["Finding", "Report", "preflight"]
