"""Small Brains and data for the tests of the preflight."""

import pytest
import speechbrain as sb
import torch
from speechbrain.preflight.attempts import Log
from speechbrain.preflight.observe import Observed
from speechbrain.preflight.observe.audio import audio
from speechbrain.preflight.observe.columns import evaluated
from speechbrain.preflight.observe.labels import labels
from speechbrain.preflight.ranks import Ranks
from torch.nn import BatchNorm1d, Linear, ReLU, Sequential

OPTIONS = {"device": "cpu", "noprogressbar": True}
LOADER = {"batch_size": 8}


def registering(cases):
    """Make a decorator that adds a broken training to a list: its code, its level, and what its finding says."""

    def case(code, level, *says):
        def register(start):
            cases.append(pytest.param(start, code, level, *says, id=f"{code}: {start.__name__}"))
            return start

        return register

    return case


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Classifier(sb.Brain):
    """Applies its modules one after another, with a cross-entropy over 3 classes."""

    def __init__(self, modules, opt_class=sgd, hparams=None, **options):
        checkpointer = options.pop("checkpointer", None)
        super().__init__(modules, opt_class, hparams or {}, {**OPTIONS, **options}, checkpointer)

    def compute_forward(self, batch, stage):
        x = batch[0]
        for module in self.modules.values():
            x = module(x)
        return x

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch[1])

    def start(self):
        self.fit(range(1, 2), data(), data(), train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


def data(length=32, size=4, classes=3):
    """Inputs of [length, size] with their classes."""
    draw = torch.Generator().manual_seed(length)
    labels = torch.arange(length)[torch.randperm(length, generator=draw)] % classes
    return torch.utils.data.TensorDataset(torch.randn(length, size, generator=draw), labels)


def body():
    return Sequential(Linear(4, 8), ReLU())


def normed():
    return Sequential(Linear(4, 8), BatchNorm1d(8), ReLU(), Linear(8, 8), BatchNorm1d(8))


def head():
    return Linear(8, 3)


def observe(given, **moments):
    """Observe a run whose first step needs no more than the given records; returns the records and the remarks."""
    log, seen = Log(Ranks()), Observed(given, **moments)
    clips, (columns, failures) = audio(given, log), evaluated(given, log)
    words = labels(given, seen.loaded, seen.start, seen.step, columns)
    return Observed(given, seen.loaded, seen.start, seen.step, clips, words, failures=failures), log.said


def judge(subject, seen):
    """Run the rules of one subject."""
    return [finding for rule in subject.RULES for finding in rule(seen)]
