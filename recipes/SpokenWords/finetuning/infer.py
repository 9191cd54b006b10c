#!/usr/bin/env python3
"""Prints which word each audio file says, and how sure the model is.

> python infer.py --model results/finetune/1234/inference cat.wav dog.flac
"""

import argparse
import os
import sys
from pathlib import Path


def main():
    """Tell the words; exit 1 if a file has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="wav, flac, mp3 or ogg; of any sample rate, one word in each")
    parser.add_argument(
        "--model", default="results/finetune/1234/inference", help="an inference folder (default: the one of train.py)"
    )
    arguments = parser.parse_args()
    if not os.path.isfile(os.path.join(arguments.model, "hyperparams.yaml")):
        parser.error(f"{arguments.model} is no inference folder: train.py leaves one in its output folder; name it by --model.")
    print(f"infer.py: importing PyTorch and SpeechBrain, then loading {arguments.model}", file=sys.stderr, flush=True)
    import torch  # here, because these imports take seconds: --help and a wrong --model are answered without them
    from speechbrain.inference.classifiers import EncoderClassifier

    from spoken_words_prepare import look_at, read_clip

    model = EncoderClassifier.from_hparams(arguments.model)
    unread = 0
    for path in arguments.files:
        look, seconds = look_at(Path(path)), model.hparams.clip_seconds
        if look["fault"]:  # the model would take silence, too, for a word
            print(f"{path} {look['fault']}", file=sys.stderr)
            unread += 1
            continue
        if look["duration"] > seconds:
            print(f"{path} is {look['duration']:.1f} s long: what is told is of the {seconds} s in its middle", file=sys.stderr)
        sig = read_clip(path, model.audio_normalizer, seconds)
        with torch.no_grad():
            scores, _, _, words = model.classify_batch(sig[None])
        print(f"{words[0]:12} {scores.exp().max():6.1%}  {path}")
    sys.exit(1 if unread else 0)


if __name__ == "__main__":
    main()
