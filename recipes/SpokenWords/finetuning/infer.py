#!/usr/bin/env python3
"""Prints which word each audio file says, and how sure the model is.

> python infer.py --model results/finetune/1234/inference cat.wav dog.flac
"""

import argparse
import os
import sys
from pathlib import Path


def main():
    """Print the words; exit with 1 if a file has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, mp3 or ogg, at any sample rate, one word in each")
    parser.add_argument(
        "--model",
        default="results/finetune/1234/inference",
        help="an inference folder (default: %(default)s, which train.py saves)",
    )
    arguments = parser.parse_args()
    if not os.path.isfile(os.path.join(arguments.model, "hyperparams.yaml")):
        remedy = "train.py saves one in its output folder; give its path with --model"
        parser.error(f"{arguments.model} is not an inference folder: {remedy}.")
    print(f"infer.py: importing PyTorch and SpeechBrain, then loading {arguments.model}", file=sys.stderr, flush=True)
    import torch  # here, because these imports take seconds: --help and a wrong --model are answered without them
    from speechbrain.inference.classifiers import EncoderClassifier

    from spoken_words_prepare import look_at, read_clip

    model = EncoderClassifier.from_hparams(arguments.model)
    unread = 0
    for path in arguments.files:
        look, seconds = look_at(Path(path)), model.hparams.clip_seconds
        if look["fault"]:  # the model would name a word even for silence
            print(f"{path} {look['fault']}", file=sys.stderr)
            unread += 1
            continue
        if look["duration"] > seconds:
            print(f"{path} is {look['duration']:.1f} s long: only the {seconds} s in its middle are used", file=sys.stderr)
        sig = read_clip(path, model.audio_normalizer, seconds)
        with torch.no_grad():
            scores, _, _, words = model.classify_batch(sig[None])
        print(f"{words[0]:12} {scores.exp().max():6.1%}  {path}")
    sys.exit(1 if unread else 0)


if __name__ == "__main__":
    main()
