"""Tries the first step with and without augmentation that does not act on all batches."""

from dataclasses import replace

from speechbrain.augment.augmenter import Augmenter
from speechbrain.core import Stage
from speechbrain.preflight.attempts import failure
from speechbrain.preflight.observe.given import named, parts
from speechbrain.preflight.quiet import alone

SECONDS = 30.0


def tries(given, start, step, log):
    """Try the step; what fails becomes a finding."""
    some = [part for _, part in parts(given.brain) if isinstance(part, Augmenter) and 0 < part.augment_prob < 1]
    if some and step.taken and not step.custom and step.backwards:
        log.apart("augmentation", given.brain, SECONDS, _try, given, start.batch, some)
    else:
        log.ranks.agree(True)  # other processes may try


def _try(given, batch, augmenters, log):
    brain = given.brain
    for augmenter in augmenters:
        share = augmenter.augment_prob
        for acts in (True, False):
            augmenter.augment_prob = float(acts) or -1.0
            try:
                with alone(brain):
                    brain.compute_objectives(brain.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
            except Exception as error:
                found = failure("augmentation-fails", error)
                what = f"augment_prob is {share:g}, and the step fails in batches "
                what += f"that are {'' if acts else 'not '}augmented: {found.what}"
                remedy = f"repeat labels and lengths with {named(given, augmenter)}.replicate_labels: it knows if it acted"
                log.findings.append(replace(found, what=what, remedy=remedy))
                return
        augmenter.augment_prob = share
