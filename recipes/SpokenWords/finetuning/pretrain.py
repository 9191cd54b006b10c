#!/usr/bin/env python3
"""Trains a small keyword model from scratch and saves it as an inference folder, the starting point of train.py.

To run it:
> python pretrain.py hparams/pretrain.yaml
"""

from command_line import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import os
import sys

from hyperpyyaml import resolve_references
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

import results
from train import KeywordBrain, dataio_prep, load_hparams, prepare

logger = get_logger(__name__)


def main():
    """Train, test and save."""
    hparams_file, _, hparams, run_opts = load_hparams(sys.argv[1:])
    model = hparams["model"]
    prepare(hparams, model["clip_seconds"])
    hparams["label_encoder"] = model["label_encoder"]
    datasets = dataio_prep(hparams, model["sample_rate"], model["clip_seconds"])
    metrics = results.Metrics(os.path.join(hparams["output_folder"], "metrics.json"))
    brain = KeywordBrain(hparams["pretrain"], model["modules"], metrics, hparams, run_opts)
    brain.fit_and_test(datasets)
    logger.info(f"Test error on the pretraining words: {brain.test_stats['error']:.1%}")
    with open(os.path.join(os.path.dirname(hparams_file), "model.yaml"), encoding="utf-8") as file:
        overrides = {key: value for key, value in model.items() if isinstance(value, (int, float, str))}
        tree = results.yaml().load(resolve_references(file, overrides).getvalue())
    run_on_main(results.save_inference_folder, [hparams["inference_folder"], tree, model["pretrainer"].loadables])
    logger.info(f"Saved the model for inference in {hparams['inference_folder']}")


if __name__ == "__main__":
    with results.advice_on_storage():
        main()
