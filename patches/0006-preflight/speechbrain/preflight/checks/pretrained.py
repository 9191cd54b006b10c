"""Checks that the weights and labels loaded from files belong to this model and this data."""

import filecmp
import os
import time

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.observe.first_step import held
from speechbrain.preflight.report import Finding

CODES = {
    "pretrained-not-loaded": "load_state_dict got few or none of a module's keys",
    "pretrained-other-model": "a Pretrainer used a file from its own folder that differs from the file it was asked for",
    "label-encoder-empty": "a label encoder has no labels when training starts",
    "label-encoder-stale": "a label encoder was loaded from the file of an earlier run, and lacks labels of the data",
}

# The share of keys below which a load counts as failed, and how many seconds to spend on comparing labels.
FEW, SECONDS = 0.1, 1.0


def check(seen):
    """Yield what was loaded and does not fit."""
    yield from _not_loaded(seen)
    for taken, asked in seen.loaded.copies:
        if not os.path.samefile(taken, asked) and not filecmp.cmp(taken, asked, shallow=False):
            yield Finding(
                "warning",
                "pretrained-other-model",
                f"it differs from {asked}, which the script asked for",
                str(taken),
                "delete it, so that it is fetched again",
            )
    for name, encoder in seen.hparams.items():
        if isinstance(encoder, CategoricalEncoder) and not len(encoder):
            remedy = "fill it from the training data, or load it"
            yield Finding("warning", "label-encoder-empty", "it has no labels", f"hparams.{name}", remedy)
    yield from _stale(seen)


def _not_loaded(seen):
    names = {id(module): name for name, module in seen.modules.named_modules()}
    states = [(reference(), *keys) for reference, *keys in seen.loaded.states if reference() is not None]
    used = {id(p) for module in [seen.modules, *held(seen.brain, torch.nn.Module).values()] for p in module.parameters()}
    shares = {}  # by id of a parameter: the largest share of matching keys among the loads of its modules
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
            remedy = f"load the part of the file that is under {nested[0]!r}"
        elif own & stripped:
            remedy = f"remove {first.partition('.')[0] + '.'!r} from the start of the keys"
        else:
            remedy = f"compare the keys: the module has {min(own)}, the file {first}"
        yield Finding(
            "error",
            "pretrained-not-loaded",
            f"{len(own & given)} of the module's {len(own)} keys are among the {len(given)} given keys",
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
                seen.said.append(f"{path}: there was no time to compare it with all labels of the data.")
                break
        if lacking:
            some = ", ".join(sorted(map(str, lacking))[:3])
            yield Finding(
                "error",
                "label-encoder-stale",
                f"it is from an earlier run, and lacks labels: {some}" + f" and {len(lacking) - 3} more" * (len(lacking) > 3),
                str(path),
                "delete it, or use another output_folder",
            )


def _labels(arguments):
    """The labels of the data that an encoder would have been built from."""
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
