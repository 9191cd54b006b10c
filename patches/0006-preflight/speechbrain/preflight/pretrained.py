"""What was loaded from files: weights of another model, or labels of other data."""

import filecmp
import os
import time

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.first_step import held
from speechbrain.preflight.report import Finding

CODES = {
    "pretrained-not-loaded": "load_state_dict found few or none of a module's keys in what it was given",
    "pretrained-other-model": "a Pretrainer took a file from its folder that is not the one it was asked for",
    "label-encoder-empty": "a label encoder holds no labels when training starts",
    "label-encoder-stale": "a label encoder was loaded from an earlier run's file, which lacks labels of the data",
}

# The share of the keys below which hardly anything was loaded, and how long to look for labels, in seconds.
FEW, SECONDS = 0.1, 1.0


def check(seen):
    """Yield what was loaded that does not fit."""
    yield from _not_loaded(seen)
    for taken, asked in seen.loaded.copies:
        if not os.path.samefile(taken, asked) and not filecmp.cmp(taken, asked, shallow=False):
            yield Finding(
                "warning",
                "pretrained-other-model",
                f"it is not the same as {asked}, which was asked for",
                str(taken),
                "delete it, so that it is fetched again",
            )
    for name, encoder in seen.hparams.items():
        if isinstance(encoder, CategoricalEncoder) and not len(encoder):
            remedy = "fill it from the training data, or load it"
            yield Finding("warning", "label-encoder-empty", "it holds no labels", f"hparams.{name}", remedy)
    yield from _stale(seen)


def _not_loaded(seen):
    names = {id(module): name for name, module in seen.modules.named_modules()}
    states = [(reference(), *keys) for reference, *keys in seen.loaded.states if reference() is not None]
    used = {id(p) for module in [seen.modules, *held(seen.brain, torch.nn.Module).values()] for p in module.parameters()}
    shares = {}  # by id of a parameter: the largest share of keys of a load that it took part in
    for module, own, given, _ in states:
        share = len(own & given) / max(1, min(len(own), len(given)))
        for parameter in module.parameters():
            shares[id(parameter)] = max(share, shares.get(id(parameter), 0.0))
    for module, own, given, nested in {id(state[0]): state for state in states}.values():
        parameters = {id(p) for p in module.parameters()}
        if not parameters & used or max(shares[key] for key in parameters) >= FEW:
            continue
        first = min(given, default="none")
        stripped = {key.partition(".")[2] for key in given}
        if nested:
            remedy = f"load what the file holds under {nested[0]!r}"
        elif own & stripped:
            remedy = f"remove {first.partition('.')[0] + '.'!r} from the beginning of the keys"
        else:
            remedy = f"compare the keys: the module has {min(own)}, the file {first}"
        yield Finding(
            "error",
            "pretrained-not-loaded",
            f"{len(own & given)} of {len(own)} keys were found among the {len(given)} that were given",
            names.get(id(module), type(module).__name__),
            remedy,
        )


def _stale(seen):
    for encoder, path, arguments in seen.loaded.encoders:
        if hasattr(encoder, "unk_label"):
            continue
        lacking, end = set(), time.monotonic() + SECONDS
        for label in _labels(arguments):
            if label not in encoder.lab2ind:
                lacking.add(label)
            if time.monotonic() > end:
                seen.said.append(f"{path}: it was not compared with all labels of the data.")
                break
        if lacking:
            some = ", ".join(sorted(map(str, lacking))[:3])
            yield Finding(
                "error",
                "label-encoder-stale",
                f"an earlier run's file; of the data it lacks {some}" + f" and {len(lacking) - 3} more" * (len(lacking) > 3),
                str(path),
                "delete it, or name another output_folder",
            )


def _labels(arguments):
    """The labels that an encoder would have been made of."""
    for source in arguments["from_iterables"]:
        yield from _flat(source, arguments["sequence_input"])
    key = arguments["output_key"]
    for dataset in arguments["from_didatasets"]:
        with dataset.output_keys_as([key]):
            for number in range(len(dataset)):
                yield from _flat([dataset[number][key]], arguments["sequence_input"])


def _flat(source, sequences):
    for item in source:
        yield from item if sequences else [item]
