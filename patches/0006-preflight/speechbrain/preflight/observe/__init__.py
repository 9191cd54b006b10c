"""The observations: one module for each moment of a run, which returns one record that is then only read."""

from dataclasses import dataclass, field

from speechbrain.preflight.observe.audio import Clips
from speechbrain.preflight.observe.first_step import FirstStep
from speechbrain.preflight.observe.first_valid import FirstValid
from speechbrain.preflight.observe.given import Given
from speechbrain.preflight.observe.labels import Labels
from speechbrain.preflight.observe.loads import Loaded
from speechbrain.preflight.observe.sequences import Sequences
from speechbrain.preflight.observe.start import Start


@dataclass(frozen=True)
class Observed:
    """The records of a run up to its first step: the input of the checks.

    Attributes
    ----------
    given : Given
        What ``fit`` is given.
    loaded : Loaded
        What was loaded from files.
    start : Start
        The Brain and its first batch before the first step.
    step : FirstStep
        The first step.
    valid : FirstValid
        The first validation batch.
    failures : list of speechbrain.preflight.observe.manifests.Failure
        The items that cannot be evaluated.
    clips : Clips
        The audio files of all items.
    labels : Labels
        The labels of all items.
    sequences : Sequences
        The tokens of all items.
    """

    given: Given
    loaded: Loaded = field(default_factory=Loaded)
    start: Start = field(default_factory=Start)
    step: FirstStep = field(default_factory=FirstStep)
    clips: Clips = field(default_factory=lambda: Clips({}))
    labels: Labels = field(default_factory=Labels)
    valid: FirstValid = field(default_factory=FirstValid)
    failures: list = field(default_factory=list)
    sequences: Sequences = field(default_factory=Sequences)
