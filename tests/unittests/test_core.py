"""The parameter counts that a Brain prints, and the steps of the original bug report."""

import copy

import pytest
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.logger import format_order_of_magnitude
from speechbrain.utils.parameter_transfer import Pretrainer
from torch.nn import LazyConv1d, LazyLinear, Linear, Sequential

DATA = torch.utils.data.TensorDataset(torch.randn(8, 10), torch.randint(3, (8,)))


class Brain(sb.Brain):
    """Classifies the vectors of DATA."""

    def compute_forward(self, batch, stage):
        x = batch[0]
        for module in self.modules.values():
            x = module(x)
        return x

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch[1])


class CountingBrain(Brain):
    """Formats the number of trainable parameters of each module, as one would to check which modules are frozen."""

    def print_trainable_parameters(self):
        super().print_trainable_parameters()
        self.counts = {
            name: format_order_of_magnitude(sum(p.numel() for p in module.parameters() if p.requires_grad))
            for name, module in self.modules.items()
        }


class UnfreezingBrain(Brain):
    """Unfreezes when training starts, as upstream's tutorial on pretraining does."""

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.modules.requires_grad_(True)


class CountingUnfreezingBrain(UnfreezingBrain, CountingBrain):
    """Counts when it is made, and unfreezes when training starts."""


def make(modules, brain=Brain, **options):
    return brain(modules, lambda parameters: torch.optim.SGD(parameters, lr=0.1), run_opts={"device": "cpu"}, **options)


def frozen(module):
    for parameter in module.parameters():
        parameter.requires_grad = False  # requires_grad_() raises for a parameter that is not initialized
    return module


def tied():
    module = Linear(10, 10)
    return {"a": module, "b": module}


NONE, FROZEN = "The model has no parameters!", "The model has no trainable parameters!"
LATER = "Not initialized yet, so the totals below leave them out: "


@pytest.mark.parametrize(
    "modules, warning, trainable, total, percentage",
    [
        (lambda: {"a": Linear(10, 10)}, None, "110", "110", "100.0000"),
        (lambda: {"a": Linear(10, 10), "b": frozen(Linear(10, 90))}, None, "110", "1.1k", "10.0000"),
        (lambda: {"a": frozen(Linear(10, 10))}, FROZEN, "0", "110", "0.0000"),
        (lambda: {"a": torch.nn.ReLU()}, NONE, "0", "0", "0.00"),
        (lambda: {}, NONE, "0", "0", "0.00"),
        (lambda: None, NONE, "0", "0", "0.00"),
        (tied, None, "110", "110", "100.0000"),
        pytest.param(
            lambda: {"a": Linear(10, 10), "b": LazyLinear(3)},
            f"{LATER}b.weight, b.bias",
            *("110", "110", "100.0000"),
            marks=pytest.mark.regression,
            id="lazy",
        ),
        pytest.param(
            lambda: {"a": frozen(Linear(10, 10)), "b": LazyConv1d(3, 5, bias=False)},
            f"{LATER}b.weight",
            *("0", "110", "0.0000"),
            marks=pytest.mark.regression,
            id="frozen-and-lazy",
        ),
        pytest.param(
            lambda: {"a": LazyLinear(3)},
            f"{LATER}a.weight, a.bias",
            *("0", "0", "0.00"),
            marks=pytest.mark.regression,
            id="only-lazy",
        ),
    ],
)
def test_print_trainable_parameters(caplog, modules, warning, trainable, total, percentage):
    caplog.set_level("INFO")  # from 1.0.2 on, speechbrain sets it itself
    make(modules())
    logged = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "speechbrain.core"]
    assert [text for level, text in logged if level == "WARNING"] == ([warning] if warning else [])
    assert logged[-1] == (
        "INFO",
        "Brain Model Statistics:\n"
        f"* Total Number of Trainable Parameters: {trainable}\n"
        f"* Total Number of Parameters: {total}\n"
        f"* Trainable Parameters represent {percentage}% of the total size.",
    )


@pytest.mark.regression
def test_frozen_and_lazy_parameters_give_both_warnings(caplog):
    make({"a": frozen(Linear(10, 10)), "b": frozen(LazyLinear(3))})
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [f"{LATER}b.weight, b.bias", FROZEN]


def test_counts_on_the_meta_device(caplog):
    caplog.set_level("INFO")  # from 1.0.2 on, speechbrain sets it itself
    brain = make({})
    brain.modules = torch.nn.ModuleDict({"a": Linear(1000, 1000, device="meta")})
    brain.print_trainable_parameters()
    assert "* Total Number of Parameters: 1.0M" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    "brain, counts",
    [
        (UnfreezingBrain, None),  # as in the report, which PR #2537 closed
        pytest.param(CountingUnfreezingBrain, {"encoder": "0", "head": "0"}, marks=pytest.mark.regression),
    ],
)
def test_a_pretrained_frozen_model_that_is_unfrozen_when_training_starts(tmp_path, brain, counts):
    torch.save(Linear(10, 10).state_dict(), tmp_path / "encoder.ckpt")
    encoder = Linear(10, 10)
    pretrainer = Pretrainer(collect_in=tmp_path / "collected", loadables={"encoder": encoder})
    pretrainer.collect_files(default_source=str(tmp_path))
    pretrainer.load_collected()
    brain = make({"encoder": frozen(encoder), "head": frozen(Linear(10, 3))}, brain)
    assert getattr(brain, "counts", None) == counts
    before = copy.deepcopy(brain.modules.state_dict())
    brain.fit(range(1), DATA, train_loader_kwargs={"batch_size": 4}, progressbar=False)
    assert not [name for name, value in brain.modules.state_dict().items() if torch.equal(value, before[name])]


@pytest.mark.regression
@pytest.mark.parametrize("separate", [False, True], ids=["one-group", "remove_vector_weight_decay"])
def test_a_lazy_brain_trains_and_resumes(tmp_path, separate):
    def build():
        model = Sequential(LazyLinear(6), torch.nn.LazyBatchNorm1d(), LazyLinear(3))
        checkpointer = Checkpointer(tmp_path, {"model": model})
        return make({"model": model}, checkpointer=checkpointer, hparams={"remove_vector_weight_decay": separate})

    first = build()
    first.fit(range(2), DATA, train_loader_kwargs={"batch_size": 4}, progressbar=False)
    groups = [[p.dim() for p in group["params"]] for group in first.optimizer.param_groups]
    assert groups == ([[1, 1, 1, 1], [2, 2]] if separate else [[2, 1, 1, 1, 2, 1]])
    first.checkpointer.save_checkpoint()
    second = build()
    second.on_fit_start()
    saved, loaded = first.modules.state_dict(), second.modules.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
