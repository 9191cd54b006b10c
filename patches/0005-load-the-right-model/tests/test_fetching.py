"""from_hparams loads the model you ask for, or raises an error that says why not."""

import os
import shutil

import pytest
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.fetching import LocalStrategy, fetch

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
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for value in (1.0, 2.0):
        folder = tmp_path / f"model{value:.0f}"
        folder.mkdir()
        (folder / "hyperparams.yaml").write_text(MODEL)
        (folder / "label_encoder.ckpt").write_text(LABELS)
        torch.save({"w.weight": torch.zeros(2, 4), "w.bias": torch.full((2,), value)}, folder / "embedding_model.ckpt")
    return tmp_path


def answer(source, savedir=None, **options):
    """Load a model; returns its bias, which says which model it is."""
    model = EncoderClassifier.from_hparams(str(source), savedir=savedir, run_opts={"device": "cpu"}, **options)
    return model.mods.embedding_model.w.bias.unique().item()


@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
def test_a_model_is_loaded_and_loaded_again(models, options):
    for savedir in (None, models / "saved", models / "saved"):
        assert answer(models / "model1", savedir, **options) == 1


@regression
@pytest.mark.parametrize("options", [{}, {"local_strategy": COPY}], ids=["link", "copy"])
def test_a_savedir_of_another_model_is_not_reused(models, caplog, options):
    assert answer(models / "model1", models / "saved", **options) == 1
    assert answer(models / "model2", models / "saved", **options) == 2
    assert answer(models / "model2", models / "saved", **options) == 2
    assert "is from another source" in caplog.text and str(models / "model1") in caplog.text


def test_files_put_into_the_savedir_by_hand_are_used(models):
    shutil.copytree(models / "model1", models / "saved")
    assert answer("somebody/some-model", models / "saved") == 1
    assert answer(models / "model2", models / "saved") == 1


def test_files_changed_by_hand_are_used(models):
    answer(models / "model1", models / "saved", local_strategy=COPY)
    shutil.copy(models / "model2" / "embedding_model.ckpt", models / "saved" / "embedding_model.ckpt")
    os.utime(models / "saved" / "embedding_model.ckpt", (9, 9))
    (models / "saved" / ".fetched_from.json").touch()
    assert answer(models / "model1", models / "saved", local_strategy=COPY) == 2


def cached(folder, name):
    """A file of a model, stored as in the hub's cache."""
    blob = folder / "hub" / f"models--{name.replace('/', '--')}" / "blobs" / "0"
    blob.parent.mkdir(parents=True)
    blob.write_text(name)
    return blob


@regression
def test_a_link_into_the_cache_of_another_model_is_replaced(tmp_path, monkeypatch):
    import huggingface_hub

    blobs = {name: cached(tmp_path, name) for name in ("a/one", "a/two")}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, **_: str(blobs[repo_id]))
    for name in ("a/one", "a/two"):
        for _ in range(2):
            assert fetch("file", name, savedir=tmp_path / "saved").read_text() == name


@regression
@pytest.mark.parametrize("source", ["results/no/such/folder", "/no/such/folder", "./no_such_folder"])
def test_the_error_for_a_mistyped_folder_names_both_interpretations(models, source):
    with pytest.raises(ValueError, match=rf"There is no folder {source}, and \S+ cannot be fetched from the HuggingFace hub"):
        answer(source)


def test_an_unreachable_source_leaves_the_savedir_unchanged(models):
    answer(models / "model1", models / "saved")
    before = sorted(os.listdir(models / "saved"))
    assert answer("somebody/some-model", models / "saved") == 1
    assert sorted(os.listdir(models / "saved")) == before


@regression
def test_the_error_for_a_git_lfs_pointer_says_so(models):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (models / "model1" / "embedding_model.ckpt").write_text(pointer)
    with pytest.raises(ValueError, match=r"model1/embedding_model.ckpt is not the file itself but a git-LFS pointer"):
        answer(models / "model1")


@regression
@pytest.mark.parametrize("kept", [0.5, 0.01, 0], ids=["cut off", "almost nothing", "empty"])
def test_the_error_for_a_damaged_file_names_it(models, kept):
    path = models / "model1" / "embedding_model.ckpt"
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(RuntimeError, match=r"model1/embedding_model.ckpt is damaged \(.+\): download it again"):
        answer(models / "model1")


@regression
@pytest.mark.parametrize("break_it", [os.remove, lambda path: path.write_text("")], ids=["absent", "empty"])
def test_loading_a_label_encoder_without_labels_raises(models, break_it):
    break_it(models / "model1" / "label_encoder.ckpt")
    with pytest.raises(ValueError, match=r"label_encoder has no labels: .*model1/label_encoder.ckpt is absent or empty"):
        answer(models / "model1")
