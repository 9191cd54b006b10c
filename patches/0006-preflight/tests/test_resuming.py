"""What a run can, and does, continue: each code in a broken training, and not in its healthy twin."""

import contextlib
import os

import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.schedulers import NewBobScheduler, NoamScheduler
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import resume
from speechbrain.preflight.observe import loads
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.epoch_loop import EpochCounter
from torch.nn import Linear, ModuleList

from brains import LOADER, OPTIONS

CASES = []
RECORDS = hasattr(sb.Brain, "_evaluate_and_note")  # the stock release records no validation


def case(code, level, where, says="", **options):
    """Register a Brain's class whose attribute ``broken`` makes it faulty."""

    def register(brain):
        CASES.append(pytest.param(brain, code, level, where, says, id=f"{code}: {brain.__name__}"))
        return brain

    return register


def items(length=16):
    """A dataset whose items have ids."""
    draw = torch.Generator().manual_seed(length)
    found = {f"item{i}": {"number": i} for i in range(length)}
    x = torch.randn(length, 4, generator=draw) + 3
    dataset = DynamicItemDataset(found)
    dataset.add_dynamic_item(lambda number: x[number], "number", "x")
    dataset.set_output_keys(["id", "x", "number"])
    return dataset


class Run(sb.Brain):
    """A training that is saved after each epoch, and that continues in the same folder."""

    broken = False
    epochs, again = 2, 4  # the epochs of the first run, and of the second
    lr = 0.1
    partial = False

    def __init__(self, folder):
        self.counter = EpochCounter(self.epochs)
        modules = {"head": Linear(4, 3), **self.more()}
        self.known = {**modules, "counter": self.counter}
        hparams = self.settings()
        checkpointer = Checkpointer(folder / "save", self.recoverables(), allow_partial_load=self.partial)
        super().__init__(modules, self.make, hparams, OPTIONS, checkpointer)

    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)

    def more(self):
        return {}

    def settings(self):
        return {}

    def recoverables(self):
        return self.known

    def compute_forward(self, batch, stage):
        return self.modules.head(batch.x.data)

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, torch.as_tensor(batch.number) % 3)

    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only({"loss": loss})

    def start(self):
        self.fit(self.counter, items(), items(12), train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


@case("used-not-saved", "warning", "noam", "this NoamScheduler changes in training, but it is in no recoverable")
class SchedulerOfSteps(Run):
    def settings(self):
        self.noam = NoamScheduler(0.1, 5)
        self.known.update({} if self.broken else {"noam": self.noam})
        return {"noam": self.noam}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.noam(self.optimizer)


@case("used-not-saved", "warning", "annealing", "NewBobScheduler")
class SchedulerOfEpochs(Run):
    def settings(self):
        annealing = NewBobScheduler(0.1)
        self.known.update({} if self.broken else {"annealing": annealing})
        return {"annealing": annealing}

    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.hparams.annealing(loss)
        super().on_stage_end(stage, loss, epoch)


@case("used-not-saved", "warning", "schedulers[0]", "ExponentialLR")
class SchedulerOfTorch(Run):
    def init_optimizers(self):
        super().init_optimizers()
        self.schedulers = [torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)]
        if not self.broken:
            self.checkpointer.add_recoverable("scheduler", self.schedulers[0])

    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.schedulers[0].step()
        super().on_stage_end(stage, loss, epoch)


@case("used-not-saved", "warning", "counter", "EpochCounter")
class CounterOfEpochs(Run):
    def recoverables(self):
        return {name: item for name, item in self.known.items() if name != "counter" or not self.broken}


@case("used-not-saved", "warning", "optimizers_dict['opt_class']", "Adam")
class OptimizerOfItsOwn(Run):
    def init_optimizers(self):
        self.optimizer = torch.optim.Adam(self.modules.parameters())
        self.optimizers_dict = {"opt_class": self.optimizer}
        if not self.broken:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)


class Normalised(Run):
    def more(self):
        return {"norm": InputNormalization(norm_type="global")}

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.norm(batch.x.data[:, None], torch.ones(len(batch.x.data)), epoch=1)[:, 0])


@case("used-not-saved", "warning", "norm", "InputNormalization")
class NormaliserInModules(Normalised):
    def recoverables(self):
        return {name: item for name, item in self.known.items() if name != "norm" or not self.broken}


@case("used-not-saved", "warning", "norm", "but the saved state dict of 'all' does not contain its state")
class NormaliserInAList(Normalised):
    def recoverables(self):
        everything = {"all": ModuleList([self.known["head"], self.known["norm"]]), "counter": self.counter}
        return everything if self.broken else {**everything, "norm": self.known["norm"]}


@case("used-not-saved", "warning", "average", "AveragedModel")
class MovingAverage(Run):
    def settings(self):
        average = torch.optim.swa_utils.AveragedModel(self.known["head"])
        self.known.update({} if self.broken else {"average": average})
        return {"average": average}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.average.update_parameters(self.modules.head)


@register_checkpoint_hooks
class Scale(torch.nn.Module):
    factor = 1.0

    @mark_as_saver
    def save(self, path):
        path.write_text(str(self.factor))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.factor = float(path.read_text())


class OtherScale(Scale):
    def save(self, path):
        path.write_text("2")


@case("saver-not-called", "warning", "scale", "does not call OtherScale.save, but save of Scale")
class SaverNotMarked(Run):
    def more(self):
        return {"scale": OtherScale() if self.broken else Scale()}


@case("adapted-saved-whole", "note", "head", "each checkpoint has all ")
class InsideOfAnAdaptedModel(Run):
    def more(self):
        adapters = pytest.importorskip("speechbrain.nnet.adapters")  # not in 1.0.1
        self.inner = torch.nn.Sequential(Linear(4, 40), Linear(40, 3))
        self.inner.load_state_dict(
            {key: torch.linspace(-1, 1, p.numel()).view_as(p) for key, p in self.inner.state_dict().items()}
        )
        return {"head": adapters.AdaptedModel(self.inner, adapters.LoRA, all_linear=True, adapter_kwargs={"rank": 1})}

    def recoverables(self):
        return {**self.known, **({"head": self.inner} if self.broken else {})}


@case("nothing-left", "warning", "EpochCounter", "is from the end of a run")
class Finished(Run):
    def start(self):
        self.counter.limit = self.epochs if self.broken else self.counter.limit
        super().start()


@case("not-recovered", "warning", None, "has 1 checkpoint of an earlier run, but training starts from scratch")
class Forgetful(Run):
    def on_fit_start(self):
        self.init_optimizers()
        if not self.broken:
            self.checkpointer.recover_if_possible()


@case("not-recovered", "warning", None, "because the recovery failed (RuntimeError")
class Stubborn(Run):
    def on_fit_start(self):
        if self.broken and self.counter.limit > self.epochs:
            self.checkpointer.add_recoverable("more", Linear(2, 2))
        with contextlib.suppress(RuntimeError):
            super().on_fit_start()


@case("recovered-in-part", "note", None, "no files for extra (allow_partial_load is True)")
class Partial(Run):
    partial = True

    def start(self):
        if self.broken and self.counter.limit > self.epochs:
            self.checkpointer.add_recoverable("extra", EpochCounter(1))
        super().start()


@case(
    "learning-rate-differs",
    "note",
    None,
    "optimizer continues with the learning rate 0.1 of the checkpoint, not with the script's 0.01",
)
class OtherRate(Run):
    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=0.01 if self.broken and self.counter.limit > self.epochs else 0.1)


@case("resume-differs", "warning", None, "the loss of the same 8 items is ")
class StateOfItsOwn(Run):
    factor = 1.0

    def compute_objectives(self, predictions, batch, stage):
        return super().compute_objectives(predictions * self.factor, batch, stage)

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN and self.broken:
            self.factor += 1


def first_run(cls, folder):
    """Train, and put the checkpoints into the past."""
    torch.manual_seed(0)
    cls(folder).start()
    for path in (folder / "save").glob("*/CKPT.yaml"):
        path.write_text(yaml.dump({**yaml.safe_load(path.read_text()), "unixtime": loads.BEGAN - 100}))


def second_run(cls, folder):
    def start():
        brain = cls(folder)
        brain.counter.limit = brain.again
        brain.start()

    return Takeover().run(start)


def resumed(cls, folder, broken):
    cls = type(cls.__name__, (cls,), {"broken": broken})
    first_run(cls, folder)
    return second_run(cls, folder)


def report_of(folder, cls, *_):
    return resumed(cls, folder, True)


@pytest.mark.parametrize("cls, code, level, where, says", CASES)
def test_a_broken_training_is_reported(tmp_path, cls, code, level, where, says):
    if code == "resume-differs" and not RECORDS:
        pytest.skip("the stock release records no validation")
    report = resumed(cls, tmp_path, True)
    found = [f for f in report.findings if f.code != "resume-differs" or code == "resume-differs"]
    assert [(f.code, f.level) for f in found] == [(code, level)], report.text()
    assert where is None or found[0].where == where, report.text()
    assert says in found[0].what and found[0].remedy, report.text()
    assert not [said for said in report.said if "was checked" in said], report.said


@pytest.mark.parametrize("cls", [pytest.param(one.values[0], id=one.id) for one in CASES])
def test_its_healthy_twin_has_no_findings(tmp_path, cls):
    report = resumed(cls, tmp_path, False)
    assert not report.findings, report.text()
    assert not [said for said in report.said if "was checked" in said], report.said


def test_every_code_has_a_case():
    assert resume.CODES.keys() == {one.values[1] for one in CASES}


@pytest.mark.skipif(not RECORDS, reason="the stock release records no validation")
@pytest.mark.parametrize("broken", [True, False])
def test_the_proof_works_where_everything_is_restored(tmp_path, monkeypatch, broken):
    monkeypatch.delattr(os, "fork")  # as on a GPU
    found = [finding.code for finding in resumed(StateOfItsOwn, tmp_path, broken).findings]
    assert found == ["resume-differs"] * broken


class Random(Run):
    def compute_forward(self, batch, stage):
        return super().compute_forward(batch, stage) + torch.randn(3)


class OtherItems(Run):
    def start(self):
        other = items(12 if self.counter.limit == self.epochs else 16).filtered_sorted(sort_key="number", reverse=True)
        self.fit(self.counter, items(), other, train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)


class WithoutCheckpointer(Run):
    def __init__(self, folder):
        super().__init__(folder)
        self.checkpointer = None

    def settings(self):
        return {"noam": NoamScheduler(0.1, 5)}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.noam(self.optimizer)

    def on_stage_end(self, stage, loss, epoch=None):
        pass


class SavesNothingOfItsOwn(WithoutCheckpointer):
    def __init__(self, folder):
        Run.__init__(self, folder)

    def recoverables(self):
        return {}

    def make(self, parameters):
        self.checkpointer.recoverables.clear()
        return super().make(parameters)


class SavesInItsOwnWay(SchedulerOfSteps):
    broken = True

    def save_all(self):
        torch.save(self.noam, "noam.ckpt")


class Decays(Run):
    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.optimizer.param_groups[0]["lr"] /= 2
        super().on_stage_end(stage, loss, epoch)


HEALTHY = (Random, OtherItems, WithoutCheckpointer, SavesNothingOfItsOwn, SavesInItsOwnWay, Decays, Normalised)


@pytest.mark.parametrize("cls", HEALTHY)
def test_a_healthy_resume_has_no_findings(tmp_path, cls):
    first_run(cls, tmp_path)
    report = second_run(cls, tmp_path)
    assert not [f for f in report.findings if f.code in resume.CODES], report.text()
    assert not [said for said in report.said if "was checked" in said], report.said
