"""Takes real steps: the optimizers change the weights."""

import copy
from contextlib import ExitStack
from functools import partial
from itertools import count
from time import perf_counter
from typing import NamedTuple

import torch
from speechbrain.core import Brain
from speechbrain.preflight.attempts import failure
from speechbrain.preflight.observe.first_valid import certain
from speechbrain.preflight.observe.kept import holders
from speechbrain.preflight.observe.start import parameters_of, rates_of
from speechbrain.preflight.quiet import replaced
from torch.optim.optimizer import register_optimizer_step_pre_hook

SLOW = 2.0  # how long the steps may take, and what comes after them
MOST = 12  # real steps; more than one only while graphs or gradients of earlier ones are left, which may still be dropped


class Change(NamedTuple):
    """What the first real step does to a parameter: its norm, the norm of the change, and whether it is finite afterwards."""

    size: float
    by: float
    finite: bool


def take_steps(made, brain, start, step, stepped, writes, log):
    """Take real steps on the first batch, and record what they change."""
    owned = {id(p): p for p in parameters_of(step.optimizers)}
    before = {key: p.detach().clone() for key, p in owned.items()}
    began, losses, stepping, left = perf_counter(), whole_steps(brain, start.spare), [], Leftovers()
    # What restores the Brain in this process may hold the first graph, and on_fit_batch_end has not seen it.
    ends = type(brain).on_fit_batch_end is Brain.on_fit_batch_end or step.custom
    step.graphs.first = 0 if ends and log.forked else 1
    least = 1 + step.graphs.first  # steps after which a graph may be a kept one

    def backward(tensors, *args, **kwargs):
        step.graphs.mark([tensors] if isinstance(tensors, torch.Tensor) else tensors, len(made.losses) + 1)
        return real_backward(tensors, *args, **kwargs)

    def note(optimizer, args, kwargs):
        own = [p for p in parameters_of({"": optimizer}) if p.grad is not None]
        made.stale.update(left.used(own))
        if not made.losses:
            stepping.extend(own)
            made.gradient = made.gradient or any(bool(p.grad.any()) for p in own)
            made.rates += rates_of({"": optimizer})
            made.frozen.update(id(p) for p in own if not p.requires_grad)

    def again():
        steps = len(made.losses)
        if not 0 < steps < MOST or perf_counter() - began > SLOW:
            return not steps
        return steps < least or (steps < 2 and left.old) or step.graphs.are_kept()

    handle = register_optimizer_step_pre_hook(note)
    real = replaced(stepped, "real", True), replaced(torch.autograd, "backward", backward)
    with handle, left, real[0], real[1] as real_backward:
        while again():
            try:
                loss = next(losses)
            except Exception as error:
                if certain(error, writes):
                    log.findings.append(failure("real-step-failed", error))
                break
            if not made.losses:
                made.changes = {key: _change(before.pop(key), p.detach()) for key, p in owned.items()}
                left.watch(stepping)
            made.losses += (loss,)
    made.last_rates = rates_of(step.optimizers)
    if len(made.losses) > least and step.graphs.are_kept():
        # In this process, what restores the Brain may be what is not found.
        made.kept = tuple(name for name in holders(brain, step.graphs.first) if name or log.forked)


class Leftovers(ExitStack):
    """Finds gradients that are added to those with which an optimizer has already stepped."""

    def __init__(self):
        super().__init__()
        self.old, self.new, self.sums = {}, {}, {}  # by id of a parameter

    def watch(self, parameters):
        """Note the gradients that a step leaves, and what is added to them."""
        for p in parameters:
            if p.requires_grad and p.grad is not None and p.grad.layout is torch.strided and p.grad.any():
                self.old[id(p)] = p.grad.clone()
                self.callback(p.register_hook(partial(self._before, p)).remove)
                self.callback(p.register_post_accumulate_grad_hook(self._after).remove)

    def _before(self, p, gradient):
        self.new[id(p)] = gradient.detach().clone()
        if p.grad is None or not p.grad.any():
            self.old.pop(id(p), None)
            self.sums.pop(id(p), None)

    def _after(self, p):
        old, new = self.old.pop(id(p), None), self.new.pop(id(p), None)  # only the first sum counts
        if old is not None and torch.allclose(p.grad, old + new) and not torch.allclose(p.grad, new):
            self.sums[id(p)] = p.grad

    def used(self, parameters):
        """Return the ids of parameters whose gradient is such a sum."""
        return {id(p) for p in parameters if self.sums.get(id(p)) is p.grad and p.grad.any()}


def whole_steps(brain, batch):
    """Take whole steps on copies of a batch; yields their losses."""
    brain.modules.train()
    if type(brain).fit_batch is Brain.fit_batch:  # the first step left it before its end, where it calls zero_grad
        brain.zero_grad()
    for number in count(1):
        brain.step = number * getattr(brain, "grad_accumulation_factor", 1)  # so that each one steps
        yield float(torch.as_tensor(brain.fit_batch(copy.deepcopy(batch))).detach().float().mean())


def _change(old, new):
    if old.shape != new.shape or not old.is_floating_point():
        return Change(0.0, 0.0, True)
    by = (new.float() - old.float()).norm() if not torch.equal(old, new) else 0.0
    return Change(float(old.float().norm()), float(by), bool(new.isfinite().all() or not old.isfinite().all()))
