"""Checks that the weights and labels loaded from files belong to this model and this data."""

import filecmp
import os

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.observe.given import held
from speechbrain.preflight.report import Finding, some

CODES = {
    "pretrained-not-loaded": "load_state_dict got few or none of a module's keys",
    "pretrained-other-model": "a Pretrainer used a file from its own folder that differs from the file it was asked for",
    "label-encoder-empty": "a label encoder has no labels when training starts",
    "label-encoder-stale": "a label encoder was loaded from the file of an earlier run, and lacks labels of the data",
}

FEW = 0.1  # the share of keys below which a load counts as failed


def other_model(seen):
    """Yield files that a Pretrainer used instead of the file that it was asked for."""
    for taken, asked in seen.loaded.copies:
        if not os.path.samefile(taken, asked) and not filecmp.cmp(taken, asked, shallow=False):
            yield Finding(
                "warning",
                "pretrained-other-model",
                f"it differs from {asked}, which the script asked for",
                str(taken),
                "delete it, so that it is fetched again",
            )


def encoders(seen):
    """Yield label encoders that have no labels, or that lack labels of the data."""
    for name, encoder in seen.given.hparams.items():
        if isinstance(encoder, CategoricalEncoder) and not len(encoder):
            remedy = "fill it from the training data, or load it"
            yield Finding("warning", "label-encoder-empty", "it has no labels", f"hparams.{name}", remedy)
    for path, lacking in seen.labels.lacking.items():
        what = f"it is from an earlier run, and lacks labels: {some(sorted(map(str, lacking)))}"
        yield Finding("error", "label-encoder-stale", what, path, "delete it, or use another output_folder")


def not_loaded(seen):
    """Yield modules for which ``load_state_dict`` got few or none of the keys."""
    modules = seen.given.modules
    names = {id(module): name for name, module in modules.named_modules()}
    states = [(reference(), *keys) for reference, *keys in seen.loaded.states if reference() is not None]
    used = {id(p) for module in [modules, *held(seen.given.brain, torch.nn.Module).values()] for p in module.parameters()}
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


RULES = (not_loaded, other_model, encoders)
