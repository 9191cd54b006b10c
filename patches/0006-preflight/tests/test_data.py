"""Constant targets and copies at another gain are reported; healthy twins have no findings."""

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.losses import bce_loss, mse_loss, nll_loss
from speechbrain.preflight.__main__ import Takeover

from brains import Classifier

RATE = 8000
CASES = []


class Run:
    """A voice activity detector: its clips, its targets for each frame, and its loss."""

    def __init__(self, folder):
        self.folder = folder
        self.train, self.valid = ({f"{split}{i}": self.item(f"{split}{i}", i) for i in range(6)} for split in "tv")
        self.target = lambda start: (torch.arange(12) >= start).float()
        self.model = torch.nn.Linear(80, 1)
        self.loss = lambda scores, target: bce_loss(scores, target.data, target.lengths)

    def item(self, name, i):
        sound = np.random.default_rng([*map(ord, name)]).normal(0, 0.05, 12 * 80 * (i // 3 + 1))
        return self.write(name, sound) | {"start": i}

    def write(self, name, sound, **options):
        path = str(self.folder / f"{name}.wav")
        soundfile.write(path, sound, RATE, **options)
        return {"wav": path}

    def dataset(self, items):
        made = DynamicItemDataset({name: {**item} for name, item in items.items()})
        made.add_dynamic_item(sb.dataio.dataio.read_audio, takes="wav", provides="sig")
        made.add_dynamic_item(lambda start: self.target(start), takes="start", provides="target")
        made.set_output_keys(["id", "sig", "target"])
        return made

    def report(self):
        run = self

        class Detector(Classifier):
            def compute_forward(self, batch, stage):
                return self.modules.model(batch.sig.data[:, :960].reshape(len(batch.id), 12, 80))

            def compute_objectives(self, predictions, batch, stage):
                return run.loss(predictions, batch.target)

        torch.manual_seed(0)
        brain = Detector({"model": self.model})
        loader = {"batch_size": 3}
        sets = self.dataset(self.train), self.dataset(self.valid)
        return Takeover().run(lambda: brain.fit(range(1), *sets, train_loader_kwargs=loader, valid_loader_kwargs=loader))


def case(code, level, what, where):
    """Register a function that breaks a Run, or makes its healthy twin."""

    def register(change):
        CASES.append(pytest.param(change, code, level, what, where, id=change.__name__))
        return change

    return register


@case("label-constant", "warning", "all 6 items have the label 0 in all frames", "train target")
def no_speech(run, broken):
    run.target = lambda start: torch.full((12,), 0.0 if broken or start < 5 else 1.0)


@case("label-constant", "warning", "all 6 items have the label 1 in all frames", "train target")
def only_speech_in_a_longer_target(run, broken):
    run.target = lambda start: torch.ones(13 + start) * (start < 4 or broken)
    run.loss = lambda scores, target: bce_loss(scores, target.data[:, :12], target.lengths)


@case("label-constant", "warning", "all 6 items have the label 2 in all frames", "train target")
def one_class_of_frames(run, broken):
    run.target = lambda start: torch.full((12,), 2 if broken or start < 5 else 1)
    run.model = torch.nn.Linear(80, 3)
    run.loss = lambda scores, target: nll_loss(scores.log_softmax(-1), target.data, target.lengths)


@case("label-constant", "warning", "all 6 items have the label 0.5 in all frames", "train target")
def one_pitch(run, broken):
    run.target = lambda start: torch.full((12,), 0.5 if broken else start / 9)
    run.loss = lambda scores, target: mse_loss(scores[..., 0], target.data, target.lengths)


def report_of(folder, change, *_, broken=True):
    run = Run(folder)
    change(run, broken)
    return run.report()


@pytest.mark.parametrize("change, code, level, what, where", CASES)
def test_a_mistake_is_reported(tmp_path, change, code, level, what, where):
    report = report_of(tmp_path, change)
    assert [(f.code, f.level) for f in report.findings] == [(code, level)], report.text()
    assert what in report.findings[0].what and where in report.findings[0].where and report.findings[0].remedy
    assert not [said for said in report.said if "was checked" in said], report.said


@pytest.mark.parametrize("change", [pytest.param(case.values[0], id=case.id) for case in CASES])
def test_its_healthy_twin_has_no_findings(tmp_path, change):
    report = report_of(tmp_path, change, broken=False)
    assert not report.findings and not [said for said in report.said if "was checked" in said], report.text()
