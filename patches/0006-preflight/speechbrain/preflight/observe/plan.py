"""Puts together the plan of a run: facts in which a person can see a mistake that no check can know."""

import math
from itertools import chain

import torch
from speechbrain.core import Brain
from speechbrain.preflight.attempts import shown
from speechbrain.preflight.observe.given import parts, unwrapped
from speechbrain.preflight.report import some
from speechbrain.utils.logger import format_order_of_magnitude

BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
OF_CLASSES = ("cross_entropy", "nll_loss", "kl_div", *BINARY)


def plan(seen, log):
    """Make the plan: by name, a line's facts and its ``text``; a line whose facts are unknown is left out."""
    lines = (model, loaded, data, epochs, folder, loss, time, memory)
    made = {line.__name__: log.guarded(f"the plan ({line.__name__})", line, seen) for line in lines}
    return {name: {"text": line[0], **line[1]} for name, line in made.items() if line}


def model(seen):
    """By module: its parameters, how many of them are trained, and by which optimizer; a shared parameter counts once."""
    groups = [(type(one).__name__, group) for one in seen.step.optimizers.values() for group in one.param_groups]
    trainers = {id(p): (kind, group.get("lr")) for kind, group in groups for p in group["params"] if p.requires_grad}
    owned = chain.from_iterable(group["params"] for _, group in groups)
    found, texts, known = [], {}, set()
    for name, parameters in [*((n, m.parameters()) for n, m in seen.given.modules.items()), ("outside the modules", owned)]:
        sizes = {id(p): p.numel() for p in parameters if id(p) not in known and not torch.nn.parameter.is_lazy(p)}
        known |= sizes.keys()
        by = [trainers[key] for key in sizes if key in trainers]
        total, trained = sum(sizes.values()), sum(sizes[key] for key in sizes.keys() & trainers.keys())
        kinds, rates = sorted({kind for kind, _ in by}), sorted({float(rate) for _, rate in by if rate is not None})
        if total:
            how = f"trained by {', '.join(kinds)}" if trained else "not trained"
            how += f", lr {' to '.join(f'{rate:g}' for rate in dict.fromkeys((rates[0], rates[-1])))}" if rates else ""
            share = "" if trained in (0, total) else f"{_count(trained)} of "
            texts.setdefault(how, []).append(f"{name} {share}{_count(total)}")
            found.append({"module": name, "parameters": total, "trained": trained, "optimizers": kinds, "lr": rates})
    return found and ("\n".join(f"{some(names, 6)}: {how}" for how, names in texts.items()), {"modules": found})


def _count(number):
    return format_order_of_magnitude(number) if number > 999 else str(number)


def loaded(seen):
    """The modules that ``load_state_dict`` loaded, except those of the Brain's own checkpoint."""
    names = {id(module): name for name, module in chain(parts(seen.given.brain), seen.given.modules.named_modules())}
    own, found = str(getattr(seen.given.brain.checkpointer, "checkpoints_dir", None)), {}
    for load in seen.loaded.states:
        name = names.get(id(load.module()))
        if name and load.own and load.by != "checkpoint" and not (load.file and shown(load.file).startswith(shown(own))):
            found[name] = {"module": name, "file": load.file, "keys": len(load.own & load.given), "of": len(load.own)}
    texts = [f"{one['module']}: {one['keys']} of {one['of']} keys" for one in found.values()]
    texts = [text + (f" from {shown(one['file'])}" if one["file"] else "") for text, one in zip(texts, found.values())]
    return found and ("\n".join(texts[:4]) + f"\nand {len(texts) - 4} more" * (len(texts) > 4), {"modules": [*found.values()]})


def data(seen):
    """The items and hours of both sets."""
    found, texts = {}, []
    for split, loader in (("train", seen.start.train_loader), ("valid", seen.start.valid_loader)):
        items = seen.given.sets.get(split)
        count = _length(getattr(loader, "dataset", None) if items is None else items)
        if count is None:
            continue
        seconds, by = seen.clips.seconds(items) if items is not None else ({}, "")
        total, known = sum(seconds.values()), len(seconds)
        texts.append(f"{split} {_many(count, 'item')}")
        found[split] = {"items": count}
        if seconds and math.isfinite(total):
            found[split] |= {"hours": total / 3600, "known": known}
            texts[-1] += f", {_duration(total)}{by}" + f" (of {known:,} of them)" * (known < count)
    return found and ("; ".join(texts), found)


def _many(count, what):
    return f"{count:,} {what}{('es' if what.endswith('ch') else 's') * (count != 1)}"


def _length(sized):
    try:
        return len(sized)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def epochs(seen):
    """The epochs that are left, the batches of each, and the steps of the optimizers."""
    given, brain, epoch, batches = seen.given, seen.given.brain, seen.start.epoch, _length(seen.start.train_loader)
    counter = given.epochs if hasattr(given.epochs, "limit") else given.hparams.get("epoch_counter")
    found, texts = {}, []
    if isinstance(given.epochs, (range, list, tuple)):
        found = {"left": len(given.epochs), "of": len(given.epochs)}
    elif hasattr(counter, "limit") and seen.start.began:
        over = counter is given.epochs and counter.current != epoch
        found = {"left": 0 if over else counter.limit - epoch + 1, "of": counter.limit}
    if found:
        texts.append(f"{'at most ' * hasattr(counter, 'should_stop')}{found['left']} left (of {found['of']})")
    if batches is not None:
        found["batches"] = batches
        texts.append(f"{_many(batches, 'batch')} each")
        if _steps_as_usual(brain):
            factor, limit = brain.grad_accumulation_factor, brain.optimizer_step_limit
            found |= {"accumulation": factor, "steps": batches // factor}
            texts += [f"{_many(found['steps'], 'step')} each (accumulation {factor})"] * (factor > 1)
            if "left" in found:
                steps = math.inf if limit is None else max(0, limit - brain.optimizer_step)
                found |= {"steps_left": min(found["left"] * found["steps"], steps), "batches_in_all": found["of"] * batches}
                texts.append(f"{_many(found['steps_left'], 'step')} in all")
    texts += [f"but debug ends each after {_many(brain.debug_batches, 'batch')}"] * brain.debug
    return found and (", ".join(texts), found)


def _steps_as_usual(brain):
    """Whether a Brain steps after each ``grad_accumulation_factor`` batches of an epoch, and drops the gradients of others."""
    kind = type(brain)
    used = {*getattr(kind.fit_batch, "__code__", kind.zero_grad.__code__).co_names}
    adds = {"super", "fit_batch"} <= used and not {"backward", "optimizers_step"} & used  # it calls the usual one
    same = kind._fit_train is Brain._fit_train and kind.zero_grad is Brain.zero_grad
    return same and (adds or kind.fit_batch is Brain.fit_batch)


def folder(seen):
    """The checkpoints in the output folder, and the one that training continues from."""
    checkpointer = seen.given.brain.checkpointer
    if checkpointer is None:
        return "no checkpointer, so nothing is saved", {}
    path, found = str(checkpointer.checkpoints_dir), checkpointer.list_checkpoints()
    recovery = seen.start.resumed.recovery
    recovered = recovery.checkpoint.path.name if recovery and not recovery.error else None
    text = f"{shown(path)}: " + (_many(len(found), "checkpoint") if found else "no checkpoint yet")
    if recovered:
        text += f"; continues from {recovered}" + ("" if seen.start.exhausted else f" with epoch {seen.start.epoch}")
    elif found and seen.start.began:
        text += ", but starts from none"
    return text, {"path": path, "checkpoints": [one.path.name for one in found], "recovered": recovered}


def loss(seen):
    """The first loss, and what guessing among the classes would give."""
    step, brain = seen.step, seen.given.brain
    values = [float(value) for value in step.returned if isinstance(value, float) or getattr(value, "ndim", 1) == 0]
    if not step.custom and len(step.backwards) == 1:  # its loss was scaled and divided
        values = [step.backwards[0].value * brain.grad_accumulation_factor]
    if not values or not math.isfinite(values[0]):
        return None
    found, text = {"start": values[0]}, f"{values[0]:.4g} at the start"
    calls = [call for call in step.losses if call.name in OF_CLASSES]
    classes = _classes(calls[0], values[0]) if len(calls) == 1 else 0
    if classes:
        found |= {"loss": calls[0].name, "classes": classes, "chance": math.log(classes)}
        text += f"; guessing among {classes} classes gives {math.log(classes):.4g} ({calls[0].name}"
        columns = [column for (_, key), column in seen.labels.columns.items() if key in seen.labels.targets]
        labels = max((len(encoder.lab2ind) for column in columns for encoder in column.encoders), default=classes)
        text += f"; {classes} outputs, {labels} labels)" if labels < classes else ")"
    return text, found


def _classes(call, whole):
    """How many classes a loss tells apart, if it is the whole loss, and guessing gives the logarithm of them; else 0."""
    weighted = any(call.options.get(name) is not None for name in ("weight", "pos_weight"))
    if call.value is None or weighted or not call.input.numel() or not call.target.numel():
        return 0
    if call.name == "kl_div" and not (call.input.dim() == 2 and (call.target.amax(-1) == 1).all()):  # soft targets
        return 0
    rows = (len(call.target) if call.name == "kl_div" else call.target.numel()) if call.options["reduction"] == "sum" else 1
    mean = float(call.value.float().mean()) / rows
    classes = 2 if call.name in BINARY else call.input.shape[1 if call.input.dim() > 1 else 0]
    return classes if classes > 1 and min(mean, whole) > 0.5 * max(mean, whole) else 0  # padding may be masked


def time(seen):
    """How long the first batch and the first step took, and an epoch of such batches."""
    loader, loading, step = seen.start.train_loader, seen.start.seconds, seen.step.seconds
    if not seen.step.taken:
        return None
    text, found = f"loader {loading:.2g} s, step {step:.2g} s for the first batch", {"loader": loading, "step": step}
    batches, on_cpu = _length(loader) or 0, torch.device(seen.given.brain.device).type == "cpu"
    if batches > 1 and on_cpu:  # on others, the first step takes much longer
        workers = getattr(unwrapped(loader), "num_workers", 0)
        found["epoch"] = batches * (step if workers else loading + step)
        text += f": about {_duration(found['epoch'])} for {batches:,} batches like it"
    return text, found


def _duration(seconds):
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s"))
    return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"


def memory(seen):
    """The peak memory of the first step."""
    kind = "allocated" if torch.device(seen.given.brain.device).type == "cuda" else "resident"
    peak = seen.step.memory
    return peak and (f"{peak / 1e9:.2g} GB {kind} at the peak of the first step", {"bytes": peak, "kind": kind})
