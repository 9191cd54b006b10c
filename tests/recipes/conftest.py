"""Fixtures for the tests of the recipe SpokenWords: a small corpus, and one run of each training script."""

import pytest

from scripts import NEW, PRETRAINED, make, run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """pathlib.Path: A small corpus of made speech."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    make(folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory):
    """pathlib.Path: The inference folder of a tiny model from pretrain.py, moved to another path."""
    folder = tmp_path_factory.mktemp("pretrained")
    # An override of the model must also be in the saved folder; otherwise the folder cannot be loaded.
    options = ["--model={channels: 16}", "--number_of_epochs=8", "--batch_size=8", f"--words=[{','.join(PRETRAINED)}]"]
    status, said = run("pretrain.py", *options, f"--data_folder={corpus}", f"--output_folder={folder / 'out'}")
    assert status == 0, said
    (folder / "out/inference").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture(scope="session")
def fine_tuning(corpus, pretrained):
    """callable: Returns the options of train.py for an output folder; keywords replace the usual values."""

    def options(folder, **others):
        usual = {
            "data_folder": corpus,
            "source": pretrained,
            "words": f"[{','.join(NEW)}]",
            "output_folder": folder,
            "cache_folder": f"{folder}/embeddings",
            "head_batch_size": 8,
            "full_batch_size": 8,
            "head_epochs": 15,
            "full_epochs": 3,
        }
        return [f"--{key}={value}" for key, value in {**usual, **others}.items()]

    return options


@pytest.fixture(scope="session")
def finetuned(fine_tuning, tmp_path_factory):
    """(pathlib.Path, str): The output folder of a run of train.py, and its output."""
    folder = tmp_path_factory.mktemp("finetuned") / "out"
    status, said = run("train.py", *fine_tuning(folder))
    assert status == 0, said
    return folder, said
