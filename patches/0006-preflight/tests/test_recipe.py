"""The preflight of this project's recipe, as it is and broken in two ways."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import soundfile
import speechbrain.utils.logger
from speechbrain.preflight.__main__ import main

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "SpokenWords" / "finetuning"
PRETRAINED, NEW = ("yes", "no"), ("cat", "dog")


@pytest.fixture(scope="module", autouse=True)
def formatter():
    """On the stock release, replaces the function with which the recipe crashes there."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            speechbrain.utils.logger.format_order_of_magnitude(0)
        except ValueError:
            patch.setattr(speechbrain.utils.logger, "format_order_of_magnitude", str)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """pathlib.Path: A folder with clips of 12 speakers, and a model that was pretrained on two of the words."""
    folder, draw = tmp_path_factory.mktemp("recipe"), numpy.random.default_rng(0)
    for number, word in enumerate(PRETRAINED + NEW):
        (folder / "data" / word).mkdir(parents=True)
        for speaker in range(12):
            tone = numpy.sin(numpy.arange(6400 + 10 * speaker + number) * (number + 1) / 9) / 5
            soundfile.write(folder / f"data/{word}/{speaker}_nohash_0.wav", tone + 0.1 * draw.random(len(tone)), 16000)
    with pytest.MonkeyPatch.context() as patch:
        arrange(
            patch,
            [
                "pretrain.py",
                "hparams/pretrain.yaml",
                "--number_of_epochs=1",
                "--batch_size=4",
                *options(folder, "pre", PRETRAINED),
            ],
        )
        runpy.run_path("pretrain.py", run_name="__main__")
        sys.modules.pop("train")
    return folder


def arrange(patch, command):
    patch.chdir(RECIPE)
    patch.setattr(sys, "path", [str(RECIPE), *sys.path])
    patch.setattr(sys, "argv", command)


def options(folder, output, words):
    paths = [f"--data_folder={folder / 'data'}", f"--output_folder={folder / output}"]
    return [*paths, f"--words=[{','.join(words)}]", "--device=cpu", "--noprogressbar"]


def healthy(folder):
    pass


def spoiled(folder):
    import torch

    file = folder / "inference" / "embedding_model.ckpt"
    state = torch.load(file)
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, file)


def prefixed(folder):
    import torch

    file = folder / "inference" / "embedding_model.ckpt"
    torch.save({f"module.{key}": value for key, value in torch.load(file).items()}, file)


@pytest.mark.parametrize(
    "change, status, said",
    [
        (healthy, 0, r"guessing among 2 classes gives 0.6931 \(nll_loss\)[^$]+Found: nothing"),
        (spoiled, 1, r"error\[weight-not-finite\]: 1 NaN among \d+ values\n  where: embedding_model\."),
        (prefixed, 1, r"error\[pretrained-not-loaded\][^$]+remove 'module\.'"),
    ],
)
def test_the_report_on_the_recipe(prepared, tmp_path, monkeypatch, capsys, change, status, said):
    shutil.copytree(prepared / "pre", tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    arrange(monkeypatch, ["preflight"])
    own = [f"--source={tmp_path / 'inference'}", f"--cache_folder={tmp_path / 'embeddings'}", "--head_batch_size=4"]
    answer = main(["train.py", "hparams/finetune.yaml", *own, *options(prepared, f"fine {change.__name__}", NEW)])
    out = capsys.readouterr().out
    assert answer == status and re.search(said, out), out
    assert not list((prepared / f"fine {change.__name__}").rglob("CKPT*"))
