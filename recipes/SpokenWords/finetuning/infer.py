#!/usr/bin/env python3
"""Prints which word each audio file says, and how sure the model is.

> python infer.py --model results/finetune/1234/inference cat.wav dog.flac
"""

import argparse
import sys

import torch
from speechbrain.inference.classifiers import EncoderClassifier

from train import read_clip


def main():
    """Tell the words; exit 1 if a file could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, mp3 or ogg; of any sample rate, one word in each")
    parser.add_argument(
        "--model", default="results/finetune/1234/inference", help="an inference folder (default: the one of train.py)"
    )
    arguments = parser.parse_args()
    model = EncoderClassifier.from_hparams(arguments.model)
    unread = 0
    for path in arguments.files:
        try:
            sig = read_clip(path, model.audio_normalizer, model.hparams.clip_seconds)
        except (OSError, RuntimeError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            unread += 1
            continue
        with torch.no_grad():
            scores, _, _, words = model.classify_batch(sig[None])
        print(f"{words[0]:12} {scores.exp().max():6.1%}  {path}")
    sys.exit(1 if unread else 0)


if __name__ == "__main__":
    main()
