"""Finds set-up mistakes before training.

``python -m speechbrain.preflight train.py hparams/x.yaml`` runs a training
script up to its first step; :func:`preflight` does the same with a Brain.

The modules of ``observe`` look at a run, each at one moment, and return one
record. The modules of ``checks`` judge these records. ``run`` tells the order
of events, and ``report`` prints what was found.
"""

from speechbrain.preflight.report import Finding, Report
from speechbrain.preflight.run import preflight

__all__ = ["Finding", "Report", "preflight"]
