"""Takes a Brain to its first training step as ``fit`` does, and records what happens."""

import inspect
import re
import traceback
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import speechbrain as sb
import torch
from speechbrain.core import Brain, Stage
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.preflight.observe import weights
from speechbrain.preflight.observe.given import LossCall
from speechbrain.preflight.observe.loads import replaced
from speechbrain.preflight.observe.weights import COUNTS, STATISTICS
from speechbrain.preflight.report import Finding
from speechbrain.utils.checkpoints import Checkpointer
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

CODES = {
    "script-failed": "the script raised an exception before it called fit",
    "preflight-killed": "the preflight's process ended without a result, for example because memory ran out",
    "dataloader-failed": "make_dataloader raised an exception for the training or validation set",
    "fit-start-failed": "on_fit_start raised an exception; it wraps modules, creates optimizers and loads a checkpoint",
    "stage-start-failed": "on_stage_start raised an exception for the first epoch",
    "first-batch-failed": "the first training batch could not be loaded",
    "first-step-failed": "the first training step raised an exception, in forward, loss or backward",
}

LOSSES = {
    getattr(torch.nn.functional, name): name
    for name in dir(torch.nn.functional)
    if name.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div"))
}

# A finding names the last line of a traceback that is not in one of these folders.
LIBRARIES = tuple(str(Path(package.__file__).parent) for package in (torch, sb))


class Stopped(BaseException):
    """Leaves fit_batch after the first backward; a BaseException, so that a script's ``except Exception`` cannot catch it."""


def guarded(said, name, function, *args):
    """Call a function that may fail; a failure becomes a remark, not a finding.

    Arguments
    ---------
    said : list of str
        The remark is appended to it.
    name : str
        The name of the function in the remark.
    function : callable
        The function.
    *args : object
        Its arguments.

    Returns
    -------
    object
        The return value of the function; None if it failed.

    Example
    -------
    >>> said = []
    >>> guarded(said, "lengths", len, "ab")
    2
    >>> guarded(said, "lengths", len, 2)
    >>> said
    ["Not everything was checked: lengths failed with TypeError: object of type 'int' has no len()"]
    """
    try:
        return function(*args)
    except Exception as error:
        said.append(f"Not everything was checked: {name} failed with {type(error).__name__}: {error}")


def check(seen):
    """Yield what failed on the way to the first step."""
    yield from seen.failures


def failure(code, error, remedy):
    """Turn an exception into a finding.

    Arguments
    ---------
    code : str
        The code of the finding.
    error : BaseException
        The exception.
    remedy : str
        How to fix it.

    Returns
    -------
    Finding
        Its place is the last line of the user's own code; the traceback is added to it.

    Example
    -------
    >>> finding = failure("first-batch-failed", ValueError("no such file"), "look")
    >>> finding.what.splitlines()[0]
    'ValueError: no such file'
    """
    stack = error.__traceback__
    while stack and stack.tb_next and _is_ours(stack.tb_frame.f_code.co_filename):
        stack = stack.tb_next
    # An exception from a DataLoader worker has its traceback in its message, the last line of which is the original message.
    said = str(error).strip()
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(stack)]
    frames += re.findall(r'File "(.+?)", line (\d+), in (\w+)', said)
    own = [frame for frame in frames if not frame[0].startswith(LIBRARIES)] or frames
    where = f"{Path(own[-1][0]).name}:{own[-1][1]} in {own[-1][2]}" if own else ""
    first = said.splitlines()[-1] if said.startswith("Caught ") else f"{type(error).__name__}: {said.split(chr(10))[0]}"
    return Finding("error", code, f"{first}\n" + "".join(traceback.format_exception(type(error), error, stack)), where, remedy)


def _is_ours(file):
    return Path(__file__).parents[1] in Path(file).parents or "runpy" in file


def reach_first_step(seen, ranks, epochs, train_loader_kwargs, valid_loader_kwargs):
    """Do what ``fit`` does up to and including the first step, without changing a weight.

    Arguments
    ---------
    seen : Seen
        What happens is recorded in it.
    ranks : Ranks
        The processes of torchrun, which proceed only together.
    epochs : iterable
        The epoch counter that was passed to ``fit``.
    train_loader_kwargs, valid_loader_kwargs : dict
        The options of the dataloaders.
    """
    brain = seen.brain

    def attempt(code, remedy, function, *args, **kwargs):
        try:
            answer, error = function(*args, **kwargs), None
        except (Exception, SystemExit) as caught:
            answer, error = None, caught
            seen.failures.append(failure(code, caught, remedy))
        return ranks.agree(error is None), answer

    def skipped(*args, **kwargs):
        seen.said.append("A call of fit() inside fit() was skipped.")

    with ExitStack() as stack:
        stack.enter_context(replaced(Brain, "fit", skipped))
        for name in ("save_checkpoint", "save_and_keep_only", "delete_checkpoints"):
            stack.enter_context(replaced(Checkpointer, name, lambda *args, **kwargs: None))
        stack.enter_context(_idle_optimizers(seen))

        remedy = "fix the dataset or the options of its loader"
        made, seen.train_loader = attempt(
            "dataloader-failed", remedy, _loader, brain, seen.train_set, Stage.TRAIN, train_loader_kwargs
        )
        if seen.valid_set is not None:
            _, seen.valid_loader = attempt(
                "dataloader-failed", remedy, _loader, brain, seen.valid_set, Stage.VALID, valid_loader_kwargs, ckpt_prefix=None
            )
        seen.started, _ = attempt("fit-start-failed", "fix the error that the traceback below shows", brain.on_fit_start)
        seen.optimizers = held(brain, Optimizer)
        if seen.started:
            seen.started, _ = attempt(
                "stage-start-failed", "fix the error that the traceback below shows", _start_stage, seen, epochs
            )
        seen.weights = guarded(seen.said, "weights", weights.look, seen.modules) or []
        if made:
            drawn, seen.batch = attempt(
                "first-batch-failed", "fix the item or the data pipeline that the traceback below shows", _first_batch, seen
            )
            if drawn and seen.started:  # equal on all processes, so that all make the same attempts
                well, _ = attempt("first-step-failed", "fix the error that the traceback below shows", _step, seen)
                seen.stepped = well and seen.batch is not None


def _loader(brain, dataset, stage, options, **more):
    if isinstance(dataset, (torch.utils.data.DataLoader, LoopedLoader)):
        return dataset
    return brain.make_dataloader(dataset, stage=stage, **more, **options)


def _start_stage(seen, epochs):
    brain, epoch = seen.brain, next(iter(epochs), None)
    if epoch is None:
        seen.said.append("The epoch counter is at its limit, so fit() would not train any further.")
        epoch = 1
    brain.on_stage_start(Stage.TRAIN, epoch)
    brain.modules.train()
    for parameter in chain(brain.modules.parameters(), _owned(seen.optimizers)):
        parameter.grad = None
    brain.zero_grad()
    brain.nonfinite_count = 0
    if hasattr(brain.train_sampler, "set_epoch"):
        brain.train_sampler.set_epoch(epoch)


def _first_batch(seen):
    return next(iter(seen.train_loader), None)


def held(brain, kind):
    """Find the objects of a type among a Brain's attributes and hparams, and in lists and dicts there.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    kind : type
        The type.

    Returns
    -------
    dict of str to object
        Each object by the first name that it was found under.

    Example
    -------
    >>> brain = Brain(hparams={"heads": [torch.nn.Linear(2, 2)]}, run_opts={"device": "cpu"})
    >>> list(held(brain, torch.nn.Linear))
    ['heads[0]']
    """
    found = {}
    for name, value in {**vars(getattr(brain, "hparams", SimpleNamespace())), **vars(brain)}.items():
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        for key, item in [(name, value), *((f"{name}[{key!r}]", item) for key, item in inner)]:
            if isinstance(item, kind) and not any(item is other for other in found.values()):
                found[key] = item
    return found


def _owned(optimizers):
    return (p for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"])


@contextmanager
def _idle_optimizers(seen):
    """Make every optimizer's step do nothing, by emptying its groups meanwhile, and record which optimizers step."""
    emptied = {}

    def empty(optimizer, args, kwargs):
        if not any(optimizer is known for known in seen.optimizers.values()):
            seen.optimizers[f"{type(optimizer).__name__} {len(seen.optimizers) + 1}"] = optimizer
        emptied[id(optimizer)] = [(group, group["params"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = []

    def fill(optimizer, args, kwargs):
        for group, parameters in emptied.pop(id(optimizer), ()):
            group["params"] = parameters

    hooks = register_optimizer_step_pre_hook(empty), register_optimizer_step_post_hook(fill)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for groups in emptied.values():  # of a step that raised an exception
            for group, parameters in groups:
                group["params"] = parameters


class _Losses(TorchFunctionMode):
    """Records the calls of torch's loss functions."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in LOSSES:
            return func(*args, **(kwargs or {}))
        bound = inspect.signature(func).bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = [item.detach() if isinstance(item, torch.Tensor) else item for item in bound.arguments.values()]
        names = list(bound.arguments)
        call = LossCall(LOSSES[func], *given[:2], dict(zip(names[2:], given[2:])))
        self.calls.append(call)  # before the call, which fails for a label that is not a class
        value = func(*args, **(kwargs or {}))
        call.value = value.detach()
        return value


def _step(seen):
    if seen.batch is None:
        return
    brain = seen.brain
    modules = seen.modules
    known = {id(p): p for p in chain(modules.parameters(), _owned(seen.optimizers))}
    seen.frozen = {key for key, parameter in known.items() if not parameter.requires_grad}
    seen.custom_step = type(brain).fit_batch is not Brain.fit_batch
    before = _statistics(modules)
    real_backward = torch.autograd.backward

    def backward(tensors, *args, **kwargs):
        seen.backwards += 1
        outputs = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        leaves = [leaf for output in outputs for leaf in _leaves(output)]
        parameters = [leaf for leaf in leaves if isinstance(leaf, torch.nn.Parameter)]
        seen.by_hand |= bool(leaves) and not parameters
        if seen.custom_step or any(output.requires_grad for output in outputs):
            real_backward(tensors, *args, **kwargs)
        seen.reached.update((id(p), p) for p in chain(known.values(), parameters) if p.grad is not None)
        guarded(seen.said, "gradients", weights.look_at_gradients, seen.weights)
        if not seen.custom_step:
            raise Stopped

    def note_input(name):
        def note(module, args):
            if args:
                seen.norm_inputs.setdefault(name, args[0].shape)

        return note

    with ExitStack() as stack:
        for name, module in modules.named_modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(note_input(name)).remove)
        stack.enter_context(replaced(torch.autograd, "backward", backward))
        stack.enter_context(_alone(brain))
        stack.enter_context(_Losses(seen.losses))
        brain.step += 1
        with suppress(Stopped):
            brain.fit_batch(seen.batch)
    for name, values in _statistics(modules).items():
        old = before.get(name, ())
        if len(old) != len(values) or any(a is not b or v != w for (a, v), (b, w) in zip(values, old)):
            seen.moved.add(name)


def _leaves(tensor):
    """The leaves of a tensor's graph that require a gradient."""
    if tensor.requires_grad and tensor.is_leaf:
        yield tensor
    todo, known = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in known:
            continue
        known.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            yield leaf
        todo += [parent for parent, _ in node.next_functions]


def _statistics(modules):
    """By name of a module, its running statistics, each with a counter of writes to the tensor."""
    found = {}
    for name, module in modules.named_modules():
        own = {**module._buffers, **module.__dict__}
        tensors = [own[key] for key in STATISTICS + COUNTS if isinstance(own.get(key), torch.Tensor)]
        if any(key in own for key in STATISTICS):
            found[name] = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    return found


@contextmanager
def _alone(brain):
    """Stop the processes of torchrun from waiting for one another, so that none waits for one that has failed."""
    wrapped = [m for m in brain.modules.values() if isinstance(m, torch.nn.parallel.DistributedDataParallel)]
    with ExitStack() as stack:
        if torch.distributed.is_available():
            stack.enter_context(replaced(torch.distributed, "is_initialized", lambda: False))
        for module in wrapped:
            stack.enter_context(replaced(module, "require_backward_grad_sync", False))
            stack.enter_context(replaced(module, "require_forward_param_sync", False))
        yield
