#!/usr/bin/env python3
"""Trains a small keyword model from scratch and saves it as an inference folder, the starting point of train.py.

To run it:
> python pretrain.py hparams/pretrain.yaml
"""

import os
import shutil
import sys

import torch
from hyperpyyaml import resolve_references
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from train import KeywordBrain, load_hparams, prepare

logger = get_logger(__name__)


class PretrainBrain(KeywordBrain):
    """Trains the encoder together with the classifier."""

    def embed(self, batch, stage):
        """Compute the embeddings of a batch, [batch, 1, emb_dim]."""
        wavs, lens = batch.sig
        feats = self.modules.mean_var_norm(self.modules.compute_features(wavs), lens)
        return self.modules.embedding_model(feats, lens)


def save_inference_folder(folder, model_file, overrides, loadables):
    """Write a folder that ``EncoderClassifier.from_hparams(source=folder)`` loads, wherever it is moved.

    Arguments
    ---------
    folder : str
        Where it goes.
    model_file : str
        The YAML of the model; it becomes the folder's hyperparams.yaml.
    overrides : dict
        Values to write into that YAML.
    loadables : dict of str to torch.nn.Module or CategoricalEncoder
        What the YAML's pretrainer loads, each from ``<name>.ckpt``.
    """
    part = f"{folder}.part"  # renamed when it is whole
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    for name, loadable in loadables.items():
        path = os.path.join(part, f"{name}.ckpt")
        if isinstance(loadable, torch.nn.Module):
            torch.save(loadable.state_dict(), path)
        else:
            loadable.save(path)
    with open(model_file, encoding="utf-8") as file:
        text = resolve_references(file, overrides).getvalue()
    with open(os.path.join(part, "hyperparams.yaml"), "w", encoding="utf-8") as file:
        file.write(text)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(part, folder)


def main():
    """Train, test and save."""
    hparams_file, hparams, run_opts = load_hparams(sys.argv[1:])
    model = hparams["model"]
    hparams["label_encoder"] = model["label_encoder"]
    datasets = prepare(hparams)

    brain = PretrainBrain(
        modules=model["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit_and_test(datasets)
    logger.info(f"Test error on the words of pretraining: {brain.test_error:.1%}")
    run_on_main(
        save_inference_folder,
        kwargs={
            "folder": hparams["inference_folder"],
            "model_file": os.path.join(os.path.dirname(hparams_file), "model.yaml"),
            "overrides": {key: value for key, value in model.items() if isinstance(value, (int, float, str))},
            "loadables": model["pretrainer"].loadables,
        },
    )
    logger.info(f"Saved the model for inference in {hparams['inference_folder']}")


if __name__ == "__main__":
    main()
