"""Each code is found in a broken training, and nothing is found in its healthy twin."""

import math
import sys

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import AddNoise
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight import attempts
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import losses, optimised, pretrained, weights
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.parameter_transfer import Pretrainer
from torch.nn import Linear
from torch.nn import functional as F

from brains import LOADER, Classifier, body, data, head, normed, registering, sgd

CASES = []
case = registering(CASES)  # functions that start a training, broken or healthy, in a given folder
DDP = "ddp-without-gradient", "ddp-unfrozen-late", "ddp-not-wrapped", "ddp-bypassed"  # their test is in test_behaviour.py


# The optimizers


@case("nothing-trainable", "error", "body, head")
def all_frozen(folder, broken):
    class Brain(Classifier):
        def on_stage_start(self, stage, epoch=None):
            self.modules.head.requires_grad_(not broken)  # the preflight must wait for this

    modules = {"body": body(), "head": head()}
    for module in modules.values():
        module.requires_grad_(False)
    Brain(modules).start()


@case("no-optimizer", "error", "Classifier")
def no_opt_class(folder, broken):
    Classifier({"head": Linear(4, 3)}, None if broken else sgd).start()


@case("no-optimizer", "error", "Brain")
def optimizer_left_in_a_local(folder, broken):
    class Brain(Classifier):
        def init_optimizers(self):
            optimizer = sgd(self.modules.parameters())
            if not broken:
                self.optimizers_dict = {"mine": optimizer}

    Brain({"head": Linear(4, 3)}, None).start()


@case("optimizer-misses-loss", "error", "optimizers_dict['opt_class']")
def optimizer_of_another_copy(folder, broken):
    class Brain(Classifier):
        def on_stage_start(self, stage, epoch=None):
            if broken and stage == sb.Stage.TRAIN:
                self.modules["head"] = Linear(4, 3)

    Brain({"head": Linear(4, 3)}).start()


@case("optimizer-misses-loss", "error", "optimizers_dict['opt_class']")
def detached_loss(folder, broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            return F.cross_entropy(predictions.detach() if broken else predictions, batch[1])

    Brain({"head": Linear(4, 3)}).start()


@case("optimizer-misses-loss", "error", "optimizers_dict['opt_class']")
def gradient_required_by_hand(folder, broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            return loss.detach().requires_grad_() if broken else loss

    Brain({"head": Linear(4, 3)}).start()


@case("gradient-without-optimizer", "error", "body")
def filtered_before_unfreezing(folder, broken):
    class Brain(Classifier):
        def init_optimizers(self):
            self.optimizer = sgd([p for p in self.modules.parameters() if p.requires_grad or not broken])
            self.optimizers_dict = {"optimizer": self.optimizer}

        def on_stage_start(self, stage, epoch=None):
            self.modules.body.requires_grad_(True)

    Brain({"body": body().requires_grad_(False), "head": head()}).start()


@case("gradient-without-optimizer", "error", "body")
def empty_group(folder, broken):
    def two_groups(parameters):
        parameters = list(parameters)
        return sgd([{"params": parameters[2:]}, {"params": [] if broken else parameters[:2]}])

    Classifier({"body": body(), "head": head()}, two_groups).start()


@case("gradient-without-optimizer", "error", "head")
def head_outside_modules(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.hparams.head(self.modules.body(batch[0]))

    one = head()
    Brain({"body": body()} if broken else {"body": body(), "head": one}, hparams={"head": one}).start()


@case("gradient-without-optimizer", "error", "heads[0]")
def heads_in_a_list(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.heads[0](self.modules.body(batch[0]))

    heads = [head()]
    brain = Brain({"body": body()} if broken else {"body": body(), "head": heads[0]})
    brain.heads = heads
    brain.start()


@case("trained-not-saved", "warning", "body")
def recoverable_forgotten(folder, broken):
    modules = {"body": body(), "head": head()}
    saved = {"head": modules["head"]} if broken else modules
    Classifier(modules, checkpointer=Checkpointer(folder, saved)).start()


@case("group-not-clipped", "warning", "optimizers_dict['opt_class'], group 1")
def clipping_of_stock(folder, broken):
    class Brain(Classifier):
        only_finite_steps = False  # on the fork: stock's step

    Brain({"body": body(), "head": head()}, two_groups if broken else sgd, max_grad_norm=1e-3).start()


def two_groups(parameters):
    parameters = list(parameters)
    return sgd([{"params": parameters[:1]}, {"params": parameters[1:]}])


@case("trainable-without-gradient", "note", "unused")
def unused_module(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(batch[0])

    Brain({"head": Linear(4, 3), "unused": Linear(2, 2).requires_grad_(broken)}).start()


# The weights


def spoiled(value, name):
    def start(folder, broken):
        modules = torch.nn.ModuleDict({"body": normed(), "head": head()})
        if broken:
            modules.state_dict()[name].view(-1)[1] = value
        Classifier(dict(modules)).start()

    start.__name__ = f"{value} in {name}"
    return start


for value, name, code in (
    (math.nan, "body.0.bias", "weight-not-finite"),
    (-math.inf, "head.weight", "weight-not-finite"),
    (math.nan, "body.1.running_mean", "buffer-not-finite"),
    (math.inf, "body.4.running_var", "buffer-not-finite"),
):
    case(code, "error", name)(spoiled(value, name))


@case("buffer-not-finite", "error", "norm.glob_mean")
def spoiled_normaliser(folder, broken):
    norm = InputNormalization(norm_type="global", update_until_epoch=1)
    norm.count, norm.glob_mean, norm.glob_std = 9, torch.zeros(4), torch.ones(4)
    if broken:
        norm.glob_mean[2] = math.nan

    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(self.modules.norm(batch[0][:, None], torch.ones(8), epoch=1)[:, 0])

        def compute_objectives(self, predictions, batch, stage):
            return predictions.square().mean()

    Brain({"norm": norm, "head": Linear(4, 3)}).start()


def scaled(layer, factor):
    def start(folder, broken):
        class Brain(Classifier):
            def compute_forward(self, batch, stage):
                x = self.modules.layer(batch[0][:, None, None, :].squeeze(1))
                return self.modules.head((x[0] if isinstance(x, tuple) else x).flatten(1)[:, :8])

            def compute_objectives(self, predictions, batch, stage):
                return predictions.square().mean()

        module = layer()
        with torch.no_grad():
            next(module.parameters()).mul_(factor if broken else 1)
        Brain({"layer": module, "head": Linear(8, 3)}).start()

    start.__name__ = f"{layer().__class__.__name__} times {factor:g}"
    return start


for layer, name in (
    (lambda: Linear(4, 8), "layer.weight"),
    (lambda: torch.nn.Conv1d(1, 4, 3), "layer.weight"),
    (lambda: torch.nn.ConvTranspose1d(1, 4, 3), "layer.weight"),
    (lambda: torch.nn.LSTM(4, 8, batch_first=True), "layer.weight_ih_l0"),
):
    for factor in (1e-4, 1e3):
        case("weight-scale", "warning", name)(scaled(layer, factor))


@case("units-identical", "error", "layer.weight")
def constant_hidden_layer(folder, broken):
    modules = {"layer": Linear(4, 8), "head": head()}
    if broken:
        for parameter in modules["layer"].parameters():
            torch.nn.init.constant_(parameter, 0.1)
        modules["head"].weight.data = torch.randn(3, 1).repeat(1, 8)
    Classifier(modules).start()


@case("units-identical", "error", "body.0.weight")
def nothing_but_zeros(folder, broken):
    modules = {"body": torch.nn.Sequential(Linear(4, 8), torch.nn.ReLU()), "head": head()}
    modules["head"].requires_grad_(not broken)  # so that one layer is reported
    for layer in (modules["body"][0], modules["head"]) if broken else (modules["head"],):
        torch.nn.init.zeros_(layer.weight)
    Classifier(modules).start()


@case("weight-scale", "warning", "head.weight")
def norm_that_overflows(folder, broken):
    one = Linear(4, 3)
    if broken:
        torch.nn.init.normal_(one.weight, std=1e38)
    Classifier({"head": one}).start()


# The first loss


@case("first-loss", "warning", "cross_entropy, input 8 x 3")
def enormous_inputs(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return super().compute_forward(batch, stage) * (1000 if broken else 1)

    Brain({"head": Linear(4, 3)}).start()


@case("first-loss", "warning", "cross_entropy, input 8 x 3")
def nothing_but_ignored_targets(folder, broken):
    class Brain(Classifier):
        def compute_objectives(self, predictions, batch, stage):
            targets = torch.full_like(batch[1], -100) if broken else batch[1]
            return F.cross_entropy(predictions, targets)

    Brain({"head": Linear(4, 3)}).start()


def multiplied(factor):
    def start(folder, broken):
        class Brain(Classifier):
            def compute_objectives(self, predictions, batch, stage):
                return predictions.square().mean() * (factor if broken else 1)

        Brain({"head": Linear(4, 3)}).start()

    start.__name__ = f"loss times {factor}"
    return start


for factor in (0.0, math.inf, math.nan):
    case("first-loss", "warning", "Brain")(multiplied(factor))


@case("batch-not-finite", "error", "train 0: 2, 5")
def items_with_nan(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return super().compute_forward([batch[0] if broken else batch[0].nan_to_num()], stage)

        def compute_objectives(self, predictions, batch, stage):
            return predictions.mean()

    items = data()
    items.tensors[0][[2, 5], 1] = math.nan
    Brain({"head": Linear(4, 3)}).fit(range(1, 2), items, train_loader_kwargs=LOADER)


class Log(torch.nn.Module):
    def forward(self, x):
        return x.log()


@case("output-not-finite", "error", "body.1")
def logarithm_of_negative_values(folder, broken):
    Classifier({"body": torch.nn.Sequential(Linear(4, 8), Log() if broken else torch.nn.ReLU()), "head": head()}).start()


@case("output-not-finite", "error", "head")
def nan_between_modules(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            x = self.modules.body(batch[0])
            return self.modules.head(x / (x.sum() * 0) if broken else x)

    Brain({"body": body(), "head": head()}).start()


@case("output-not-finite", "error", "augmented")
def augmentation_that_makes_nan(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            if stage != sb.Stage.TRAIN:
                return self.modules.head(batch[0])
            return self.modules.head(self.hparams.augment(batch[0][:, None].repeat(1, 50, 1), torch.ones(8))[0][:8, 0])

    augmented = AddNoise(noise_funct=lambda x: x / 0) if broken else AddNoise()
    augment = Augmenter(augmentations=[augmented], min_augmentations=1)
    Brain({"head": Linear(4, 3)}, hparams={"augment": augment, "augmented": augmented}).start()


def given_to(loss, wrong, right):
    def start(folder, broken):
        class Brain(Classifier):
            def compute_objectives(self, predictions, batch, stage):
                return loss((wrong if broken else right)(predictions), batch[1])

        Brain({"head": Linear(4, 3)}).start()

    start.__name__ = f"{loss.__name__} on {wrong.__name__}"
    return start


def logits(x):
    return x


def sequence(loss):
    def on_a_sequence(scores, targets):
        return loss(scores[:, None].expand(-1, 5, -1), targets[:, None].expand(-1, 5), torch.ones(8))

    return on_a_sequence


def probabilities(x):
    return x.softmax(-1)


def log_probabilities(x):
    return x.log_softmax(-1)


for loss, size in ((F.nll_loss, "8 x 3"), (sequence(sb.nnet.losses.nll_loss), "8 x 3 x 5")):
    for wrong in (logits, probabilities):
        case("nll-without-log-softmax", "error", f"nll_loss, input {size}")(given_to(loss, wrong, log_probabilities))
case("cross-entropy-on-probabilities", "error", "cross_entropy, input 8 x 3")(
    given_to(F.cross_entropy, probabilities, log_probabilities)
)


# What was loaded from files


def loaded_with(change, remedy):
    def start(folder, broken):
        model, other = body(), body()
        other.load_state_dict(change(model.state_dict()) if broken else model.state_dict(), strict=False)
        Classifier({"body": other, "head": head()}).start()

    start.__name__ = change.__name__
    start.remedy = remedy
    return start


def prefix(state):
    return {f"module.{key}": value for key, value in state.items()}


def nest(state):
    return {"model": state, "epoch": 3}


def rename(state):
    return {f"x{key}": value for key, value in state.items()}


def keep_what_fits(state):
    own = {f"encoder.{key}" for key in state}
    return {key: value for key, value in state.items() if key in own}


for change, remedy in (
    (keep_what_fits, "the file none"),
    (prefix, "remove 'module.'"),
    (nest, "under 'model'"),
    (rename, "compare the keys"),
):
    case("pretrained-not-loaded", "error", "body")(loaded_with(change, remedy))


@case("pretrained-other-model", "warning", None)
def copy_of_another_model(folder, broken):
    for name in ("asked", "saved"):
        (folder / name).mkdir()
        torch.save(body().state_dict(), folder / name / "body.ckpt")
    if not broken:
        (folder / "saved" / "body.ckpt").write_bytes((folder / "asked" / "body.ckpt").read_bytes())
    modules = {"body": body(), "head": head()}
    pretrainer = Pretrainer(folder / "saved", {"body": modules["body"]})
    pretrainer.collect_files(str(folder / "asked"))
    pretrainer.load_collected()
    Classifier(modules).start()


@case("label-encoder-empty", "warning", "hparams.encoder")
def encoder_never_filled(folder, broken):
    encoder = CategoricalEncoder()
    encoder.update_from_iterable([] if broken else "abc")
    Classifier({"head": Linear(4, 3)}, hparams={"encoder": encoder}).start()


@case("label-encoder-stale", "error", None)
def encoder_of_an_earlier_run(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(torch.randn(len(batch.label.data), 4))

        def compute_objectives(self, predictions, batch, stage):
            return torch.nn.functional.cross_entropy(predictions, batch.label.data[:, 0])

    dataset = DynamicItemDataset({str(i): {"word": "abc"[i % 3]} for i in range(6)})
    dataset.add_dynamic_item(lambda word: f"{word}!", takes="word", provides="said")
    earlier = CategoricalEncoder()
    earlier.update_from_iterable(["a!", "b!"] if broken else ["a!", "b!", "c!"])
    earlier.save(folder / "label_encoder.txt")
    encoder = CategoricalEncoder()
    encoder.load_or_create(folder / "label_encoder.txt", from_didatasets=[dataset], output_key="said")
    dataset.add_dynamic_item(encoder.encode_label_torch, takes="said", provides="label")
    dataset.set_output_keys(["label"])
    Brain({"head": Linear(4, 3)}).fit(range(1, 2), dataset, train_loader_kwargs=LOADER)


# Frozen modules whose statistics change


@case("frozen-statistics-move", "warning", "body (body.1 and 1 more)")
def frozen_norms_in_training_mode(folder, broken):
    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            self.modules.body.train(broken and stage == sb.Stage.TRAIN)
            return super().compute_forward(batch, stage)

    Brain({"body": normed().requires_grad_(False), "head": head()}).start()


@case("loaded-normaliser-moves", "warning", "norm")
def normaliser_from_a_file(folder, broken):
    earlier = InputNormalization(norm_type="global", update_until_epoch=1)
    earlier(torch.randn(8, 3, 4), torch.ones(8), epoch=0)
    earlier._save(folder / "norm.ckpt")
    norm = InputNormalization(norm_type="global", update_until_epoch=2 if broken else 1)
    pretrainer = Pretrainer(loadables={"norm": norm}, paths={"norm": str(folder / "norm.ckpt")})
    pretrainer.collect_files()
    pretrainer.load_collected()

    class Brain(Classifier):
        def compute_forward(self, batch, stage):
            return self.modules.head(self.modules.norm(batch[0][:, None], torch.ones(8), epoch=1)[:, 0])

    Brain({"norm": norm, "head": Linear(4, 3)}).start()


# On the way to the first step


class Faulty(Classifier):
    """Raises an exception in the method named by ``at``."""

    at = None

    def on_fit_start(self):
        super().on_fit_start()
        assert self.at != "on_fit_start", "a sentence"

    def on_stage_start(self, stage, epoch=None):
        assert self.at != "on_stage_start", "a sentence"

    def compute_forward(self, batch, stage):
        assert self.at != "compute_forward", "a sentence"
        return super().compute_forward(batch, stage)


def faulty(method):
    def start(folder, broken):
        brain = Faulty({"head": Linear(4, 3)})
        brain.at = method if broken else None
        brain.start()

    start.__name__ = method
    return start


for method, code in (("on_fit_start", "fit-start"), ("on_stage_start", "stage-start"), ("compute_forward", "first-step")):
    case(f"{code}-failed", "error", method)(faulty(method))


@case("dataloader-failed", "error", "no_such_option")
def no_such_option(folder, broken):
    options = {**LOADER, **({"batch_sise": 8} if broken else {})}
    Classifier({"head": Linear(4, 3)}).fit(range(1, 2), data(), data(), train_loader_kwargs=options, valid_loader_kwargs=LOADER)


@case("first-batch-failed", "error", "read")
def items_that_make_no_batch(folder, broken):
    def read(items):
        assert not broken, "no such word"
        return torch.utils.data.default_collate(items)

    Classifier({"head": Linear(4, 3)}).fit(
        range(1, 2), data(), train_loader_kwargs={**LOADER, "num_workers": 1, "collate_fn": read}
    )


@case("fit-arguments-shifted", "error", "Classifier")
def options_by_position(folder, broken):
    brain = Classifier({"head": Linear(4, 3)})
    if broken:
        brain.fit(range(1, 2), data(), data(), LOADER, LOADER)
    else:
        brain.fit(range(1, 2), data(), data(), None, LOADER, LOADER)


@case("key-mistyped", "note", None)
def key_that_lacks_a_letter(folder, broken):
    yaml = folder / "hparams.yaml"
    yaml.write_text("batch_size: 8\n" + ("batch_" + "siz: 4\n" if broken else ""))  # in pieces: this is the script
    with pytest.MonkeyPatch.context() as patch, open(yaml) as file:
        patch.setattr(sys, "argv", ["train.py", str(yaml)])
        options = {"batch_size": load_hyperpyyaml(file)["batch_size"]}
        Classifier({"head": Linear(4, 3)}).fit(range(1, 2), data(), train_loader_kwargs=options)


@case("script-failed", "error", "script_that_raises")
def script_that_raises(folder, broken):
    assert not broken, "a sentence"
    Classifier({"head": Linear(4, 3)}).start()


@case("no-backward", "note", "Brain")
def step_without_backward(folder, broken):
    class Brain(Classifier):
        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, None), batch, None)
            if not broken:
                loss.backward()
            return loss.detach()

    Brain({"head": Linear(4, 3)}).start()


def preflight(start, folder, broken):
    torch.manual_seed(0)
    return Takeover().run(lambda: start(folder, broken))


def clip_and_step(brain):
    torch.nn.utils.clip_grad_norm_(brain.modules.parameters(), brain.max_grad_norm)
    brain.optimizer.step()
    brain.zero_grad()


FORK = hasattr(sb.Brain, "_upstream_optimizers_step")
CLIPPING = [
    pytest.param({"optimizers_step": clip_and_step}, True, id="own step"),
    pytest.param({"only_finite_steps": True}, FORK, id="only_finite_steps"),  # which means nothing to the stock release
    pytest.param({}, FORK, id="the release's step"),
    pytest.param(
        {"optimizers_step": getattr(sb.Brain, "_upstream_optimizers_step", sb.Brain.optimizers_step)}, False, id="stock's step"
    ),
]


@pytest.mark.parametrize("methods, all_groups", CLIPPING)
def test_only_the_step_of_stock_is_reported(methods, all_groups):
    brain = type("Brain", (Classifier,), methods)({"body": body(), "head": head()}, two_groups, max_grad_norm=1e-3)
    report = Takeover().run(brain.start)
    assert [finding.code for finding in report.findings] == ["group-not-clipped"] * (not all_groups), report.text()


@pytest.mark.parametrize("start, code, level, where", CASES)
def test_a_broken_training_is_reported(tmp_path, start, code, level, where):
    report = preflight(start, tmp_path, True)
    assert [(f.code, f.level) for f in report.findings] == [(code, level)], report.text()
    (finding,) = report.findings
    assert where is None or (finding.where.endswith(f" in {where}") if code.endswith("-failed") else finding.where == where)
    assert getattr(start, "remedy", finding.remedy) in finding.remedy and finding.remedy
    assert report.ok is (level != "error") and not [said for said in report.said if "was checked" in said]


@pytest.mark.parametrize("start", [pytest.param(param.values[0], id=param.id) for param in CASES])
def test_its_healthy_twin_has_no_findings(tmp_path, start):
    report = preflight(start, tmp_path, False)
    assert not report.findings, report.text()
    assert not [said for said in report.said if "was checked" in said]


def test_every_code_has_a_case():
    codes = {code for module in (attempts, losses, optimised, pretrained, weights) for code in module.CODES}
    elsewhere = {"preflight-killed", "first-validation-failed", "manifest-unreadable", "loss-maximized", *DDP}
    elsewhere.update(code for code, *_ in losses.MISTAKES[2:])  # in test_losses.py, and those in test_loaded.py:
    elsewhere |= {code for code in pretrained.CODES if code.startswith(("loaded-", "adapt", "pretrainer-"))}
    assert codes - elsewhere | {"fit-arguments-shifted", "key-mistyped"} == {param.values[1] for param in CASES}
