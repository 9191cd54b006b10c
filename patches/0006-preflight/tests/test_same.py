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
        more = [key for key in ("source", "noise") if key in items[min(items)]]
        for key in more:
            made.add_dynamic_item(sb.dataio.dataio.read_audio, takes=key, provides=f"{key}_sig")
        made.add_dynamic_item(lambda start: self.target(start), takes="start", provides="target")
        made.set_output_keys(["id", "sig", "target", *(f"{key}_sig" for key in more)])
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


@case("label-constant", "warning", "all 6 items have only the label 0", "train target")
def no_speech(run, broken):
    run.target = lambda start: torch.full((12,), 0.0 if broken or start < 5 else 1.0)


@case("label-constant", "warning", "all 6 items have only the label 1", "train target")
def only_speech_in_a_longer_target(run, broken):
    run.target = lambda start: torch.ones(13 + start) * (start < 4 or broken)
    run.loss = lambda scores, target: bce_loss(scores, target.data[:, :12], target.lengths)


@case("label-constant", "warning", "all 6 items have only the label 2", "train target")
def one_class_of_frames(run, broken):
    run.target = lambda start: torch.full((12,), 2 if broken or start < 5 else 1)
    run.model = torch.nn.Linear(80, 3)
    run.loss = lambda scores, target: nll_loss(scores.log_softmax(-1), target.data, target.lengths)


@case("label-constant", "warning", "all 6 items have only the label 0.5", "train target")
def one_pitch(run, broken):
    run.target = lambda start: torch.full((12,), 0.5 if broken else start / 9)
    run.loss = lambda scores, target: mse_loss(scores[..., 0], target.data, target.lengths)


def copied(run, name, other, gain=0.3, spoil=0.0, **options):
    """Replace an item's clip by that of another item, times a number; beyond 16 bits, they differ by noise."""
    sound = soundfile.read(run.folder / f"{other}.wav")[0]
    run.write(name, gain * (sound + spoil * np.random.default_rng([*map(ord, name)]).normal(0, 0.05, len(sound))), **options)


@case("audio-leak", "warning", "1 of 12 files of the validation set are copies of training files, up to a gain", "v1.wav")
def leak(run, broken):
    run.train["t0"]["start"] = run.valid["v1"]["start"]
    copied(run, "v1", "t0", spoil=0.0 if broken else 0.1)


@case("audio-leak", "warning", "1 of 12 files of the validation set are copies of training files, up to a gain", "v4.wav")
def leak_of_the_negative_as_floats(run, broken):
    run.valid["v4"]["start"] = run.train["t3"]["start"]
    copied(run, "v4", "t3", -9.0, spoil=0.0 if broken else 0.1, subtype="FLOAT")


@case("audio-twice", "note", "2 of 6 items have the audio of another item, up to a gain", "train: t0, t1, t2")
def three_gains(run, broken):
    for name, gain in (("t1", 0.5), ("t2", 0.7)):
        copied(run, name, "t0", gain, spoil=0.0 if broken else 0.1)


@case("audio-constant", "warning", "all 6 items have the same audio, up to a gain", "valid")
def all_at_other_gains(run, broken):
    for i, name in enumerate(list(run.valid)[1:]):
        copied(run, name, "v0", 0.9 - i / 9, spoil=0.0 if broken else 0.1)


@case("label-contradicts", "warning", "1 of 5 clips have items with different labels, up to a gain, for ex", "train target")
def two_labels(run, broken):
    run.target = lambda start: torch.tensor([start % 2])
    run.loss = lambda scores, target: nll_loss(torch.cat([scores, -scores], -1).mean(1).log_softmax(-1), target.data[:, 0])
    run.model = torch.nn.Linear(80, 1)
    copied(run, "t1", "t0", spoil=0.0 if broken else 0.1)


@case("audio-silent", "warning", "2 of 12 files contain only silence", "t1.wav")
def silence_at_two_levels(run, broken):
    for name, level in (("t1", 0.1), ("v2", 0.2)) if broken else ():
        run.write(name, np.full(960, level))


def clicks(run):
    for i, name in enumerate(["t0", "t1", "v0", "v1"]):
        run.write(name, np.eye(1, 960)[0] * (i + 1) / 10)


def hum(run):
    """Two recordings of the same hum, with little else."""
    for name in ("t0", "t1", "v0", "v1"):
        rest = np.random.default_rng([*map(ord, name)]).normal(0, 0.003, 960)
        run.write(name, 0.2 * np.sin(np.arange(960) / 25) + rest)


def an_offset(run):
    for items in (run.train, run.valid):
        for name in items:
            run.write(name, soundfile.read(run.folder / f"{name}.wav")[0] / 20 + 0.5)


def noise_of_the_last_bit(run):
    for name in ("t0", "t1", "v0", "v1"):
        run.write(name, np.random.default_rng([*map(ord, name)]).integers(-1, 2, 960) / 2**15)


def sources_of_mixtures(run):
    """Two mixtures have a source in common, at different gains; all have a noise, whatever their label is."""
    two_labels(run, False)
    for items in (run.train, run.valid):
        for i, (name, item) in enumerate(items.items()):
            item["source"] = run.write(
                f"{name}_source", np.random.default_rng(0).normal(0, 0.01 * (i + 1 + ord(name[0]) / 999), 960)
            )["wav"]
            item["noise"] = str(run.folder / "t5.wav")


@pytest.mark.parametrize("change", [clicks, hum, an_offset, noise_of_the_last_bit, sources_of_mixtures])
def test_healthy_clips(tmp_path, change):
    run = Run(tmp_path)
    change(run)
    report = run.report()
    assert not report.findings and not [said for said in report.said if "was checked" in said], report.text()


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
