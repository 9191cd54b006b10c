"""Checks that the weights and labels loaded from files belong to this model and this data."""

import filecmp
import os
from collections import Counter

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.checks.hparams import own_code
from speechbrain.preflight.observe.given import held, parts
from speechbrain.preflight.observe.loads import sample
from speechbrain.preflight.observe.resume import inside
from speechbrain.preflight.report import Finding, some

CODES = {
    "pretrained-not-loaded": "load_state_dict got few or none of a module's keys",
    "loaded-in-part": "the file that a module was loaded from lacks some of its keys",
    "loaded-elsewhere": "the script loaded a file into another module than the Brain's, which has the same shape",
    "loaded-then-changed": "parameters got other values after they were loaded, for example by an initialization",
    "loaded-over-checkpoint": "a pretrained file was loaded after a checkpoint was recovered, and replaced its values",
    "pretrainer-not-loaded": "the script makes a Pretrainer for a module of the Brain, but does not load with it",
    "adapters-missing": "an AdaptedModel has no adapters: no layer matches, or they were never inserted",
    "adapted-not-loaded": "the frozen model inside an AdaptedModel was not loaded, although other modules were",
    "pretrained-other-model": "a Pretrainer used a file in its own folder that differs from the file that the script asks for",
    "label-encoder-empty": "a label encoder has no labels when training starts",
    "label-encoder-stale": "a label encoder was loaded from the file of an earlier run, and lacks labels of the data",
}

FEW = 0.1  # the share of keys below which a load counts as failed


def other_model(seen):
    """Yield files that a Pretrainer used instead of the file that it was asked for."""
    for taken, asked in seen.loaded.copies:
        if not os.path.samefile(taken, asked) and not filecmp.cmp(taken, asked, shallow=False):
            what = f"the Pretrainer uses this file, but the script asks for {asked}, which differs"
            yield Finding("warning", "pretrained-other-model", what, str(taken), "delete it, so that it is fetched again")


def encoders(seen):
    """Yield label encoders that have no labels, or that lack labels of the data."""
    for name, encoder in seen.given.hparams.items():
        if isinstance(encoder, CategoricalEncoder) and not len(encoder):
            remedy = "fill it from the training data, or load it"
            yield Finding("warning", "label-encoder-empty", "it has no labels", f"hparams.{name}", remedy)
    for path, lacking in seen.labels.lacking.items():
        what = f"it is from an earlier run, and lacks labels of the data: {some(sorted(map(str, lacking)))}"
        yield Finding("error", "label-encoder-stale", what, path, "delete it, or use another output_folder")


def not_loaded(seen):
    """Yield modules for which ``load_state_dict`` got few or none of the keys."""
    modules = seen.given.modules
    names = {id(module): name for name, module in modules.named_modules()}
    states = [(load.module(), *load[1:4]) for load in seen.loaded.states if load.module() is not None]
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
        remedy = f"compare the keys: the module has {min(own)}, the file {first}"
        if nested:
            remedy = f"load the part of the file that is under {nested[0]!r}"
        elif own & {key.partition(".")[2] for key in given}:
            remedy = f"remove {first.partition('.')[0] + '.'!r} from the start of the keys"
        what = f"{len(own & given)} of the {len(given)} keys that load_state_dict gets match the module's {len(own)} keys"
        yield Finding("error", "pretrained-not-loaded", what, names.get(id(module), type(module).__name__), remedy)


class _Loads(dict):
    """By id of a loaded parameter of the Brain: the loads that set it, oldest first, each with its key and values."""

    def __init__(self, seen):
        super().__init__()
        modules = [seen.given.modules, *held(seen.given.brain, torch.nn.Module).values()]
        self.used = {id(p): p for module in modules for p in module.parameters()}
        self.now = seen.start.resumed.values
        for load in seen.loaded.states:
            for key, (reference, values, _) in load.parameters.items():
                if id(reference()) in self.used and values is not None:
                    self.setdefault(id(reference()), []).append((load, key, values))

    def groups(self, changes):
        """Collect the parameters for which a function of their id and loads holds, by the load that came last."""
        groups = {}
        for parameter, loads in self.items():
            groups.setdefault(id(loads[-1][0]), (loads[-1][0], [], []))[2 - changes(parameter, loads)].append(loads[-1][1])
        return [(load, keys, others) for load, keys, others in groups.values() if keys]


def _equal(one, other):
    scale = float(one.abs().max()) if one.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-2 * scale, equal_nan=True)


def _from(load):
    return load.file or "a state dict"


def changed_after(seen):
    """Yield loaded parameters that have other values when training starts: changed by the script, or by another load."""
    loads = _Loads(seen)

    def changed(parameter, history):
        return parameter in loads.now and not _equal(history[-1][2], loads.now[parameter])

    def replaced(parameter, history):
        recovered = [values for load, _, values in history[:-1] if load.by == "checkpoint" and load.file == path]
        return history[-1][0].by != "checkpoint" and bool(recovered) and not _equal(history[-1][2], recovered[-1])

    for load, keys, others in loads.groups(changed):
        layers = {key.rpartition(".")[0] for key in keys}
        level = "note" if len(layers) == 1 and others else "warning"
        what = f"{len(keys)} of {len(keys) + len(others)} parameters have other values than in {_from(load)}: {some(keys)}"
        remedy = "load the file after the initialization, if training should start from its values"
        yield Finding(level, "loaded-then-changed", what, load.name, remedy)
    recovery = seen.start.resumed.recovery
    path = str(recovery.checkpoint.path) if recovery else None
    for load, keys, _ in loads.groups(replaced):
        what = f"the script loads {_from(load)} after the checkpoint {path}, and so replaces {some(keys)}"
        remedy = "load pretrained files before the recovery, so that a checkpoint replaces them"
        yield Finding("warning", "loaded-over-checkpoint", what, load.name, remedy)


def in_part(seen):
    """Yield modules for which the file lacks some of the keys."""
    loads, brain = _Loads(seen), {id(module): name for name, module in parts(seen.given.brain)}
    for load in {id(load.module()): load for load in seen.loaded.states if load.by != "checkpoint"}.values():
        module, share = load.module(), len(load.own & load.given) / max(1, len(load.own))
        if module is None or id(module) not in brain or share < FEW:
            continue
        own = dict(module.named_parameters())
        lacking = [key for key, p in own.items() if key in load.own - load.given and id(p) not in loads and p.numel() > 1]
        frozen = [key for key in lacking if id(own[key]) in seen.step.frozen]
        if lacking:
            what = f"{_from(load)} lacks {len(lacking)} of its {len(own)} parameters: {some(frozen or lacking)}"
            level, remedy = "note", "check that training should start from their initial values"
            if frozen:
                level, remedy, what = "warning", "unfreeze or load them", f"{what}, which are frozen with their initial values"
            renamed = Counter(own[key].shape for key in lacking) & Counter(load.spare.values())
            if 2 * renamed.total() >= len(own):
                level, remedy = "warning", "rename the keys of the file before it is loaded, if they are the same parameters"
                what += f", but has {len(load.spare)} tensors that the module does not have: {some(load.spare)}"
            yield Finding(level, "loaded-in-part", what, brain[id(module)], remedy)


def elsewhere(seen):
    """Yield files that were loaded into another copy of a module than the Brain's."""
    brain, loads = seen.given.brain, _Loads(seen)
    idle = [load for load in seen.loaded.states if load.by != "checkpoint" and load.parameters]
    if any(id(reference()) in loads.used for load in idle for reference, *_ in load.parameters.values()):
        return  # of a model whose other parts are used, a part may be left out on purpose
    held_anywhere = inside(vars(brain), seen.given.hparams) if idle else ()
    for load in idle:
        if load.module() is not None and id(load.module()) in held_anywhere:
            continue
        shapes = {key: shape for key, (_, _, shape) in load.parameters.items()}
        for name, module in seen.given.modules.named_modules():
            own = dict(module.named_parameters())
            if {key: p.shape for key, p in own.items()} != shapes or ("." in name and len(own) < 4):
                continue  # or it is one of many layers of this shape
            if any(id(p) in loads or _equal(sample(p)[0], load.parameters[key][1]) for key, p in own.items() if p.dim() > 1):
                continue
            what = f"{_from(load)} was loaded into another {type(module).__name__} of this shape, which the Brain does not use"
            yield Finding("warning", "loaded-elsewhere", what, name, "load it into the module that the Brain has")
            break


def never_loaded(seen):
    """Yield Pretrainers that did not load what they should."""
    loads = _Loads(seen)
    for pretrainer, called in seen.loaded.pretrainers.items():
        modules = {name: item for name, item in pretrainer.loadables.items() if isinstance(item, torch.nn.Module)}
        mine = []
        for name, module in modules.items() if called != "load_collected" else ():
            ids = {id(p) for p in module.parameters()}
            if pretrainer.is_loadable(name) and ids & loads.used.keys() and not ids & loads.keys():
                mine.append(name)
        # A script that can load it may have a flag for it
        if mine and (called or seen.given.script is None or "load_collected" not in own_code(seen.given.script)):
            what = "it has collected the files, but not loaded them" if called else "it has not loaded anything"
            remedy = "call its load_collected()" if called else "call its collect_files() and load_collected()"
            where = f"Pretrainer of {some(mine)}"
            yield Finding("warning", "pretrainer-not-loaded", f"{what}, so these modules are not pretrained", where, remedy)


def adapters(seen):
    """Yield AdaptedModels without adapters, or around a model that was not loaded."""
    loads = _Loads(seen)
    for name, module in parts(seen.given.brain):
        if not hasattr(type(module), "insert_adapters"):
            continue
        inner = module._modules["adapted_model"]
        layers = [part for layer, part in inner.named_modules() if layer in module.replace_layers]
        if all(type(part).__module__.startswith("torch.nn.modules.") for part in layers):
            what, remedy = "no layer of it matches", "check all_linear, all_conv and the names in target_layers"
            if module.replace_layers:
                what, remedy = "they were never inserted", "call its insert_adapters() after the pretrained model is loaded"
            yield Finding("warning", "adapters-missing", f"it has no adapters: {what}", name, remedy)
        frozen = {id(p) for p in inner.parameters()} & {*seen.step.frozen}
        known = any(type(part).__module__.startswith("transformers") for part in inner.modules())
        if frozen and loads and not known and not frozen & loads.keys():
            what = f"its {len(frozen)} frozen parameters were not loaded from a file, although other modules were"
            remedy = "load the pretrained model before its adapters are inserted"
            yield Finding("warning", "adapted-not-loaded", what, name, remedy)


RULES = (not_loaded, in_part, elsewhere, changed_after, never_loaded, adapters, other_model, encoders)
