"""Items that make no batch, and limits of dynamic batches in another unit, are reported."""

import random

import numpy as np
import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.preflight.__main__ import Takeover
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from torch.nn import Linear

from brains import Classifier

ONE_EACH = "each batch has only one clip: the shortest one has length {}, and max_batch_length is {}"
NO_LIMIT = "a batch has room for {} clips: the longest one has length 12, and max_batch_length is {}"
WORKERS = [{}, {"num_workers": 1}]
LIMITS = [  # of items that last 1 to 12 seconds
    ({"max_batch_length": 0.02, "num_buckets": 2}, ONE_EACH.format(1, 0.02)),
    (
        {"max_batch_length": 60, "length_func": lambda item: item["duration"] * 16000},
        ONE_EACH.format(16000, 60),
    ),
    ({"max_batch_length": 960000}, NO_LIMIT.format(80000, 960000)),
    ({"max_batch_length": 60000, "max_batch_ex": 5000}, NO_LIMIT.format(5000, 60000)),
    ({"max_batch_length": 60000, "max_batch_ex": 8}, None),  # limits the clips, not their length
    ({"max_batch_length": 0.5, "max_batch_ex": 1}, None),
    ({"max_batch_length": 60}, None),
    ({"max_batch_length": 12, "num_buckets": 1}, None),
    ({"max_batch_length": 5, "shuffle": False}, None),
    ({"max_batch_length": 2000}, None),
]


class Brain(Classifier):
    def compute_forward(self, batch, stage):
        return self.modules.head(batch.x.data)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()


def limited(options):
    items = {str(i): {"duration": i} for i in range(1, 13)}
    dataset = DynamicItemDataset(items, output_keys=["id", "x"])
    dataset.add_dynamic_item(lambda duration: torch.full((4,), 1.0 * duration), "duration", "x")
    sampler = DynamicBatchSampler(dataset, **{"num_buckets": 4, **options})
    brain = Brain({"head": Linear(4, 3)})
    return Takeover().run(lambda: brain.fit(range(1, 2), dataset, train_loader_kwargs={"batch_sampler": sampler}))


@pytest.mark.parametrize("options, what", LIMITS)
def test_the_limit_of_a_dynamic_batch(options, what):
    report = limited(options)
    found = [(f.level, f.code, f.where) for f in report.findings]
    assert found == [("warning", "dynamic-batch-limit", "train DynamicBatchSampler")] * bool(what), report.text()
    assert not what or (what in report.findings[0].what and report.findings[0].remedy)


def labelled(make, options):
    items = {str(i): {"label": i % 3} for i in range(8)}
    dataset = DynamicItemDataset(items, output_keys=["id", "x", "number"])
    dataset.add_dynamic_item(lambda label: torch.full((4,), 1.0 * label), "label", "x")
    dataset.add_dynamic_item(make, "label", "number")
    brain = Brain({"head": Linear(4, 3)})
    return Takeover().run(lambda: brain.fit(range(1, 2), dataset, train_loader_kwargs={"batch_size": 4, **options}))


@pytest.mark.parametrize("options", WORKERS)
@pytest.mark.parametrize("make, codes", [(torch.tensor, ["tensor-without-dimension"]), (int, [])])
def test_a_label_without_dimensions(options, make, codes):
    report = labelled(make, options)
    assert [finding.code for finding in report.findings] == codes, report.text()
    assert not codes or report.findings[0].where == "train number"


DRAW = random.Random(0)


class Noise:
    """Draws from a generator of its own."""

    def __init__(self, seeds=False):
        self.draw, self.seeds = np.random.RandomState(0), seeds

    def __call__(self, label):
        return self.add(label)

    def add(self, label):
        if self.seeds:
            self.draw.seed(label)
        return torch.full((4,), label + self.draw.uniform())


class Noisy(torch.utils.data.Dataset):
    """Draws from a generator that is an attribute."""

    def __init__(self):
        self.generator = torch.Generator()

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.randn(4, generator=self.generator)


def from_a_closure():
    draw = np.random.default_rng(0)
    return lambda label: torch.full((4,), label + draw.uniform())


def from_a_global():
    return lambda label: torch.full((4,), label + DRAW.random())


def from_an_object():
    return Noise().add


def as_usual():
    return lambda label: torch.full((4,), label + random.random() + np.random.uniform()) + torch.randn(4)


def for_each_item():
    return Noise(seeds=True).add


def for_each_worker():
    def draw(label):
        info = torch.utils.data.get_worker_info()
        draw = DRAW if info is None else random.Random(info.seed)
        return torch.full((4,), label + draw.random())

    return draw


def without_drawing():
    return lambda label: torch.full((4,), label + len(str(DRAW)) + 0.0)


WORKERS_ONCE = {"num_workers": 1, "persistent_workers": True}
COPIES = [
    (make, {"num_workers": 2}, name) for make, name in ((from_a_closure, "draw"), (from_a_global, "DRAW"), (Noisy, "generator"))
]
COPIES += [(from_an_object, {"num_workers": 1}, "draw"), (from_an_object, {**WORKERS_ONCE, "num_workers": 2}, "draw")]
COPIES += [(make, {"num_workers": 2}, None) for make in (as_usual, for_each_item, for_each_worker, without_drawing)]
COPIES += [(from_a_closure, options, None) for options in ({}, WORKERS_ONCE, {"num_workers": 2, "worker_init_fn": print})]


def noisy(make, options):
    class OfPlainItems(Brain):
        def compute_forward(self, batch, stage):
            return self.modules.head(batch if isinstance(batch, torch.Tensor) else batch.x.data)

    dataset = make()
    if make is not Noisy:
        dataset = DynamicItemDataset({str(i): {"label": i % 3} for i in range(8)}, output_keys=["id", "x"])
        dataset.add_dynamic_item(make(), "label", "x")
    brain = OfPlainItems({"head": Linear(4, 3)})
    return Takeover().run(lambda: brain.fit(range(1, 2), dataset, train_loader_kwargs={"batch_size": 4, **options}))


@pytest.mark.parametrize("make, options, name", COPIES)
def test_a_generator_that_workers_copy(make, options, name):
    report = noisy(make, options)
    found = [(f.level, f.code, f.where) for f in report.findings]
    assert found == [("warning", "generator-copied", f"train {name}")] * bool(name), report.text()
    assert not name or ("each epoch" in report.findings[0].what) != ("persistent_workers" in options)


def stopping(feeds):
    counter = EpochCounterWithStopper(limit=9, limit_to_stop=3, limit_warmup=2, direction="min")

    class Stopping(Classifier):
        def on_stage_end(self, stage, loss, epoch=None):
            if feeds and stage.name == "VALID":
                counter.update_metric(loss)

    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    brain = Stopping({"head": Linear(4, 3)})
    report = Takeover().run(lambda: brain.fit(counter, data, data))
    assert counter.best_score == float("inf")
    return report


@pytest.mark.parametrize("feeds", [False, True])
def test_a_stopper(feeds):
    report = stopping(feeds)
    assert [(f.level, f.code) for f in report.findings] == [("warning", "stopper-unfed")] * (not feeds), report.text()


CASES = [  # for the gallery
    (limited, "dynamic-batch-limit", LIMITS[0][0]),
    (labelled, "tensor-without-dimension", torch.tensor, {}),
    (noisy, "generator-copied", from_a_closure, {"num_workers": 2}),
    (stopping, "stopper-unfed", False),
]


def report_of(folder, start, code, *arguments):
    return start(*arguments)
