"""from_hparams loads the model you ask for, or raises an error that says why not."""

import os
import pathlib
import shutil
import urllib.request

import huggingface_hub
import pytest
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils import fetching
from speechbrain.utils.fetching import FetchConfig, LocalStrategy, fetch
from speechbrain.utils.parameter_transfer import Pretrainer

regression = pytest.mark.regression
MODEL = """
compute_features: !new:torch.nn.Identity
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
embedding_model: !new:speechbrain.nnet.linear.Linear
    input_size: 4
    n_neurons: 2
classifier: !new:torch.nn.Identity
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        label_encoder: !ref <label_encoder>
"""
LABELS = "'yes' => 0\n'no' => 1\n================\n'starting_index' => 0\n"
COPY = LocalStrategy.COPY


@pytest.fixture
def models(tmp_path, monkeypatch):
    """pathlib.Path: A folder with two models, whose biases are 1 and 2."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0):
        folder = tmp_path / f"model{value:.0f}"
        folder.mkdir()
        (folder / "hyperparams.yaml").write_text(MODEL)
        (folder / "label_encoder.ckpt").write_text(LABELS)
        torch.save({"w.weight": torch.zeros(2, 4), "w.bias": torch.full((2,), value)}, folder / "embedding_model.ckpt")
    return tmp_path


def answer(source, savedir=None, **options):
    """Load a model; returns its bias, which says which model it is."""
    model = EncoderClassifier.from_hparams(source, savedir=savedir, run_opts={"device": "cpu"}, **options)
    return model.mods.embedding_model.w.bias.unique().item()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
def test_a_model_is_loaded_and_loaded_again(models, options):
    for savedir in (None, models / "saved", models / "saved"):
        assert answer(str(models / "model1"), savedir, **options) == 1


@regression
@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
def test_a_savedir_of_another_model_is_not_reused(models, caplog, options):
    assert answer(models / "model1", models / "saved", **options) == 1
    assert answer(models / "model2", models / "saved", **options) == 2
    assert answer(models / "model2", models / "saved", **options) == 2
    assert "is from another source" in caplog.text and str(models / "model1") in caplog.text


@regression
@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
@pytest.mark.parametrize("source", ["somebody/some-model", "results/mistyped", "mistyped", "results/no/such", "checkpoint"])
def test_the_error_names_both_sources_and_leaves_the_savedir_unchanged(models, source, options):
    """The folder "checkpoint" has weights, but no hyperparams.yaml: it must not get those of another model."""
    (models / "checkpoint").mkdir()
    shutil.copy(models / "model2" / "embedding_model.ckpt", models / "checkpoint")
    answer(models / "model1", models / "saved", **options)
    before = {path: path.read_bytes() for path in (models / "saved").iterdir()}
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        answer(source, models / "saved", **options)
    assert f"saved/hyperparams.yaml is from another source, {models}/model1/hyperparams.yaml" in str(raised.value)
    assert source in str(raised.value)
    assert {path: path.read_bytes() for path in (models / "saved").iterdir()} == before


@regression
def test_a_file_that_the_source_lacks_is_not_taken_from_another_source(models):
    answer(models / "model1", models / "saved")
    os.remove(models / "model2" / "embedding_model.ckpt")
    with pytest.raises(FileNotFoundError, match=r"saved/embedding_model.ckpt is from another source, .*model1/embedding_model"):
        answer(models / "model2", models / "saved")


def test_files_put_into_the_savedir_by_hand_are_used(models, caplog):
    shutil.copytree(models / "model1", models / "saved")
    os.rename(models / "saved" / "embedding_model.ckpt", models / "elsewhere.ckpt")
    os.symlink("../elsewhere.ckpt", models / "saved" / "embedding_model.ckpt")  # relative, as git-annex makes them
    assert answer("somebody/some-model", models / "saved") == 1
    assert answer(str(models / "model2"), models / "saved") == 1
    assert not warnings_of(caplog)


def test_files_changed_by_hand_are_used(models):
    answer(models / "model1", models / "saved", local_strategy=COPY)
    shutil.copy(models / "model2" / "embedding_model.ckpt", models / "saved" / "embedding_model.ckpt")
    os.utime(models / "saved" / "embedding_model.ckpt", (9, 9))
    (models / "saved" / ".fetched_from.json").touch()
    assert answer(models / "model1", models / "saved", local_strategy=COPY) == 2


SAME = {
    "again": lambda models: (models / "model1", models / "saved", {}),
    "overwrite": lambda models: (models / "model1", models / "saved", {"fetch_config": FetchConfig(overwrite=True)}),
    "no link": lambda models: (models / "model1", models / "saved", {"local_strategy": LocalStrategy.NO_LINK}),
    "folder by another path": lambda models: (linked(models / "model1"), models / "saved", {}),
    "savedir by another path": lambda models: (models / "model1", linked(models / "saved"), {}),
    "savedir moved": lambda models: (models / "model1", (models / "saved").rename(models / "moved"), {}),
    "savedir copied": lambda models: (models / "model1", shutil.copytree(models / "saved", models / "b", symlinks=True), {}),
    "savedir copied as files": lambda models: (models / "model1", shutil.copytree(models / "saved", models / "b"), {}),
    "savedir read-only": lambda models: (models / "model1", read_only(models / "saved"), {}),
    "source is savedir": lambda models: (models / "saved", models / "saved", {}),
    "source is savedir by another path": lambda models: (linked(models / "saved"), models / "saved", {}),
}


def linked(folder):
    os.symlink(folder, folder.with_name("by-another-path"))
    return folder.with_name("by-another-path")


def read_only(folder):
    for path in folder.iterdir():
        if not path.is_symlink():
            path.chmod(0o400)
    folder.chmod(0o500)
    return folder


@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
@pytest.mark.parametrize("case", SAME)
def test_a_savedir_of_the_same_source_is_used_without_a_warning(models, caplog, case, options):
    answer(str(models / "model1"), models / "saved", **options)
    source, savedir, changes = SAME[case](models)
    assert answer(str(source), savedir, **{**options, **changes}) == 1
    assert not warnings_of(caplog)


def cached(folder, name, revision="0"):
    """A file of a model, stored as in the hub's cache."""
    snapshot = folder / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / revision / "file"
    snapshot.parent.mkdir(parents=True)
    blob = snapshot.parents[2] / "blobs" / revision
    blob.parent.mkdir(exist_ok=True)
    blob.write_text(name)
    snapshot.symlink_to(blob)
    return snapshot


@regression
@pytest.mark.parametrize("strategy", LocalStrategy)
def test_a_link_into_the_cache_of_another_model_is_replaced(tmp_path, monkeypatch, strategy):
    snapshots = {name: cached(tmp_path, name) for name in ("a/one", "a/two")}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, **_: str(snapshots[repo_id]))
    assert fetch("file", "a/one", savedir=tmp_path / "saved").read_text() == "a/one"
    for _ in range(2):
        assert fetch("file", "a/two", savedir=tmp_path / "saved", local_strategy=strategy).read_text() == "a/two"
        assert snapshots["a/two"].read_text() == "a/two"


def test_a_link_into_the_cache_of_the_same_model_is_used(tmp_path, monkeypatch, caplog):
    """Of any revision, and in any cache."""
    (tmp_path / "saved").mkdir()
    for folder, revision in (("old", "0"), ("old", "1"), ("new", "0")):
        snapshot = cached(tmp_path / folder / revision, "a/one", revision)
        (tmp_path / "saved" / "file").unlink(missing_ok=True)
        (tmp_path / "saved" / "file").symlink_to(snapshot)
        assert fetch("file", "a/one", savedir=tmp_path / "saved").samefile(snapshot)
    assert not warnings_of(caplog)


@regression
@pytest.mark.parametrize("options", [{}, {"fetch_config": FetchConfig(overwrite=True)}], ids=["other", "overwrite"])
def test_a_download_leaves_the_source_of_a_link_unchanged(models, monkeypatch, options):
    monkeypatch.setattr(urllib.request, "urlretrieve", lambda url, path: pathlib.Path(path).write_text(url))
    fetch("hyperparams.yaml", models / "model1", savedir=models / "saved")
    for _ in range(2):
        fetched = fetch("hyperparams.yaml", "https://example.org", savedir=models / "saved", **options)
        assert fetched.read_text() == "https://example.org/hyperparams.yaml"
    assert (models / "model1" / "hyperparams.yaml").read_text() == MODEL
    assert sorted(os.listdir(models / "saved")) == [".fetched_from.json", "hyperparams.yaml"]


@regression
@pytest.mark.parametrize("source", ["results/no/such/folder", "/no/such/folder", "./no_such_folder", "name/name", "mistyped"])
def test_the_error_for_a_mistyped_folder_names_both_interpretations(models, source):
    with pytest.raises(ValueError, match=rf"There is no folder {source}, and \S+ cannot be fetched from the HuggingFace hub"):
        answer(source)


@regression
@pytest.mark.parametrize("kind", [str, pathlib.Path], ids=["str", "Path"])
def test_the_error_for_a_source_that_is_a_file_names_the_folder(models, kind):
    shutil.copytree(models / "model1", models / "saved")
    with pytest.raises(ValueError, match=r"model1/hyperparams.yaml is a file: use the folder that contains it, .*model1, as"):
        answer(kind(models / "model1" / "hyperparams.yaml"), models / "saved")


@regression
def test_home_is_expanded_and_paths_are_taken(models, monkeypatch):
    assert answer("~/model1", "~/saved") == 1
    assert sorted(os.listdir(models)) == ["model1", "model2", "saved"]
    assert answer(pathlib.Path("~/model2"), pathlib.Path("~/saved")) == 2
    assert Pretrainer.split_path(models / "a.wav") == [str(models), "a.wav"]
    with pytest.raises(ValueError, match=r"There is no folder no/such/folder, and"):
        answer(pathlib.Path("no/such/folder"))
    monkeypatch.setattr("speechbrain.dataio.audio_io.load", lambda path, **_: (torch.ones(9, 1), 16000))
    model = EncoderClassifier.from_hparams(models / "model1", run_opts={"device": "cpu"})
    assert model.load_audio(models / "model1" / "a.wav").shape == (9,)


LINKLESS = {
    "Windows": OSError(22, "A required privilege is not held by the client"),
    "no links": OSError(95, "Operation not supported"),
    "vfat": PermissionError(1, "Operation not permitted"),
}


@regression
@pytest.mark.parametrize("error", LINKLESS.values(), ids=LINKLESS)
def test_files_are_copied_where_no_link_can_be_made(models, monkeypatch, caplog, error):
    def symlink_to(*_):
        raise error

    fetching.logger.__class__.warning_once.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "symlink_to", symlink_to)
        assert answer(models / "model1", models / "saved") == 1
    (warning,) = warnings_of(caplog)
    assert f"A symbolic link cannot be made ({error.strerror}): files are copied instead" in warning
    assert not (models / "saved" / "hyperparams.yaml").is_symlink()
    assert answer(models / "model2", models / "saved") == 2  # since it was noted where the copies are from


@regression
def test_a_file_is_not_replaced_by_a_link_to_itself(models):
    linked(models / "model1")
    for strategy in (LocalStrategy.SYMLINK, COPY):
        options = {"local_strategy": strategy, "fetch_config": FetchConfig(overwrite=True)}
        assert answer(str(models / "by-another-path"), models / "model1", **options) == 1
    assert sorted(os.listdir(models / "model1")) == ["embedding_model.ckpt", "hyperparams.yaml", "label_encoder.ckpt"]


def test_other_errors_of_a_link_are_raised(models, monkeypatch):
    (models / "saved").write_text("")
    with pytest.raises(OSError, match="exists"):
        answer(str(models / "model1"), models / "saved")
