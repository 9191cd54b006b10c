"""Mistakes in the first validation are reported, and it leaves no traces."""

import copy
import logging
import math
import re
import statistics
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from speechbrain.augment.time_domain import AddNoise
from speechbrain.core import Stage
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight import isolate, preflight
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import attempts, validation
from speechbrain.preflight.observe import first_valid
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger
from torch.nn import BatchNorm1d, Dropout, LayerNorm, Linear, Sequential
from torch.nn.functional import dropout

from brains import LOADER, Classifier, data, sgd

CASES = []


def case(code, level=None, says="", hparams=None, **options):
    """Register a Brain whose attribute ``broken`` makes it faulty; a level of None: both are healthy."""

    def register(brain):
        CASES.append(pytest.param(brain, code, level, says, hparams or (lambda folder: {}), options, id=brain.__name__))
        return brain

    return register


class Validated(Classifier):
    broken = True

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        return loss if stage == Stage.TRAIN else self.validate(predictions, batch, loss)

    def validate(self, predictions, batch, loss):
        return loss

    def on_stage_end(self, stage, loss, epoch=None):
        self.end_training(loss) if stage == Stage.TRAIN else self.end_validation(loss, epoch)

    def end_training(self, loss):
        self.train_loss = loss

    def end_validation(self, loss, epoch):
        pass


@case("first-validation-failed", "error", "AttributeError")
class MistypedInObjectives(Validated):
    def validate(self, predictions, batch, loss):
        self.wrong = (predictions.argmax(1) != batch[1]).sum()
        return loss + 0 * (self.wrnog if self.broken else self.wrong)


@case("first-validation-failed", "error", "KeyError")
class MistypedAtTheEnd(Validated):
    def end_validation(self, loss, epoch):
        stats = {"loss": loss}
        self.last = stats["los" if self.broken else "loss"]


@case("first-validation-failed", "error", "'NoneType'")
class NothingFromTraining(Validated):
    def end_training(self, loss):
        self.train_loss = None if self.broken else loss

    def end_validation(self, loss, epoch):
        self.gap = loss - self.train_loss


@case("first-validation-failed", "error", "mat1 and mat2 shapes", valid=lambda: data(size=5))
class OtherSize(Validated):
    def compute_forward(self, batch, stage):
        return self.modules.head(batch[0][:, : None if self.broken else 4])


MODE = "validation-in-training-mode", "warning"


@case(*MODE, "runs with dropout in training mode: its loss is", lambda folder: {"dropout": Dropout(0.5)})
class DropoutOutsideModules(Validated):
    def compute_forward(self, batch, stage):
        x = self.hparams.dropout(batch[0]) if self.broken or stage == Stage.TRAIN else batch[0]
        return self.modules.head(x)


@case(*MODE, "runs with norm in training mode", lambda folder: {"norm": BatchNorm1d(2, affine=False)})
@case(MODE[0], "note", "runs with norm in training mode", lambda folder: {"norm": InputNormalization()})
class NormOutsideModules(Validated):
    def compute_forward(self, batch, stage):
        if not self.broken:
            self.hparams.norm.train(stage == Stage.TRAIN)
        lengths = [torch.ones(len(batch[0]))] * isinstance(self.hparams.norm, InputNormalization)
        return self.modules.head(self.hparams.norm(batch[0].reshape(-1, 2, 2), *lengths).flatten(1))


@case(MODE[0], "note", "runs with head.1 in training mode", head=lambda: Sequential(Linear(4, 3), Dropout(0.1)))
class SamplesWithDropout(Validated):
    def compute_forward(self, batch, stage):
        self.modules.head[1].train(self.broken or stage == Stage.TRAIN)
        return self.modules.head(batch[0])


@case(*MODE, "runs with head.1 in training mode: its loss is", head=lambda: Sequential(Linear(4, 3), Dropout(0.1)))
class CallsTrain(Validated):
    def compute_forward(self, batch, stage):
        if self.broken or stage == Stage.TRAIN:
            self.modules.train()
        return super().compute_forward(batch, stage)


@case(None, head=lambda: Sequential(Linear(4, 4), LayerNorm(4), Dropout(0.0), Linear(4, 3)))
class CallsTrainForNothing(CallsTrain):
    pass


@case("validation-random", "warning", "test_validation.py:")
class FunctionalDropout(Validated):
    def compute_forward(self, batch, stage):
        return self.modules.head(dropout(batch[0], 0.5, training=self.broken or stage == Stage.TRAIN))


@case(
    "validation-random",
    "note",
    "validation calls an augmentation in ",
    lambda folder: {"augment": AddNoise(snr_low=0, snr_high=0)},
)
class Augments(Validated):
    def compute_forward(self, batch, stage):
        if self.broken or stage == Stage.TRAIN:
            return self.modules.head(self.hparams.augment(batch[0], torch.ones(8)))
        return super().compute_forward(batch, stage)


@case(None, hparams=lambda folder: {"unused": Dropout(0.5)})
class Samples(Validated):
    def validate(self, predictions, batch, loss):
        return loss + torch.rand(())


@case("validation-loss", "note", "exactly 0")
class Zero(Validated):
    def validate(self, predictions, batch, loss):
        return loss * (not self.broken)


@case("validation-loss", "warning", "is nan")
class NotFinite(Validated):
    def validate(self, predictions, batch, loss):
        return loss * (math.nan if self.broken else 1)


@case("validation-drops-items", "warning", "6 of 30 items", valid=lambda: data(30), drop_last=True)
class Drops(Validated):
    pass


@case("validation-drops-items", "note", "1 of 33 items", valid=lambda: data(33), drop_last=True)
class DropsOne(Validated):
    pass


@case(None)
class MetricsOfFewItems(Validated):
    def validate(self, predictions, batch, loss):
        self.hits = [item for item in predictions.softmax(1) if item.max() > 2]
        return loss

    def end_validation(self, loss, epoch):
        if self.broken:
            torch.cat(self.hits)
        statistics.mean(item.max() for item in self.hits)


@case(None)
class DividesByZero(Validated):
    def end_training(self, loss):
        self.train_loss = loss / (0 if self.broken else 0.0)

    def end_validation(self, loss, epoch):
        self.gap = self.train_loss  # which does not exist, because of the division


@case(None)
class CountsBatches(Validated):
    def on_fit_start(self):
        super().on_fit_start()
        self.losses = []

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.losses.append(float(loss))
        self.last = outputs

    def end_training(self, loss):
        self.train_loss = max(self.losses), self.last


@case(None)
class StateThatMoves(Validated):
    def validate(self, predictions, batch, loss):
        self.calls = getattr(self, "calls", 0) + 1
        return loss * self.calls


@case(None)
class DecodesWhatNoLabelIs(Validated):
    def validate(self, predictions, batch, loss):
        encoder = CategoricalEncoder()
        encoder.update_from_iterable("ab" if self.broken else "abc")
        encoder.decode_torch(torch.tensor([2]))
        return loss


@case(None)
class OwnValidation(Validated):
    def _fit_valid(self, valid_set, epoch, enable):
        pass

    def validate(self, predictions, batch, loss):
        return self.absent


@case(None, checkpoints=True)
class ReadsItsCheckpoint(Validated):
    def end_validation(self, loss, epoch):
        self.checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
        self.checkpointer.find_checkpoint(min_key="loss").paramfiles.items()


def run(brain, folder, broken, hparams, valid=data, checkpoints=False, drop_last=False, head=lambda: Linear(4, 3)):
    torch.manual_seed(0)
    modules = {"head": head()}
    checkpointer = Checkpointer(folder / "save", modules) if checkpoints else None
    made = brain(modules, sgd, hparams(folder), checkpointer=checkpointer)
    made.broken = broken
    options = {**LOADER, "drop_last": drop_last and broken}
    return lambda: made.fit(range(1, 2), data(), valid(), train_loader_kwargs=LOADER, valid_loader_kwargs=options)


def report_of(folder, brain, code, level, says, hparams, options):
    return Takeover().run(run(brain, folder, True, hparams, **options))


@pytest.mark.parametrize("brain, code, level, says, hparams, options", CASES)
@pytest.mark.parametrize("forks", [True, False])
def test_the_first_validation(monkeypatch, tmp_path, brain, code, level, says, hparams, options, forks):
    if not forks:
        monkeypatch.setattr(attempts, "can_fork", lambda brain: False)
    report = report_of(tmp_path, brain, code, level, says, hparams, options)
    assert [(f.code, f.level) for f in report.findings] == ([(code, level)] if level else []), report.text()
    for finding in report.findings:
        assert says in finding.what.partition("\n")[0] and finding.where and finding.remedy
    report = Takeover().run(run(brain, tmp_path, False, hparams, **options))
    assert not report.findings and not [said for said in report.said if "checked" in said], report.text()


class Writes(Validated):
    """Does what recipes do at the end of an epoch."""

    def end_validation(self, loss, epoch):
        folder = self.hparams.folder
        (folder / "figures").mkdir(exist_ok=True)
        for path, mode in ((folder / "wer.txt", "w"), (folder / "log.txt", "a"), (folder / "figures" / "1.png", "wb")):
            with open(path, mode) as file:
                file.write("text" if mode != "wb" else b"text")
        assert (folder / "wer.txt").read_text() == "text" and open(folder / "log.txt").read() == "oldtext"
        torch.save({}, folder / "figures" / "state.pt")
        sb.dataio.dataio.write_audio(str(folder / "clip.wav"), torch.zeros(100), 16000)
        (folder / "log.txt").unlink()
        for train_logger in self.hparams.loggers:
            train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, {"loss": loss})
        logging.getLogger("speechbrain.test").warning("an epoch has ended")
        print("an epoch has ended")
        self.hparams.schedule.step()
        self.checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])


def test_the_remedy_fits_what_is_in_training_mode(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    for brain, where, remedy in (
        (CallsTrain, r"test_validation.py:\d+ in compute_forward", "call train()"),
        (DropoutOutsideModules, "DropoutOutsideModules", "add it"),
    ):
        options = next(param.values[3:] for param in CASES if param.values[0] is brain)
        (finding,) = report_of(tmp_path, brain, None, None, *options).findings
        assert re.fullmatch(where, finding.where) and remedy in finding.remedy, finding


@pytest.mark.parametrize("forks", [True, False])
def test_it_leaves_no_traces(monkeypatch, tmp_path, capfd, caplog, forks):
    class Quiet(TensorboardLogger):
        def __init__(self):
            pass

        def log_stats(self, *args, **kwargs):
            raise NotImplementedError

    (tmp_path / "log.txt").write_text("old")
    modules = {"head": Linear(4, 3)}
    loggers = [FileTrainLogger(str(tmp_path / "train_log.txt")), Quiet()]
    hparams = {"folder": tmp_path, "loggers": loggers, "epoch_counter": EpochCounter(3)}
    brain = Writes(modules, sgd, hparams, checkpointer=Checkpointer(tmp_path / "save", modules))
    brain.hparams.schedule = torch.optim.lr_scheduler.StepLR(sgd(brain.modules.parameters()), 1)
    before, files = copy.deepcopy(vars(brain.hparams.schedule)), {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    if not forks:
        for module in (isolate, attempts):
            monkeypatch.setattr(module, "can_fork", lambda brain: False)
        monkeypatch.setattr("speechbrain.preflight.run.can_fork", lambda brain: False)
    report = preflight(brain, data(), data(), LOADER, LOADER)
    assert not report.findings, report.text()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == files and not (tmp_path / "figures").exists()
    after = vars(brain.hparams.schedule)
    assert after["last_epoch"] == before["last_epoch"] and hparams["epoch_counter"].current == 0
    assert "an epoch" not in capfd.readouterr().out + caplog.text and brain.step == 0


@pytest.mark.parametrize("forks", [True, False])
def test_it_takes_no_longer_than_it_may(monkeypatch, tmp_path, forks):
    class Slow(Validated):
        def validate(self, predictions, batch, loss):
            while True:
                pass

    monkeypatch.setattr(first_valid, "SECONDS", 0.5)
    if not forks:
        monkeypatch.setattr(attempts, "can_fork", lambda brain: False)
    report = Takeover().run(run(Slow, tmp_path, True, lambda folder: {}))
    assert not report.findings and any("takes more than 0.5 s" in said for said in report.said), report.text()


def test_every_code_has_a_case():
    codes = {param.values[1] for param in CASES}
    codes.add("processes-apart")  # its test is in test_runner.py
    assert {*validation.CODES, "first-validation-failed"} <= codes and "first-validation-failed" in attempts.CODES
