"""What was loaded from files is followed to the first step: each code in a broken training, and not in its healthy twin."""

import copy
from collections import OrderedDict

import pytest
import torch
from speechbrain.preflight import preflight
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import pretrained
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.parameter_transfer import Pretrainer
from torch.nn import Linear, ReLU, Sequential

from brains import LOADER, Classifier, data, head

CASES = []


def case(code, level, where, says=""):
    """Register a function that starts a training, broken or healthy, in a given folder."""

    def register(start):
        CASES.append(pytest.param(start, code, level, where, says, id=f"{code}: {start.__name__}"))
        return start

    return register


def body():
    return Sequential(Linear(4, 8), ReLU(), Linear(8, 8))


def saved(folder, module=None):
    path = folder / "body.ckpt"
    torch.save((module or body()).state_dict(), path)
    return path


def pretrainer(folder, **loadables):
    return Pretrainer(loadables=loadables, paths={name: str(folder / f"{name}.ckpt") for name in loadables})


def loaded(folder, **loadables):
    one = pretrainer(folder, **loadables)
    one.collect_files()
    one.load_collected()


@case("loaded-in-part", "note", "body", "body.ckpt lacks 2 of its 4 parameters: 2.weight, 2.bias")
def file_without_a_layer(folder, broken):
    path, modules = saved(folder), {"body": body(), "head": head()}
    state = torch.load(path)
    modules["body"].load_state_dict({k: v for k, v in state.items() if not (broken and k.startswith("2."))}, strict=False)
    Classifier(modules).start()


@case("loaded-in-part", "warning", "body", "which are frozen with their initial values")
def file_without_a_frozen_layer(folder, broken):
    modules = {"body": body(), "head": head()}
    saved(folder, modules["body"][:2] if broken else None)
    loaded(folder, body=modules["body"].requires_grad_(False))
    Classifier(modules).start()


@case("loaded-in-part", "warning", "body", "last.bias, but has 3 tensors that the module does not have: old.weight")
def file_with_renamed_keys(folder, broken):
    """A spare classifier and an optimizer's state are used by neither."""
    path, model = saved(folder), Sequential(OrderedDict(first=Linear(4, 8), act=ReLU(), last=Linear(8, 8)))
    names = {"0": "first", "2": "old" if broken else "last"}
    state = {f"{names[key[0]]}{key[1:]}": value for key, value in torch.load(path).items()}
    torch.save({**state, "classifier.weight": torch.zeros(9, 9), "optimizer": {"step": torch.zeros(8)}}, path)
    model.load_state_dict(torch.load(path), strict=False)
    Classifier({"body": model, "head": head()}).start()


@case("loaded-in-part", "note", "body", "body.ckpt lacks 2 of its 6 parameters: 4.weight, 4.bias")
def new_head_for_an_old_one(folder, broken):
    path, model = saved(folder), Sequential(*body(), ReLU(), Linear(8, 8))
    name = "classifier" if broken else "4"
    torch.save({**torch.load(path), f"{name}.weight": torch.ones(8, 8), f"{name}.bias": torch.ones(8)}, path)
    model.load_state_dict(torch.load(path), strict=False)
    Classifier({"body": model, "head": head()}).start()


@case("loaded-elsewhere", "warning", "body", "body.ckpt was loaded into another Sequential of this shape")
def another_copy(folder, broken):
    saved(folder)
    modules = {"body": body(), "head": head()}
    other = body() if broken else modules["body"]
    loaded(folder, body=other)
    Classifier(modules).start()


@case("loaded-then-changed", "warning", "Sequential", "4 of 4 parameters have other values than in ")
def initialized_after_loading(folder, broken):
    modules = {"body": body(), "head": head()}
    saved(folder)
    loaded(folder, body=modules["body"])
    for layer in modules["body"][::2] if broken else ():
        layer.reset_parameters()
    Classifier(modules).start()


@case("loaded-then-changed", "note", "Sequential", "2 of 4 parameters have other values than in ")
def last_layer_initialized_after_loading(folder, broken):
    modules = {"body": body(), "head": head()}
    saved(folder)
    loaded(folder, body=modules["body"])
    if broken:
        modules["body"][2].reset_parameters()
    Classifier(modules).start()


@case("loaded-over-checkpoint", "warning", "Sequential", "body.ckpt after the checkpoint ")
def loaded_after_recovery(folder, broken):
    saved(folder)

    class Brain(Classifier):
        def on_fit_start(self):
            if not broken:
                loaded(folder, **self.modules)
            super().on_fit_start()
            if broken:
                loaded(folder, **self.modules)

    modules = {"body": Sequential(*body(), Linear(8, 3))}
    saved(folder, Sequential(*body(), Linear(8, 3)))
    brain = Brain(modules, checkpointer=Checkpointer(folder / "save", modules))
    brain.init_optimizers()
    brain.checkpointer.save_checkpoint()
    brain.start()


def forgotten(collects):
    @case("pretrainer-not-loaded", "warning", "Pretrainer of body", "not loaded")
    def start(folder, broken):
        saved(folder)
        modules = {"body": body(), "head": head()}
        one = pretrainer(folder, body=modules["body"])
        if collects or not broken:
            one.collect_files()
        if not broken:
            one.load_collected()
        Classifier(modules, hparams={"pretrainer": one}).start()


forgotten(collects=False)
forgotten(collects=True)


def adapted(model, **options):
    adapters = pytest.importorskip("speechbrain.nnet.adapters")  # not in 1.0.1
    return adapters.AdaptedModel(model, adapters.LoRA, adapter_kwargs={"rank": 2}, **options)


@case("adapters-missing", "warning", "body", "no layer of it matches")
def adapters_without_a_layer(folder, broken):
    Classifier({"body": adapted(body(), target_layers=["layer*" if broken else "2"]), "head": head()}).start()


@case("adapters-missing", "warning", "body", "they were never inserted")
def adapters_never_inserted(folder, broken):
    model = adapted(body(), all_linear=True, manual_adapter_insertion=True)
    if not broken:
        model.insert_adapters()
    Classifier({"body": model, "head": head()}).start()


@case("adapted-not-loaded", "warning", "body", "were not loaded from a file")
def adapters_around_random_weights(folder, broken):
    base, last = body(), head()
    last.load_state_dict(head().state_dict())
    if not broken:
        base.load_state_dict(torch.load(saved(folder)))
    Classifier({"body": adapted(base, all_linear=True), "head": last}).start()


def run(start, folder, broken):
    torch.manual_seed(0)
    return Takeover().run(lambda: start(folder, broken))


@pytest.mark.parametrize("start, code, level, where, says", CASES)
def test_a_broken_training_is_reported(tmp_path, start, code, level, where, says):
    report = run(start, tmp_path, True)
    assert [(f.code, f.level, f.where) for f in report.findings] == [(code, level, where)], report.text()
    assert says in report.findings[0].what and report.findings[0].remedy
    assert not [said for said in report.said if "was checked" in said], report.said


@pytest.mark.parametrize("start", [pytest.param(one.values[0], id=one.id) for one in CASES])
def test_its_healthy_twin_has_no_findings(tmp_path, start):
    report = run(start, tmp_path, False)
    assert not report.findings, report.text()
    assert not [said for said in report.said if "was checked" in said], report.said


def test_every_code_has_a_case():
    elsewhere = {"pretrained-not-loaded", "pretrained-other-model", "label-encoder-empty", "label-encoder-stale"}
    assert pretrained.CODES.keys() - elsewhere == {one.values[1] for one in CASES}


def values_copied(folder):
    other, mine = body(), body()
    other.load_state_dict(torch.load(saved(folder)))
    mine.load_state_dict(other.state_dict())
    return {"body": mine, "head": head()}, {}


def deep_copy(folder):
    other = body()
    other.load_state_dict(torch.load(saved(folder)))
    return {"body": copy.deepcopy(other), "head": head()}, {}


def layers_taken_over(folder):
    other = body()
    other.load_state_dict(torch.load(saved(folder)))
    return {"body": Sequential(other[0], ReLU()), "head": head()}, {}


def teacher_in_a_wrapper(folder):
    teacher = body()
    teacher.load_state_dict(torch.load(saved(folder)))
    return {"body": body(), "head": head()}, {"distillation": type("Distillation", (), {})(), "teacher": teacher}


def model_of_the_data_pipeline(folder):
    other = Linear(7, 7)
    other.load_state_dict(Linear(7, 7).state_dict())
    return {"body": body(), "head": head()}, {}


def half_precision(folder):
    mine = body()
    mine.load_state_dict({key: value.half() for key, value in torch.load(saved(folder)).items()})
    return {"body": mine, "head": head()}, {}


def loaded_again(folder):
    mine = body()
    for _ in range(2):
        mine.load_state_dict(torch.load(saved(folder)))
    return {"body": mine, "head": head()}, {}


def unused_pretrainer(folder):
    return {"body": body(), "head": head()}, {"pretrainer": pretrainer(folder, lm=Linear(2, 2), tokenizer=object())}


def conditional_pretrainer(folder):
    modules = {"body": body(), "head": head()}
    one = pretrainer(folder, body=modules["body"])
    one.conditions = {"body": False}
    return modules, {"pretrainer": one}


def of_a_file_with_more_inside(folder):
    mine = body()
    torch.save({"epoch": 3, "model": {"state_dict": body().state_dict()}}, folder / "body.ckpt")
    with open(folder / "body.ckpt", "rb") as file:
        mine.load_state_dict(torch.load(file)["model"]["state_dict"])
    return {"body": mine, "head": head()}, {}


HEALTHY = (values_copied, deep_copy, layers_taken_over, teacher_in_a_wrapper, model_of_the_data_pipeline)
HEALTHY += (of_a_file_with_more_inside, half_precision, loaded_again, unused_pretrainer, conditional_pretrainer)


@pytest.mark.parametrize("make", HEALTHY)
def test_healthy_loads_have_no_findings(tmp_path, make):
    def start():
        modules, hparams = make(tmp_path)
        if "distillation" in hparams:
            hparams["distillation"].model = hparams.pop("teacher")
        Classifier(modules, hparams=hparams).start()

    report = Takeover().run(start)
    assert not report.findings, report.text()
    if make in (of_a_file_with_more_inside, half_precision, values_copied):
        assert report.plan["loaded"]["text"].endswith("body.ckpt")


@pytest.mark.parametrize("text, codes", [("if flag:\n    one.load_collected()", []), ("", ["pretrainer-not-loaded"])])
def test_a_script_may_have_a_flag_for_loading(tmp_path, monkeypatch, text, codes):
    monkeypatch.setattr(pretrained, "own_code", lambda script: text)
    modules = {"body": body(), "head": head()}
    brain = Classifier(modules)
    report = Takeover(tmp_path / "train.py").run(lambda: (pretrainer(tmp_path, body=modules["body"]), brain.start()))
    assert [finding.code for finding in report.findings] == codes


def test_the_function_sees_what_a_pretrainer_did(tmp_path):
    saved(tmp_path)
    modules = {"body": body(), "head": head()}
    one = pretrainer(tmp_path, body=modules["body"])
    brain = Classifier(modules, hparams={"pretrainer": one})
    assert [f.code for f in preflight(brain, data(), data(), LOADER, LOADER).findings] == ["pretrainer-not-loaded"]
    one.collect_files()
    one.load_collected()
    assert not preflight(brain, data(), data(), LOADER, LOADER).findings


def test_a_counter_that_a_pretrainer_sets_to_its_limit(tmp_path):
    counter = EpochCounter(3)
    (tmp_path / "counter.ckpt").write_text("3")

    def start():
        loaded(tmp_path, counter=counter)
        Classifier({"body": body(), "head": head()}).fit(counter, data(), data(), None, LOADER, LOADER)

    (finding,) = Takeover().run(start).findings
    assert finding.code == "nothing-left" and "a Pretrainer has set" in finding.what
