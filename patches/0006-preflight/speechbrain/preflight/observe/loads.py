"""Records what is loaded from files."""

import copy
import inspect
import os
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from speechbrain.dataio import dataset as dataio
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.quiet import replaced
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer


@dataclass(frozen=True)
class Loaded:
    """What was loaded from files: by the script before its ``fit``, or on the way to the first step."""

    # The calls of ``load_state_dict``: a weak reference to the module, its keys, the keys of the given state dict, and those
    # of them whose value is a dict.
    states: list = field(default_factory=list)
    pretrained: list = field(default_factory=list)  # the objects that a Pretrainer loaded
    copies: list = field(default_factory=list)  # the file that a Pretrainer used, and the file that it was asked for
    # A label encoder, the file that it was loaded from instead of being built from data, and the arguments that name these
    # data.
    encoders: list = field(default_factory=list)
    # A label encoder, and the file that the script loaded it from, whatever the data.
    files: list = field(default_factory=list)
    manifests: list = field(default_factory=list)  # the JSON manifests
    # The calls of ``filtered_sorted``: the dataset, the arguments by name, and the ids of the chosen items.
    selections: list = field(default_factory=list)


@contextmanager
def watched_loads():
    """Record what is loaded from files while this context lasts."""
    loaded = Loaded()
    load_state_dict, load_hooks = torch.nn.Module.load_state_dict, Pretrainer._call_load_hooks
    load_json, select = dataio.load_data_json, dataio.DynamicItemDataset._filtered_sorted_ids
    collect_files, load_or_create = Pretrainer.collect_files, CategoricalEncoder.load_or_create
    load = CategoricalEncoder.load

    def noting_states(module, state_dict, *args, **kwargs):
        answer = load_state_dict(module, state_dict, *args, **kwargs)
        nested = [key for key, value in state_dict.items() if isinstance(value, dict)]
        loaded.states.append((weakref.ref(module), frozenset(module.state_dict()), frozenset(state_dict), nested))
        return answer

    def noting_pretrained(pretrainer, paramfiles):
        for name, path in paramfiles.items():
            one, before = copy.copy(pretrainer), len(loaded.states)
            one.loadables = {name: pretrainer.loadables[name]}
            try:
                load_hooks(one, {name: path})
            except RuntimeError:  # Patch 0005 raises if no key fits; here that is a finding, beside all others
                if not any(keys.isdisjoint(given) for _, keys, given, _ in loaded.states[before:] if keys and given):
                    raise
            loaded.pretrained.append(pretrainer.loadables[name])

    def noting_copies(pretrainer, default_source=None, *args, **kwargs):
        asked = {name: (default_source, f"{name}.ckpt") for name in pretrainer.loadables}
        asked.update({name: pretrainer.split_path(path) for name, path in pretrainer.paths.items()})
        taken = collect_files(pretrainer, default_source, *args, **kwargs)
        for name, path in taken.items():
            source, file = asked[name]
            source = source[1] if isinstance(source, FetchSource) else source
            if (Path(source) / file).is_file():  # else it came from the hub or the web
                loaded.copies.append((Path(path), Path(source) / file))
        return taken

    def noting_encoders(encoder, *args, **kwargs):
        arguments = inspect.signature(load_or_create).bind(encoder, *args, **kwargs)
        arguments.apply_defaults()
        existed = os.path.exists(arguments.arguments["path"])
        before = [*loaded.files]
        load_or_create(encoder, *args, **kwargs)
        loaded.files[:] = before  # it also loads what it has just created
        if existed:
            loaded.encoders.append((encoder, Path(arguments.arguments["path"]), arguments.arguments))

    def noting_files(encoder, path, *args, **kwargs):
        answer = load(encoder, path, *args, **kwargs)
        loaded.files.append((encoder, path))
        return answer

    def noting_manifests(json_path, *args, **kwargs):
        loaded.manifests.append(Path(json_path))
        return load_json(json_path, *args, **kwargs)

    def noting_selections(dataset, *args, **kwargs):
        ids = select(dataset, *args, **kwargs)
        loaded.selections.append((dataset, inspect.signature(select).bind(dataset, *args, **kwargs).arguments, ids))
        return ids

    with ExitStack() as stack:
        for owner, name, noting in (
            (dataio, "load_data_json", noting_manifests),
            (dataio.DynamicItemDataset, "_filtered_sorted_ids", noting_selections),
            (torch.nn.Module, "load_state_dict", noting_states),
            (Pretrainer, "_call_load_hooks", noting_pretrained),
            (Pretrainer, "collect_files", noting_copies),
            (CategoricalEncoder, "load_or_create", noting_encoders),
            (CategoricalEncoder, "load", noting_files),
        ):
            stack.enter_context(replaced(owner, name, noting))
        yield loaded
