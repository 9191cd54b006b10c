"""At a resume, fit() says once what it does not continue; a healthy resume is silent."""

import copy

import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.schedulers import NewBobScheduler
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

regression = pytest.mark.regression


class Brain(sb.Brain):
    """Saves a checkpoint after each epoch."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.pow(2).mean()

    def on_stage_end(self, stage, loss, epoch=None):
        self.checkpointer.save_and_keep_only({"loss": loss})


class Forgetful(Brain):
    def on_fit_start(self):
        self.init_optimizers()


class Decaying(Brain):
    def on_stage_end(self, stage, loss, epoch=None):
        self.optimizer.param_groups[0]["lr"] /= 2
        super().on_stage_end(stage, loss, epoch)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def run(folder, cls=Brain, epochs=2, lr=0.1, counted=True, extra=None, partial=False, hparams=None, **options):
    """Train as a script does that is started in a folder."""
    counter = EpochCounter(epochs) if isinstance(epochs, int) else epochs
    recoverables = {"counter": counter} if counted else {}
    checkpointer = Checkpointer(folder, {**recoverables, **(extra or {})}, allow_partial_load=partial)
    modules = {"model": torch.nn.Linear(2, 1)}
    checkpointer.add_recoverables(modules)
    run_opts = {"device": "cpu", "noprogressbar": True, **options}
    brain = cls(modules, lambda p: torch.optim.SGD(p, lr=lr), hparams, run_opts, checkpointer)
    brain.fit(counter, torch.randn(8, 2), train_loader_kwargs={"batch_size": 2})
    return brain


@pytest.fixture
def again(tmp_path, caplog):
    """callable: Trains, puts the checkpoints into the past, trains again; returns the warnings of the second run."""

    def train(first, second):
        run(tmp_path, **first)
        for path in tmp_path.glob("*/CKPT.yaml"):
            path.write_text(yaml.dump({**yaml.safe_load(path.read_text()), "unixtime": 1.0}))
        caplog.clear()
        run(tmp_path, **second)
        return warnings(caplog)

    return train


RANGE = {"counted": False, "epochs": range(2)}
SAID = [
    (
        {},
        {"cls": Forgetful, "counted": False, "epochs": range(1)},
        "has 1 checkpoint(s) of an earlier run, but training starts",
    ),
    (RANGE, RANGE, "but the epochs start again at 0. To continue them too, pass fit() an EpochCounter"),
    ({**RANGE, "epochs": 1}, {**RANGE, "epochs": 2}, "but the epochs start again at 1."),
    ({}, {}, "Nothing is left to train: "),
    ({"optimizer_step_limit": 8}, {"epochs": 3, "optimizer_step_limit": 8}, "Nothing is left to train: "),
    (
        {},
        {"epochs": 3, "extra": {"more": EpochCounter(1)}, "partial": True},
        "has no file for these, which keep their initial state (allow_partial_load is set): more.",
    ),
    ({"lr": 0.003}, {"epochs": 3, "lr": 1e-5}, "optimizer continues with lr=0.003, as in the checkpoint, not with lr=1e-05"),
]


@regression
@pytest.mark.parametrize("first, second, said", SAID, ids=[said[-30:] for *_, said in SAID])
def test_what_is_not_continued_is_said_once(again, first, second, said):
    (warning,) = again(first, second)
    assert said in warning


@pytest.mark.parametrize(
    "first, second",
    [
        ({}, {"epochs": 3}),
        ({}, {"epochs": 3, "hparams": {"lr_annealing": NewBobScheduler(0.1)}, "lr": 0.01}),
        ({"cls": Decaying}, {"cls": Decaying, "epochs": 3}),
        (RANGE, {**RANGE, "epochs": range(2, 4)}),
        ({"epochs": 0}, {"cls": Forgetful, "epochs": 1}),
        ({}, {"epochs": 2, "test_only": True}),
    ],
    ids=["continued", "a scheduler", "a decay in the script", "a range that goes on", "no checkpoint", "only tested"],
)
def test_a_healthy_resume_is_silent(again, first, second):
    assert not again(first, second)


def test_a_second_fit_of_one_run_is_silent(tmp_path, caplog):
    brain = run(tmp_path, **RANGE)
    brain.fit(range(2), torch.randn(8, 2), train_loader_kwargs={"batch_size": 2})
    run(tmp_path, **RANGE)
    assert not warnings(caplog)


def loader(batch_size=2, length=12, **options):
    return SaveableDataLoader(torch.arange(length), batch_size=batch_size, **options)


def resumed(folder, saved, other, skipped=3):
    iterator = iter(saved)
    for _ in range(skipped):
        next(iterator)
    Checkpointer(folder, {"dataloader": saved}).save_checkpoint(end_of_epoch=False)
    Checkpointer(folder, {"dataloader": other}).recover_if_possible()
    return next(iter(other))


@regression
@pytest.mark.parametrize(
    "other, said",
    [(loader(3), "6 batches of 2, but now there are 4 batches of 3. "), (loader(2, 20), "now there are 10 batches")],
)
def test_a_loader_that_skips_other_batches_says_so(tmp_path, caplog, other, said):
    resumed(tmp_path, loader(), other)
    (warning,) = warnings(caplog)
    assert said in warning and "The first 3 batches are skipped" in warning


def at_the_start():
    return loader(), loader(5)


def sampled():
    return [SaveableDataLoader(torch.arange(12), batch_sampler=[[0, 1]] * count) for count in (4, 6)]


@pytest.mark.parametrize(
    "loaders, skipped, batch",
    [(lambda: (loader(), loader()), 3, [6, 7]), (sampled, 3, [0, 1]), (at_the_start, 0, [0, 1, 2, 3, 4])],
    ids=["the same", "a sampler of batches", "at the start of an epoch"],
)
def test_a_loader_that_skips_the_same_batches_is_silent(tmp_path, caplog, loaders, skipped, batch):
    assert resumed(tmp_path, *loaders(), skipped).tolist() == batch
    assert not warnings(caplog)


def test_a_loader_reads_what_stock_saves_and_stock_reads_what_it_saves(tmp_path, caplog):
    resumed(tmp_path, loader(), loader())
    (ckpt,) = tmp_path.iterdir()
    assert (ckpt / "dataloader.ckpt").read_text() == "3"
    for path in ckpt.glob("*.size.yaml"):
        path.unlink()
    other = loader(5)
    Checkpointer(tmp_path, {"dataloader": other}).recover_if_possible()
    assert other._speechbrain_recovery_skip_to == 3
    assert not warnings(caplog)


class Validating(Brain):
    """Has items with ids; saves where ``at`` says: after the validation, after training, or within the epoch."""

    at = "valid"

    def compute_forward(self, batch, stage):
        return self.modules.model(batch.x.data)

    def on_stage_end(self, stage, loss, epoch=None):
        if stage.name.lower() == self.at:
            super().on_stage_end(stage, loss, epoch)

    def start(self, epochs=2):
        self.fit(range(epochs), items(8), items(3), None, {"batch_size": 2}, {"batch_size": 2})


class AfterTraining(Validating):
    at = "train"


class WithinAnEpoch(Validating):
    at = "never"


class AfterOneMoreStep(Validating):
    def on_stage_end(self, stage, loss, epoch=None):
        if stage.name == "VALID":
            with torch.enable_grad():
                self.fit_batch(next(iter(self.make_dataloader(items(2), stage, ckpt_prefix=None, batch_size=2))))
        super().on_stage_end(stage, loss, epoch)


class WithoutIds(Validating):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def start(self):
        self.fit(range(2), torch.randn(8, 2), torch.randn(4, 2))


class OwnLoss(Validating):
    def evaluate_batch(self, batch, stage):
        return super().evaluate_batch(batch, stage) * 2


class NotFinite(Validating):
    def evaluate_batch(self, batch, stage):
        return super().evaluate_batch(batch, stage) * float("nan")


class FitInsideFit(Validating):
    def on_stage_start(self, stage, epoch=None):
        if stage.name == "TRAIN" and epoch == 1:
            self.fit(range(5, 6), items(2), items(2), None, {"batch_size": 2}, {"batch_size": 2})


def items(length):
    dataset = DynamicItemDataset({f"i{i}": {"x": [float(i), 1.0]} for i in range(length)})
    dataset.add_dynamic_item(lambda x: torch.tensor(x), "x", "x2")
    dataset.set_output_keys({"id": "id", "x": "x2"})
    return dataset


def records(folder, cls, **options):
    """Train; returns the Brain, and the records of the checkpoints."""
    modules = {"model": torch.nn.Linear(2, 1)}
    run_opts = {"device": "cpu", "noprogressbar": True, **options}
    brain = cls(modules, lambda p: torch.optim.SGD(p, lr=0.1), {}, run_opts, Checkpointer(folder, modules))
    brain.start()
    return brain, [yaml.safe_load(path.read_text()) for path in folder.glob("*/validation.yaml")]


@regression
@pytest.mark.parametrize("cls, factor", [(Validating, 1), (OwnLoss, 2), (FitInsideFit, 1)])
def test_a_checkpoint_records_the_first_batch_of_its_validation(tmp_path, cls, factor):
    brain, (record,) = records(tmp_path, cls)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    with torch.no_grad():
        loss = factor * float(brain.modules.model(x).pow(2).mean())
    assert record == {
        "device": "cpu",
        "epoch": 1,
        "ids": ["i0", "i1"],
        "loss": pytest.approx(loss, rel=1e-6),
        "precision": "fp32",
    }
    assert "evaluate_batch" not in vars(brain) and "save_checkpoint" not in vars(brain.checkpointer)
    (ckpt,) = Checkpointer(tmp_path, {"model": brain.modules.model}).list_checkpoints()
    assert set(ckpt.paramfiles) >= {"model", "brain"} and "validation" not in ckpt.paramfiles


@pytest.mark.parametrize("cls", [AfterTraining, WithinAnEpoch, AfterOneMoreStep, WithoutIds, NotFinite])
def test_no_record_where_it_would_not_hold(tmp_path, cls):
    within = {"ckpt_interval_steps": 3} if cls is WithinAnEpoch else {}
    _, found = records(tmp_path, cls, **within)
    assert not found and any(tmp_path.iterdir())


def test_a_brain_can_be_copied_while_it_trains(tmp_path):
    class Copying(Validating):
        def on_stage_start(self, stage, epoch=None):
            if stage.name == "TRAIN" and epoch == 0:
                assert copy.deepcopy(self).evaluate_batch.__self__ is not self

    records(tmp_path, Copying)
