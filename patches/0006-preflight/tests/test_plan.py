"""The plan of a run says what it is going to do, and mistakes in it are found."""

import functools
import json

import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.nnet import schedulers
from speechbrain.preflight import preflight
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import plan as checks
from speechbrain.preflight.checks.plan import _better
from speechbrain.preflight.observe.plan import _duration
from speechbrain.utils.checkpoints import Checkpointer, ckpt_recency
from speechbrain.utils.epoch_loop import EpochCounter, EpochCounterWithStopper
from torch.nn import Linear
from torch.optim.lr_scheduler import LambdaLR, LinearLR, SequentialLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brains import LOADER, Classifier, body, data, head, sgd

CASES = []


def case(code, level, where, **options):
    """Register a function that returns a Brain, broken or healthy; it trains 4 batches of each of 2 epochs."""

    def register(make):
        CASES.append(pytest.param(make, code, level, where, options, id=f"{code}: {make.__name__}"))
        return make

    return register


def fit(brain, shuffle=False):
    loaders = {"train_loader_kwargs": {**LOADER, "shuffle": shuffle}, "valid_loader_kwargs": LOADER}
    return Takeover().run(lambda: brain.fit(EpochCounter(2), getattr(brain, "data", data()), data(), **loaders))


def rate(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


# Steps


@case("no-step", "error", "grad_accumulation_factor: {}")
def factor_above_the_batches(folder, broken):
    return Classifier({"head": Linear(4, 3)}, grad_accumulation_factor=5 if broken else 4)


@case("batches-without-step", "warning", "grad_accumulation_factor: 3")
def factor_that_leaves_the_same_batch(folder, broken):
    return Classifier({"head": Linear(4, 3)}, grad_accumulation_factor=3 if broken else 2)


@case("batches-without-step", "note", "grad_accumulation_factor: 3", shuffle=True)
def factor_that_leaves_any_batch(folder, broken):
    return Classifier({"head": Linear(4, 3)}, grad_accumulation_factor=3 if broken else 2)


@case("debug-is-on", "note", "debug: True")
def debug(folder, broken):
    return Classifier({"head": Linear(4, 3)}, debug=broken)


@case("trained-twice", "warning", "one, other")
def two_optimizers(folder, broken):
    class Brain(Classifier):
        def init_optimizers(self):
            self.optimizers_dict = {
                "one": sgd(self.modules.body.parameters()),
                "other": sgd((self.modules if broken else self.modules.head).parameters()),
            }

    return Brain({"body": body(), "head": head()}, None)


# Learning rates and gradients


@case("learning-rate-zero", "error", "optimizers_dict['opt_class'], group 0")
def rate_of_zero(folder, broken):
    return Classifier({"head": Linear(4, 3)}, rate(0.0 if broken else 1e-9))


@case("learning-rate-zero", "warning", "optimizers_dict['opt_class'], group 1")
def one_rate_of_zero(folder, broken):
    one, other = body(), head()
    groups = [{"params": one.parameters()}, {"params": other.parameters(), "lr": 0 if broken else 0.1}]
    return Classifier({"body": one, "head": other}, lambda parameters: sgd(groups), max_grad_norm=1e9)


@case("learning-rate-zero", "warning", "optimizers_dict['opt_class'], group 0")
def rate_that_is_multiplied_after_each_epoch(folder, broken):
    class Brain(Classifier):
        def init_optimizers(self):
            super().init_optimizers()
            self.schedule = LambdaLR(self.optimizer, lambda epoch: epoch)

        def on_stage_end(self, stage, loss, epoch=None):
            if stage == sb.Stage.VALID:
                self.schedule.step()

    return Brain({"head": Linear(4, 3)}, rate(0.0 if broken else 1e-3))


@case("learning-rate-zero", "warning", "optimizers_dict['opt_class'], group 0")
def rate_that_is_multiplied_after_each_step(folder, broken):
    class Brain(Classifier):
        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            if should_step:
                self.hparams.noam(self.optimizer)

    hparams = {"noam": schedulers.NoamScheduler(0.0 if broken else 0.1, 2)}
    return Brain({"head": Linear(4, 3)}, rate(0.0), hparams, grad_accumulation_factor=4)


@case("gradient-clipped-to-zero", "error", "max_grad_norm: 0")
def clipping_to_zero(folder, broken):
    return Classifier({"head": Linear(4, 3)}, max_grad_norm=0 if broken else 1e-3)


def warm_up(name, make):
    @case("warm-up-too-long", "warning", "schedule")
    def warms_up(folder, broken):
        brain = Classifier({"head": Linear(4, 3)})
        brain.schedule = make(9 if broken else 8, rate(0.1)(brain.modules.parameters()))
        return brain

    warms_up.__name__ = name
    CASES[-1] = pytest.param(*CASES[-1].values, id=f"warm-up-too-long: {name}")


warm_up("Noam", lambda steps, optimizer: schedulers.NoamScheduler(0.1, steps))
warm_up("LinearWarmup", lambda steps, optimizer: schedulers.LinearWarmupScheduler(0.1, steps, 99))
warm_up("WarmAndExpDecay", lambda steps, optimizer: schedulers.WarmAndExpDecayLRSchedule(0.1, steps, 99))
warm_up("WarmCoolDecay", lambda steps, optimizer: schedulers.WarmCoolDecayLRSchedule(0.1, steps, 9, 99))
warm_up("LinearLR", lambda steps, optimizer: LinearLR(optimizer, 0.1, total_iters=steps))
warm_up("Sequence", lambda n, optimizer: SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1, n), StepLR(optimizer, 9)], [9]))


@case("warm-up-too-long", "warning", "schedule")
def warm_up_as_of_transformers(folder, broken):
    def factor(step, *, num_warmup_steps):
        return min(1.0, step / num_warmup_steps)

    brain = Classifier({"head": Linear(4, 3)})
    function = functools.partial(factor, num_warmup_steps=9 if broken else 8)
    brain.schedule = LambdaLR(rate(0.1)(brain.modules.parameters()), function)
    return brain


@case("average-hardly-moves", "warning", "average")
def average_of_torch(folder, broken):
    brain = Classifier({"head": Linear(4, 3)})
    brain.average = AveragedModel(brain.modules, multi_avg_fn=get_ema_multi_avg_fn(0.999 if broken else 0.9))
    return brain


@case("average-hardly-moves", "warning", "average")
def average_of_another_package(folder, broken):
    class ExponentialMovingAverage:
        decay, num_updates = 0.999, None if broken else 0

    brain = Classifier({"head": Linear(4, 3)})
    brain.average = ExponentialMovingAverage()
    return brain


# Checkpoints


class Saving(Classifier):
    """Saves in a folder after each epoch."""

    def __init__(self, folder, hparams=None, **options):
        modules = {"head": Linear(4, 3)}
        super().__init__(modules, sgd, hparams, checkpointer=Checkpointer(folder / "save", modules), **options)

    def on_stage_end(self, stage, loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.save({"loss": loss, "ACC": 0.5, "neg_loss": -loss, "si-snr": -9.0}, epoch)

    def save(self, stats, epoch):
        self.checkpointer.save_and_keep_only(meta=stats, num_to_keep=3, min_keys=["loss"])


@case("best-is-worst", "warning", "{file}:{line}")
def keeps_the_highest_loss(folder, broken):
    class Brain(Saving):
        def save(self, stats, epoch):
            self.checkpointer.save_and_keep_only(stats, min_keys=["si-snr"], max_keys=["loss" if broken else "neg_loss"])

    return Brain(folder)


@case("best-is-worst", "warning", "{file}:{line}")
def keeps_the_lowest_accuracy(folder, broken):
    class Brain(Saving):
        def save(self, stats, epoch):
            keys = {"min_keys" if broken else "max_keys": ["ACC"]}
            self.checkpointer.save_and_keep_only(meta=stats, **keys)

    return Brain(folder)


@case("best-is-worst", "warning", "{file}:{line}")
def anneals_by_the_accuracy(folder, broken):
    class Brain(Saving):
        def save(self, stats, epoch):
            if broken:
                _, self.rate = self.annealing(stats["ACC"])
            else:
                self.annealing(stats["loss"])
                self.annealing(1 - stats["ACC"])

    brain = Brain(folder)
    brain.annealing = schedulers.NewBobScheduler(0.1)
    return brain


@case("best-is-worst", "warning", "{file}:{line}")
def stops_by_the_accuracy(folder, broken):
    class Brain(Saving):
        def save(self, stats, epoch):
            acc = stats["ACC"]
            self.stopper.update_metric(acc)

    brain = Brain(folder)
    brain.stopper = EpochCounterWithStopper(9, 1, 0, "min" if broken else "max")
    return brain


@case("averages-more-than-kept", "warning", "avg_checkpoints: 7")
def averages_seven(folder, broken):
    return Saving(folder, {"avg_checkpoints": 7 if broken else 6})


@case("averages-more-than-kept", "warning", "avg_checkpoints: 7")
def averages_seven_after_earlier_saves(folder, broken):
    class Brain(Saving):
        def save(self, stats, epoch):
            recency = [ckpt_recency] * 3  # what stock's default contains after three calls
            self.checkpointer.save_and_keep_only(meta=stats, num_to_keep=3, min_keys=["loss"], importance_keys=recency)

    return Brain(folder, {"avg_checkpoints": 7 if broken else 6})


@case("loader-not-saved", "note", "ckpt_interval_minutes: 9")
def plain_loader(folder, broken):
    brain = Saving(folder, ckpt_interval_minutes=9)
    brain.data = torch.utils.data.DataLoader(data(), 8) if broken else data()
    return brain


def report_of(folder, make, code, level, where, options):
    return fit(make(folder, True), **options)


@pytest.mark.parametrize("make, code, level, where, options", CASES)
def test_a_mistake_in_the_plan(tmp_path, make, code, level, where, options):
    report = report_of(tmp_path, make, code, level, where, options)
    assert [(f.code, f.level) for f in report.findings] == [(code, level)], report.text()
    (finding,) = report.findings
    assert finding.what and finding.remedy
    if "{file}" in where:
        assert finding.where.startswith(where.partition("{")[0]) and f"{__file__.rpartition('/')[2]}:" in finding.where
    else:
        assert finding.where == where.format(5)
    report = fit(make(tmp_path, False), **options)
    assert not report.findings and not [said for said in report.said if "was checked" in said], report.text()


def test_every_code_has_a_case():
    assert {*checks.CODES} == {param.values[1] for param in CASES}


@pytest.mark.skipif(hasattr(sb.Brain, "_upstream_optimizers_step"), reason="here, a negative max_grad_norm means no clipping")
def test_a_negative_norm_on_the_stock_release(tmp_path):
    report = fit(Classifier({"head": Linear(4, 3)}, max_grad_norm=-1))
    assert [finding.code for finding in report.findings] == ["gradient-clipped-to-zero"]


def for_each_epoch(brain):
    brain.schedule = lambda epoch: 0.1 * (epoch - 1)
    brain.on_stage_start = lambda stage, epoch: brain.optimizer.param_groups[0].update(lr=brain.schedule(epoch))


def delayed(brain):
    brain.optimizer.param_groups[0]["lr"] = 0.1
    brain.schedule = LambdaLR(brain.optimizer, lambda step: step > 20)
    brain.on_fit_batch_end = lambda *args: brain.schedule.step()


@pytest.mark.parametrize("change", [None, for_each_epoch, delayed])
def test_a_learning_rate_of_0_that_changes_is_fine(change):
    class Brain(Classifier):
        def init_optimizers(self):
            super().init_optimizers()
            if change:
                change(self)

        def on_fit_batch_end(self, *args):
            if not change:
                self.optimizer.param_groups[0]["lr"] = 0.1

    assert not fit(Brain({"head": Linear(4, 3)}, rate(0.0))).findings


class AddsToTheStep(Classifier):
    def fit_batch(self, batch):
        self.hparams.seen = self.step
        return super().fit_batch(batch)


class OwnStep(Classifier):
    def fit_batch(self, batch):
        loss = self.compute_objectives(self.compute_forward(batch, sb.Stage.TRAIN), batch, sb.Stage.TRAIN)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def test_an_own_step_is_only_judged_if_it_adds_to_the_usual_one():
    report = fit(AddsToTheStep({"head": Linear(4, 3)}, grad_accumulation_factor=5))
    assert [finding.code for finding in report.findings] == ["no-step"] and report.plan["loss"]["classes"] == 3
    report = fit(OwnStep({"head": Linear(4, 3)}, grad_accumulation_factor=5, max_grad_norm=0))
    assert not report.findings and "steps" not in report.plan["epochs"] and report.plan["loss"]["start"] > 0


@pytest.mark.parametrize(
    "names, best",
    [
        ("loss valid_loss WER ErrorRate minDCF EER PER perplexity", "min"),
        ("ACC pesq STOI BLEU f1 valid-accuracy", "max"),
        ("epoch si-snr neg_loss loss_per_accuracy lossless person", None),
    ],
)
def test_which_value_of_a_metric_is_best(names, best):
    assert {_better(name) for name in names.split()} == {best}


def test_durations():
    assert [*map(_duration, (0.0123, 59, 90, 1200, 9000, 360000))] == ["0.012 s", "59 s", "1.5 min", "20 min", "2.5 h", "100 h"]


def clips(folder, split, parts=False):
    """Clips of 1 s, or halves of clips of 2 s."""
    items = {}
    for number in range(12):
        soundfile.write(folder / f"{split}{number}.wav", torch.randn(16000 * (1 + parts)).numpy() / 9, 16000)
        items[f"{split}{number}"] = {"wav": str(folder / f"{split}{number}.wav"), "label": number % 3}
        items[f"{split}{number}"] |= {"start": 0, "duration": 1.0} if parts else {}
    dataset = DynamicItemDataset(items)
    dataset.add_dynamic_item(sb.dataio.dataio.read_audio, takes="wav", provides="sig")
    dataset.add_dynamic_item(lambda *given: given[0][:16000], takes=["sig", "start"] if parts else ["sig"], provides="part")
    dataset.set_output_keys(["id", "part", "label"])
    return dataset


class OfClips(Classifier):
    def compute_forward(self, batch, stage):
        wavs = batch.part.data.unfold(1, 400, 400).std(2)
        return self.modules.head(self.modules.body(wavs))

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, torch.as_tensor(batch.label))


@pytest.mark.parametrize("parts", [False, True])
def test_the_plan_of_a_fine_tuning(tmp_path, monkeypatch, parts):
    monkeypatch.chdir(tmp_path)
    modules = {"body": Linear(40, 1500).requires_grad_(False), "head": Linear(1500, 3)}
    torch.save({"weight": torch.ones(1500, 40) / 9, "bias": torch.zeros(1500)}, "encoder.ckpt")
    checkpointer = Checkpointer("save", {"head": modules["head"], "counter": EpochCounter(4)}, allow_partial_load=True)
    for epoch in (1, 2):
        checkpointer.recoverables["counter"].current = epoch
        checkpointer.save_checkpoint(name=f"{epoch}")

    def run():
        modules["body"].load_state_dict({name: value for name, value in torch.load("encoder.ckpt").items()})
        brain = OfClips(modules, sgd, checkpointer=checkpointer, grad_accumulation_factor=3)
        sets = clips(tmp_path, "train", parts), clips(tmp_path, "valid", parts)
        brain.fit(
            checkpointer.recoverables["counter"], *sets, train_loader_kwargs={"batch_size": 4}, valid_loader_kwargs=LOADER
        )

    report = Takeover().run(run)
    assert not report.findings, report.text()
    lines = {name: line["text"] for name, line in report.plan.items()}
    assert lines["model"] == "body 61.5k: not trained\nhead 4.5k: trained by SGD, lr 0.1"
    assert lines["loaded"] == "body: 2 of 2 keys from encoder.ckpt"
    assert lines["data"] == "train 12 items, 12 s; valid 12 items, 12 s".replace(
        "12 s", "12 s by the manifest" if parts else "12 s"
    )
    assert lines["epochs"] == "2 left (of 4), 3 batches each, 1 step each (accumulation 3), 2 steps in all"
    assert lines["folder"] == "save: 2 checkpoints; continues from CKPT+2 with epoch 3"
    assert lines["loss"].endswith("at the start; guessing among 3 classes gives 1.099 (cross_entropy)")
    assert lines["time"].endswith("for 3 batches like it") and " GB resident at the peak of the first step" in lines["memory"]
    text, plan = report.text(), json.loads(report.json())["plan"]
    assert text.startswith(
        "plan\n  model      body 61.5k: not trained\n             head 4.5k: trained by SGD, lr 0.1\n  loaded "
    )
    assert plan == report.plan and plan["model"]["modules"][1]["trained"] == 4503 and plan["data"]["train"]["items"] == 12
    assert plan["epochs"]["steps_left"] == 2 and plan["folder"]["recovered"] == "CKPT+2" and plan["loss"]["classes"] == 3


@pytest.mark.parametrize("outputs, says", [(4, "(cross_entropy)"), (5, "(cross_entropy; 5 outputs, 4 labels)")])
def test_more_outputs_than_labels(outputs, says):
    class Words(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(torch.ones(len(batch.id), 4))

        def compute_objectives(self, predictions, batch, stage):
            return torch.nn.functional.cross_entropy(predictions, batch.label.data[:, 0])

    encoder, dataset = CategoricalEncoder(), DynamicItemDataset({f"{i}": {"word": "abcd"[i % 4]} for i in range(8)})
    encoder.update_from_iterable("abcd")
    dataset.add_dynamic_item(encoder.encode_label_torch, takes="word", provides="label")
    dataset.set_output_keys(["id", "label"])
    report = Takeover().run(lambda: Words({"head": Linear(4, outputs)}).fit(range(1), dataset, train_loader_kwargs=LOADER))
    assert report.plan["loss"]["text"].endswith(says) and report.plan["loss"]["classes"] == outputs, report.text()


def test_what_is_unknown_is_left_out():
    class Failing(Classifier):
        def compute_forward(self, batch, stage):
            raise ValueError("no forward")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data())

    brain = Failing({"head": Linear(4, 3)})
    report = Takeover().run(lambda: brain.fit((epoch for epoch in range(2)), Stream(), train_loader_kwargs=LOADER))
    assert [*report.plan] == ["model", "folder", "memory"] and report.plan["folder"][
        "text"
    ] == "no checkpointer, so nothing is saved"


def test_the_plan_of_the_function():
    counter = EpochCounter(5)
    counter.current = 3
    brain = Classifier({"head": Linear(4, 3)}, hparams={"epoch_counter": counter})
    report = preflight(brain, data(), None, LOADER)
    assert report.plan["epochs"]["text"] == "2 left (of 5), 4 batches each, 8 steps in all" and counter.current == 3
