"""Files that are absent, or do not fit what they are loaded for, give an error or a warning that says what to do."""

import copy
import os
import pickle

import pytest
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import AudioClassifier, EncoderClassifier
from speechbrain.utils.checkpoints import Checkpointer, torch_parameter_transfer
from speechbrain.utils.fetching import LocalStrategy
from speechbrain.utils.parameter_transfer import Pretrainer

regression = pytest.mark.regression


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def network(width=3):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


STATE = network().state_dict()


def with_prefix(*prefixes):
    return {prefix + key: value for key, value in STATE.items() for prefix in prefixes}


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.adapted = network()


NONE_FITS = {
    "prefix": (network, with_prefix("embedding_model."), "takes none of its 7 keys: remove 'embedding_model.' from its keys"),
    "two prefixes": (network, with_prefix("module.model."), "remove 'module.model.' from its keys"),
    "no prefix": (Wrapped, STATE, "add 'adapted.' to its keys"),
    "ambiguous": (
        network,
        with_prefix("a.", "b."),
        "its first one is 'a.0.weight', the module's is '0.weight'",
    ),
    "nested": (network, {"optimizer": {"state": {0: {}}}, "model": STATE}, "the state is under 'model', save only that"),
    "nested twice": (network, {"x": {"model": STATE}}, "the state is under 'x', the state is under 'model', save only that"),
    "nested with prefix": (
        network,
        {"state_dict": with_prefix("module.")},
        "'state_dict', remove 'module.' from its keys",
    ),
    "other": (network, {"x": STATE["0.bias"]}, "none of its 1 keys: its first one is 'x', the module's is '0.weight'"),
    "module": (network, network(), "is not a state dict, since it contains torch.nn.modules.container.Sequential: save the"),
    "list": (network, [1, 2], "is not a state dict, since it contains list: save the `state_dict\\(\\)` of the object instead"),
}


@regression
@pytest.mark.parametrize("case", NONE_FITS)
def test_weights_of_which_no_key_fits_are_an_error(case):
    make, content, message = NONE_FITS[case]
    torch.save(content, "net.ckpt")
    with pytest.raises(RuntimeError, match=f"^net.ckpt.*{message}"):
        torch_parameter_transfer(make(), "net.ckpt")


SOME_FIT = {
    "unused": (network, {**STATE, "head.a": STATE["0.bias"]}, "1 of 8 keys were not used: head.a"),
    "missing": (network, dict([*STATE.items()][2:]), "2 parameters of the module were not in the file: 0.weight, 0.bias"),
    "both": (
        network,
        {"0.bias": STATE["0.bias"], "a": STATE["0.bias"]},
        "1 of 2 keys were not used: a; 5 parameters of the module were not in the file: 0.weight, 1.weight, 1.bias and 2 more",
    ),
    "empty file": (network, {}, "6 parameters of the module were not in the file: 0.weight, 0.bias, 1.weight and 3 more"),
    "empty module": (torch.nn.Identity, STATE, "7 of 7 keys were not used: 0.weight, 0.bias, 1.weight and 4 more"),
}


@regression
@pytest.mark.parametrize("case", SOME_FIT)
def test_weights_of_which_some_keys_fit_are_one_warning(caplog, case):
    make, content, message = SOME_FIT[case]
    torch.save(content, "net.ckpt")
    module = make()
    torch_parameter_transfer(module, "net.ckpt")
    assert warnings_of(caplog) == [f"net.ckpt: {message}"]
    assert all(torch.equal(content[key], value) for key, value in module.state_dict().items() if key in content)


def test_weights_that_fit_give_no_warning(caplog):
    for module in (network(), torch.nn.Identity()):
        torch.save(module.state_dict(), "net.ckpt")
        torch_parameter_transfer(module, "net.ckpt")
    assert not warnings_of(caplog)


SIZES = r"size mismatch for 0.weight: \[5, 2\] in the file, \[3, 2\] in the object; .* and 3 more. "


@regression
@pytest.mark.parametrize("file", ["head.ckpt", "another.ckpt"])
def test_a_size_mismatch_in_a_pretrainer_names_the_loadable_and_the_remedy(file):
    torch.save(network(5).state_dict(), file)
    pretrainer = Pretrainer(loadables={"head": network()}, paths={"head": file})
    pretrainer.collect_files()
    match = rf"{file} does not fit the loadable head: {SIZES}To train it from scratch, leave head out of the loadables"
    with pytest.raises(RuntimeError, match=match) as raised:
        pretrainer.load_collected()
    assert "size mismatch" in str(raised.value.__cause__)


RESUMES = {
    "size": (RuntimeError, network, lambda: network(5), rf"CKPT\+.*/net.ckpt does not fit net: {SIZES}Use the settings of"),
    "keys": (
        RuntimeError,
        network,
        Wrapped,
        r"CKPT.*/net.ckpt does not fit net: [^$]*Missing key[^$]*or another output_folder",
    ),
    "optimizer": (
        ValueError,
        lambda: torch.optim.SGD(network().parameters(), 1.0),
        lambda: torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 1.0),
        r"CKPT\+.*/net.ckpt does not fit net: loaded state dict .*or another output_folder",
    ),
}


@regression
@pytest.mark.parametrize("case", RESUMES)
def test_a_mismatch_on_resuming_names_the_file_and_the_remedy(tmp_path, case):
    kind, now, before, message = RESUMES[case]
    Checkpointer(tmp_path, {"net": before()}).save_checkpoint()
    with pytest.raises(kind, match=message) as raised:
        Checkpointer(tmp_path, {"net": now()}).recover_if_possible()
    assert type(raised.value.__cause__) is kind


@pytest.fixture
def source(tmp_path):
    """pathlib.Path: The folder of a model with two loadables."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("encoder", "decoder"):
        torch.save(STATE, folder / f"{name}.ckpt")
    return folder


def collect(source, paths, **options):
    pretrainer = Pretrainer(loadables={"encoder": network(), "decoder": network()}, paths=paths)
    return pretrainer, pretrainer.collect_files(default_source=str(source), **options)


ABSENT = {
    "bare name": (["encoder.ckpt"], "{cwd}/encoder.ckpt. The source has {cwd}/mine/encoder.ckpt. A name .* current folder"),
    "another disk": (["/no/encoder.ckpt"], "/no/encoder.ckpt. The source has {cwd}/mine/encoder.ckpt. .* remove encoder from"),
    "both": (
        ["/no/encoder.ckpt", "decoder.ckpt"],
        "/no/encoder.ckpt, {cwd}/decoder.ckpt. The source has .*, .*encoder, decoder",
    ),
    "in no source": (["../no/a.ckpt", "a/b/c/d.ckpt"], "{cwd}/../no/a.ckpt, {cwd}/a/b/c/d.ckpt. Correct the source"),
}


@regression
@pytest.mark.parametrize("strategy", LocalStrategy)
@pytest.mark.parametrize("case", ABSENT)
def test_absent_files_are_listed_at_once_with_those_of_the_source(tmp_path, source, case, strategy):
    paths, message = ABSENT[case]
    with pytest.raises(FileNotFoundError, match=f"needs these files, which are absent: {message.format(cwd=tmp_path)}"):
        collect(source, dict(zip(("encoder", "decoder"), paths)), local_strategy=strategy)


@regression
def test_absent_files_are_reported_before_labels(tmp_path):
    (tmp_path / "empty").mkdir()
    pretrainer = Pretrainer(loadables={"labels": CategoricalEncoder(), "net": network()})
    with pytest.raises(FileNotFoundError, match=r"absent: .*empty/net.ckpt. Correct the source"):
        pretrainer.collect_files(default_source="empty")


@regression
@pytest.mark.parametrize("path", ["encoder.ckpt", "other/encoder.ckpt"])
def test_a_file_that_is_not_the_one_of_the_source_is_a_warning(tmp_path, source, caplog, path):
    (tmp_path / "other").mkdir()
    torch.save(network().state_dict(), path)
    _, collected = collect(source, {"encoder": path})
    assert collected["encoder"].samefile(path)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"encoder is loaded from {path}, as the `paths`") and f"{source}/encoder.ckpt: remove" in warning


@pytest.mark.parametrize(
    "path", ["mine/encoder.ckpt", "{cwd}/mine/encoder.ckpt", "mine/decoder.ckpt", "another.ckpt", "same/encoder.ckpt"]
)
def test_paths_that_change_nothing_give_no_warning(tmp_path, source, caplog, path):
    (tmp_path / "same").mkdir()
    torch.save(network().state_dict(), "another.ckpt")
    (tmp_path / "same" / "encoder.ckpt").write_bytes((source / "encoder.ckpt").read_bytes())
    pretrainer, _ = collect(source, {"encoder": path.format(cwd=tmp_path)})
    pretrainer.load_collected()
    assert not warnings_of(caplog)


def test_a_file_that_is_in_the_collecting_folder_is_not_absent(tmp_path, source, caplog):
    os.rename(source / "encoder.ckpt", tmp_path / "encoder.ckpt")
    pretrainer = Pretrainer(tmp_path, {"encoder": network(), "decoder": network()})
    pretrainer.collect_files(default_source=str(source))
    pretrainer.load_collected()
    assert not warnings_of(caplog)


MODEL = """
compute_features: !new:speechbrain.lobes.features.Fbank
compute_stft: !new:speechbrain.processing.features.STFT
    sample_rate: 16000
compute_fbank: !new:speechbrain.processing.features.Filterbank
    n_mels: 40
spec_mag_power: 1
use_melspectra: True
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
embedding_model: !new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: 40
    tdnn_blocks: 1
    tdnn_channels: [8]
    tdnn_kernel_sizes: [3]
    tdnn_dilations: [1]
    lin_neurons: 4
classifier: !new:speechbrain.nnet.linear.Linear
    input_size: 4
    n_neurons: 3
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
modules:
    compute_features: !ref <compute_features>
    compute_stft: !ref <compute_stft>
    compute_fbank: !ref <compute_fbank>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        label_encoder: !ref <label_encoder>
"""
SOUND = torch.ones(1, 4000).cumsum(1).sin()


def classifier(folder, labels, cls=EncoderClassifier, chosen=0, first=0, special="", **options):
    """Load a model with these labels that always chooses the same output."""
    folder.mkdir(exist_ok=True)
    (folder / "hyperparams.yaml").write_text(MODEL)
    if labels is not None:
        lines = [f"'{label}' => {number}\n" for number, label in enumerate(labels, first)]
        extras = f"================\n'starting_index' => {first}\n{special}"
        (folder / "label_encoder.ckpt").write_text("".join(lines) + extras if labels else "")
    model = cls.from_hparams(str(folder), savedir=str(folder.with_name("saved")), run_opts={"device": "cpu"}, **options)
    model.mods.classifier.w.bias[chosen] = 1e6
    model.hparams.label_encoder.ignore_len()
    return model


@regression
@pytest.mark.parametrize("strategy", LocalStrategy)
@pytest.mark.parametrize("labels", [None, []], ids=["absent", "empty"])
def test_labels_are_needed_at_the_first_label_only(tmp_path, caplog, labels, strategy):
    model = classifier(tmp_path / "model", labels, local_strategy=strategy)
    assert model.encode_batch(SOUND).shape == (1, 1, 4)
    (warning,) = warnings_of(caplog)
    assert "The label encoder label_encoder has no labels: " in warning and "label_encoder.ckpt is absent or empty" in warning
    for loaded in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"no labels: .*label_encoder.ckpt is absent or empty. Restore it"):
            loaded.classify_batch(SOUND)
    encoder = pickle.loads(pickle.dumps(model.hparams.label_encoder))
    with pytest.raises(ValueError, match=r"label_encoder has no labels"):
        encoder.decode_ndim(0)
    encoder.add_label("yes")
    assert encoder.decode_ndim([0]) == ["yes"]


@regression
def test_a_text_encoder_is_needed_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "MODEL", MODEL.replace("CategoricalEncoder", "CTCTextEncoder"))
    with pytest.raises(ValueError, match=r"label_encoder has no labels"):
        classifier(tmp_path / "model", None)


@regression
@pytest.mark.parametrize("labels", [None, ""], ids=["absent", "empty"])
def test_a_pretrainer_for_training_needs_labels(tmp_path, labels):
    if labels is not None:
        (tmp_path / "labels.ckpt").write_text(labels)
    pretrainer = Pretrainer(loadables={"labels": CategoricalEncoder()})
    pretrainer.collect_files(default_source=".")
    with pytest.raises(ValueError, match=r"The label encoder labels has no labels: .*labels.ckpt is absent or empty"):
        pretrainer.load_collected()


CLASSIFY = [(cls, name) for cls in (EncoderClassifier, AudioClassifier) for name in ("classify_batch", "forward")]


@regression
@pytest.mark.parametrize("cls, method", [(EncoderClassifier, "classify_file"), *CLASSIFY])
@pytest.mark.parametrize("chosen", [0, 2])
def test_fewer_labels_than_outputs_are_an_error(tmp_path, monkeypatch, cls, method, chosen):
    model = classifier(tmp_path / "model", ["no", "yes"], cls, chosen)
    monkeypatch.setattr(cls, "load_audio", lambda *_: SOUND[0])
    with pytest.raises(ValueError, match=r"has 3( or more)? outputs, but the label encoder has only 2 labels: restore"):
        getattr(model, method)(SOUND)


@regression
def test_more_labels_than_outputs_are_a_warning(tmp_path, caplog):
    model = classifier(tmp_path / "model", ["no", "yes", "stop", "go"], chosen=1)
    for _ in range(2):
        assert model.classify_batch(SOUND)[3] == ["yes"]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("The classifier has only 3 outputs, but the label encoder has 4 labels: check that")


FITTING = {
    "as many": {"labels": ["no", "yes", "stop"]},
    "unknown": {"labels": ["no", "yes", "stop", "<unk>"], "special": "'unk_label' => '<unk>'\n"},
    "unknown too": {"labels": ["no", "yes", "<unk>"], "special": "'unk_label' => '<unk>'\n"},
    "from 1": {"labels": ["no", "yes"], "first": 1, "chosen": 1},
}


@pytest.mark.parametrize("cls, expected", [(EncoderClassifier, ["no"]), (AudioClassifier, [["no"]])])
@pytest.mark.parametrize("case", FITTING)
def test_labels_that_fit_give_no_warning(tmp_path, caplog, case, cls, expected):
    model = classifier(tmp_path / "model", cls=cls, **FITTING[case])
    for loaded in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert loaded.classify_batch(SOUND)[3] == loaded.forward(SOUND)[3] == expected
    assert not warnings_of(caplog)


class OwnClassifier(EncoderClassifier):
    """Its results have other shapes than upstream's."""

    def classify_batch(self, wavs, wav_lens=None):
        return self.results


@pytest.mark.parametrize(
    "results",
    [None, {}, "yes", torch.ones(4), (torch.ones(1, 9), torch.ones(1), torch.tensor([4]), ["yes"]), (torch.ones(1, 9), "yes")],
)
def test_results_of_other_classes_are_not_compared(tmp_path, caplog, results):
    model = classifier(tmp_path / "model", ["no", "yes"], OwnClassifier)
    model.results = results
    assert model.classify_batch(SOUND) is results
    assert not warnings_of(caplog)
