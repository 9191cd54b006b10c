"""The observations: one module for each moment of a run, which returns one record that is then only read."""

from dataclasses import dataclass, field
from functools import cached_property

from speechbrain.preflight.observe.asked import Asked
from speechbrain.preflight.observe.audio import Clips
from speechbrain.preflight.observe.behaviour import Behaviour
from speechbrain.preflight.observe.first_step import FirstStep
from speechbrain.preflight.observe.first_valid import FirstValid
from speechbrain.preflight.observe.given import Given
from speechbrain.preflight.observe.labels import Labels
from speechbrain.preflight.observe.loads import Loaded
from speechbrain.preflight.observe.sequences import Sequences
from speechbrain.preflight.observe.start import Start
from speechbrain.preflight.observe.training import Training


@dataclass(frozen=True)
class Observed:
    """The records of a run up to its first step: the input of the checks."""

    given: Given  # what ``fit`` is given
    loaded: Loaded = field(default_factory=Loaded)  # what was loaded from files
    start: Start = field(default_factory=Start)  # the Brain and its first batch before the first step
    step: FirstStep = field(default_factory=FirstStep)  # the first step
    clips: Clips = field(default_factory=lambda: Clips({}))  # the audio files of all items
    labels: Labels = field(default_factory=Labels)  # the labels of all items
    valid: FirstValid = field(default_factory=FirstValid)  # the first validation batch
    failures: list = field(default_factory=list)  # the items that cannot be evaluated
    sequences: Sequences = field(default_factory=Sequences)  # the tokens of all items
    plan: dict = field(default_factory=dict)  # what the run is going to do, by name of a line
    behaviour: Behaviour = field(default_factory=Behaviour)  # what real steps do, and what items give alone
    asked: Asked = field(default_factory=Asked)  # what options ask for

    @cached_property
    def training(self):
        """Training: What the optimizers train, and how."""
        return Training(self)
