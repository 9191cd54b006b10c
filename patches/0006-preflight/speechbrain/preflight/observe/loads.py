"""Records what is loaded from files."""

import copy
import inspect
import os
import time
import weakref
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.dataio import dataset as dataio
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.preflight.quiet import noted, replaced
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer
from torch.utils.weak import WeakTensorKeyDictionary

BEGAN = time.time()  # checkpoints with an earlier time are of an earlier run


class Load(NamedTuple):
    """A call of ``load_state_dict``."""

    module: Any  # a weak reference to the module
    own: frozenset  # its keys
    given: frozenset  # the keys of the given state dict
    nested: list  # those of them whose value is a dict
    by: str  # what called it: ``checkpoint``, ``pretrainer`` or ``script``
    file: str  # the file, or the folder of the checkpoint; "" if unknown
    parameters: dict  # by key that was given: a weak reference to the parameter, some of its values, and its shape
    name: str  # the name of the module's class
    spare: dict  # by key that was given, but that the module does not have: the shape of its tensor


class Recovery(NamedTuple):
    """A call of ``Checkpointer.load_checkpoint``."""

    checkpointer: Any
    checkpoint: Any
    rates: dict  # by name of an optimizer: the learning rates of its groups before
    error: str  # why it failed


@dataclass(frozen=True)
class Loaded:
    """What was loaded from files: by the script before its ``fit``, or on the way to the first step."""

    states: list = field(default_factory=list)  # the calls of ``load_state_dict``
    recoveries: list = field(default_factory=list)  # the checkpoints that were loaded
    searched: list = field(default_factory=list)  # the checkpointers whose checkpoints were listed
    pretrainers: dict = field(default_factory=dict)  # by Pretrainer: what was called, ``collect_files`` or ``load_collected``
    pretrained: list = field(default_factory=list)  # the objects that a Pretrainer loaded
    copies: list = field(default_factory=list)  # the file that a Pretrainer used, and the file that it was asked for
    # A label encoder, the file that it was loaded from instead of being built, and the arguments that name its data.
    encoders: list = field(default_factory=list)
    files: list = field(default_factory=list)  # a label encoder, and the file that the script loaded it from
    manifests: list = field(default_factory=list)  # the JSON manifests
    # The calls of ``filtered_sorted``: the dataset, the arguments by name, and the ids of the chosen items.
    selections: list = field(default_factory=list)


def sample(tensor):
    """Some values of a tensor, and its shape."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_complex():
        return None, None
    values = tensor.detach().flatten()
    return values[:: max(1, len(values) // 16)][:16].float().cpu().clone(), tensor.shape


def _values(tensor):
    """What a tensor and its copies have in common, also if these have another precision; None if others may have it."""
    with suppress(Exception):  # of a sparse or quantized one
        values, shape = sample(tensor)
        return (shape, *values.half().tolist()) if values is not None and len(values.unique()) > 2 else None


@contextmanager
def watched_loads():
    """Record what is loaded from files while this context lasts."""
    loaded, files, copied, loading = Loaded(), WeakTensorKeyDictionary(), {}, [("script", "")]
    with ExitStack() as stack:

        def noting(owner, name):
            """Replace a function by the decorated one, whose first argument is the real one."""

            def replace(note):
                real = getattr(owner, name)
                stack.enter_context(replaced(owner, name, lambda *args, **kwargs: note(real, *args, **kwargs)))

            return replace

        @noting(torch, "load")
        def files_of_tensors(load, f, *args, **kwargs):
            content = load(f, *args, **kwargs)
            path, parts = f if isinstance(f, (str, os.PathLike)) else getattr(f, "name", ""), [content]
            for _ in range(4):  # dicts in dicts
                parts = [value for part in parts for value in (part.values() if isinstance(part, dict) else [part])]
            parts = [part for part in parts if isinstance(part, torch.Tensor)]
            files.update(dict.fromkeys(parts, str(path)))
            for values in {_values(part) for part in parts} - {None}:
                copied[values] = str(path) if copied.get(values, str(path)) == str(path) else ""  # unless several have them
            return content

        @noting(torch.nn.Module, "load_state_dict")
        def states(load_state_dict, module, state_dict, *args, **kwargs):
            answer = load_state_dict(module, state_dict, *args, **kwargs)
            nested = [key for key, value in state_dict.items() if isinstance(value, dict)]
            own = module.state_dict(keep_vars=True)
            given = {key: own[key] for key in state_dict if isinstance(own.get(key), torch.nn.Parameter)}
            by, file = loading[-1]
            tensors = [value for value in state_dict.values() if isinstance(value, torch.Tensor)]
            known = [files[one] for one in tensors if one in files]
            alike = {copied.get(values) for values in map(_values, tensors) if values} - {""} if not known else ()
            file = file or next(filter(None, known or (alike if len(alike) == 1 else ())), "")
            parameters = {key: (weakref.ref(value), *sample(value)) for key, value in given.items()}
            keys = frozenset(own), frozenset(state_dict)
            spare = {k: value.shape for k, value in state_dict.items() if k not in own and isinstance(value, torch.Tensor)}
            of = weakref.ref(module), *keys, nested, by, file, parameters, type(module).__name__, spare
            loaded.states.append(Load(*of))
            return answer

        @noting(Checkpointer, "load_checkpoint")
        def recoveries(load_checkpoint, checkpointer, checkpoint):
            optimizers = {k: o for k, o in checkpointer.recoverables.items() if isinstance(o, torch.optim.Optimizer)}
            rates = {name: [group.get("lr") for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
            error = ""
            loading.append(("checkpoint", str(checkpoint.path)))
            try:
                return load_checkpoint(checkpointer, checkpoint)
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
                raise
            finally:
                loading.pop()
                loaded.recoveries.append(Recovery(checkpointer, checkpoint, rates, error))

        @noting(Pretrainer, "_call_load_hooks")
        def pretrained(load_hooks, pretrainer, paramfiles):
            loaded.pretrainers[pretrainer] = "load_collected"
            for name, path in paramfiles.items():
                one, before = copy.copy(pretrainer), len(loaded.states)
                one.loadables = {name: pretrainer.loadables[name]}
                loading.append(("pretrainer", str(path)))
                try:
                    load_hooks(one, {name: path})
                except RuntimeError:  # Patch 0005 raises if no key fits; here that is a finding, beside all others
                    loads = [load for load in loaded.states[before:] if load.own and load.given]
                    if not any(load.own.isdisjoint(load.given) for load in loads):
                        raise
                finally:
                    loading.pop()
                loaded.pretrained.append(pretrainer.loadables[name])

        @noting(Pretrainer, "collect_files")
        def copies(collect_files, pretrainer, default_source=None, *args, **kwargs):
            asked = {name: (default_source, f"{name}.ckpt") for name in pretrainer.loadables}
            asked.update({name: pretrainer.split_path(path) for name, path in pretrainer.paths.items()})
            taken = collect_files(pretrainer, default_source, *args, **kwargs)
            loaded.pretrainers[pretrainer] = loaded.pretrainers.get(pretrainer) or "collect_files"
            for name, path in taken.items():
                source, file = asked[name]
                source = source[1] if isinstance(source, FetchSource) else source
                if (Path(source) / file).is_file():  # else it came from the hub or the web
                    loaded.copies.append((Path(path), Path(source) / file))
            return taken

        @noting(CategoricalEncoder, "load_or_create")
        def encoders(load_or_create, encoder, *args, **kwargs):
            bound = inspect.signature(load_or_create).bind(encoder, *args, **kwargs)
            bound.apply_defaults()
            path, before = Path(bound.arguments["path"]), [*loaded.files]
            existed = path.exists()
            load_or_create(encoder, *args, **kwargs)
            loaded.files[:] = before  # it also loads what it has just created
            if existed:
                loaded.encoders.append((encoder, path, bound.arguments))

        @noting(dataio.DynamicItemDataset, "_filtered_sorted_ids")
        def selections(select, dataset, *args, **kwargs):
            ids = select(dataset, *args, **kwargs)
            loaded.selections.append((dataset, inspect.signature(select).bind(dataset, *args, **kwargs).arguments, ids))
            return ids

        for owner, name, note in (
            (Checkpointer, "list_checkpoints", loaded.searched.append),
            (Pretrainer, "__init__", lambda pretrainer, *args, **kwargs: loaded.pretrainers.update({pretrainer: ""})),
            (CategoricalEncoder, "load", lambda encoder, path, *args, **kwargs: loaded.files.append((encoder, path))),
            (dataio, "load_data_json", lambda json_path, *args, **kwargs: loaded.manifests.append(Path(json_path))),
        ):
            stack.enter_context(noted(owner, name, note))
        yield loaded
