"""Steps with non-finite gradients are skipped, and all groups are clipped."""

import math
from operator import is_

import torch

from speechbrain.core import logger

# Names under which normalization layers keep the statistics of the batches
# that they have seen, and the number of these batches
RUNNING_STATISTICS = (
    "running_mean",
    "running_var",
    "running_std",
    "glob_mean",
    "glob_std",
)
RUNNING_COUNTS = ("num_batches_tracked", "weight", "count")


def _is_nonfinite_anywhere(value):
    """Whether a tensor of one number is not finite on any process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        flag = (~torch.isfinite(value)).to(torch.uint8)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)
    return not math.isfinite(value.item())


def _first_three(names):
    """Returns at most three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more


def _statistics_of(module):
    """Returns where a module keeps running statistics: dicts, and names."""
    names = RUNNING_STATISTICS + RUNNING_COUNTS
    # Some layers keep them as plain attributes
    owners = (module._buffers, module.__dict__)
    found = [(own, name) for own in owners for name in names if name in own]
    return found if any(n in RUNNING_STATISTICS for _, n in found) else []


class _KeptStatistics:
    """A copy of the running statistics of all modules."""

    def __init__(self):
        self.modules = self.sizes = self.tensors = self.shapes = None
        self.places, self.values, self.copies = [], [], []

    def __reduce__(self):
        # A copy of the Brain has other modules
        return type(self), ()

    @torch.no_grad()
    def keep(self, root):
        """Copies the statistics, with few Python operations per step."""
        modules = [root]
        for module in modules:
            if module is not None:
                modules += module._modules.values()
        # A layer may get its statistics in its first forward
        known = modules == self.modules
        if not known or self.sizes != list(map(len, self.owners)):
            self._find(modules)
        self.values = [own[name] for _, own, name in self.places]
        tensors = [v for v in self.values if isinstance(v, torch.Tensor)]
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self.shapes or not all(map(is_, tensors, self.tensors)):
            self.copies = [torch.empty_like(tensor) for tensor in tensors]
            self.groups = {}
            for i, copy in enumerate(self.copies):
                self.groups.setdefault((copy.device, copy.dtype), []).append(i)
        self.tensors, self.shapes = tensors, shapes
        # One fused call for each device and dtype
        for group in self.groups.values():
            torch._foreach_copy_(
                [self.copies[i] for i in group], [tensors[i] for i in group]
            )

    def _find(self, modules):
        self.modules = modules
        modules = [module for module in modules if module is not None]
        self.owners = [o for m in modules for o in (m._buffers, m.__dict__)]
        self.sizes = list(map(len, self.owners))
        self.places = [
            (module, own, name)
            for module in modules
            for own, name in _statistics_of(module)
            if not torch.nn.parameter.is_lazy(own[name])
        ]

    @torch.no_grad()
    def restore(self):
        copies = iter(self.copies)
        for (module, own, name), value in zip(self.places, self.values):
            if not isinstance(value, torch.Tensor):
                setattr(module, name, value)
                continue
            now, value = own[name], next(copies)
            if own is module._buffers and now.shape == value.shape:
                # In place, since the DDP wrapper refers to this tensor
                now.copy_(value)
            else:
                setattr(module, name, value.clone())


class Brain:
    # False takes every step, and clips gradients, as SpeechBrain 1.1.2 does
    only_finite_steps = True

    # Number of steps skipped in a row
    _skipped_in_a_row = 0

    # Running statistics before the batches of the next step
    _kept_statistics = None

    # Ids of each of these batches; None outside of fit_batch
    _batch_ids = None

    def fit_batch(self, batch):
        if self.only_finite_steps:
            first = (self.step - 1) % self.grad_accumulation_factor == 0
            if first or self._batch_ids is None:
                self._keep_statistics()
                self._batch_ids = []
            ids = getattr(batch, "id", None)
            self._batch_ids.append(ids if isinstance(ids, list) else [])
        return self._upstream_fit_batch(batch)

    def check_loss_isfinite(self, loss):
        if _is_nonfinite_anywhere(loss):
            self.nonfinite_count += 1
            ids = "" if torch.isfinite(loss) else self._name_ids(1)

            # Check if patience is exhausted
            if self.nonfinite_count > self.nonfinite_patience:
                raise ValueError(
                    "Loss is not finite and patience is exhausted: "
                    f"{self.nonfinite_count} losses of this epoch are not "
                    f"finite, and nonfinite_patience is "
                    f"{self.nonfinite_patience}.{ids} "
                    f"{self._where_nonfinite()}"
                )
            logger.warning(
                f"The loss of batch {self.step} is not finite: number "
                f"{self.nonfinite_count} of {self.nonfinite_patience} that "
                f"this epoch tolerates.{ids}"
            )

    def optimizers_step(self):
        if not self.only_finite_steps:
            return self._upstream_optimizers_step()

        if self.optimizers_dict is not None:
            valid_optimizers = self.freeze_optimizers(self.optimizers_dict)
        elif self.opt_class is not None:
            valid_optimizers = {"optimizer": self.optimizer}
        else:
            return

        for opt in valid_optimizers.values():
            self.scaler.unscale_(opt)

        # One norm over all parameter groups of an optimizer
        trained = [
            [
                parameter
                for group in opt.param_groups
                for parameter in group["params"]
            ]
            for opt in valid_optimizers.values()
        ]
        norms = [
            torch.nn.utils.get_total_norm(
                [p.grad for p in parameters if p.grad is not None]
            )
            for parameters in trained
        ]
        total = sum(norm.to(self.device) for norm in norms)
        nonfinite = bool(norms) and _is_nonfinite_anywhere(total)
        # In fp16 the GradScaler skips steps with non-finite gradients
        if nonfinite and not self.scaler.is_enabled():
            self._skip_step()
            return
        if self.max_grad_norm >= 0:
            for parameters, norm in zip(trained, norms):
                torch.nn.utils.clip_grads_with_norm_(
                    parameters, self.max_grad_norm, norm
                )

        for opt in valid_optimizers.values():
            self.scaler.step(opt)

        self.scaler.update()

        for opt in valid_optimizers.values():
            opt.zero_grad(set_to_none=True)

        # Scaled gradients often overflow, and then the statistics are finite
        if nonfinite and self._lost_statistics_anywhere():
            self._restore_statistics()

        self.optimizer_step += 1
        self._skipped_in_a_row = 0
        # fit_batch keeps them before a batch; a recipe's own one does not
        if self._batch_ids is None:
            self._keep_statistics()
        self._batch_ids = None

    def _skip_step(self):
        """Skips a step with non-finite gradients, and restores the running
        statistics that its batch has changed."""
        self._skipped_in_a_row += 1
        nonfinite = [
            name
            for name, parameter in self.modules.named_parameters()
            if parameter.grad is not None
            and not torch.isfinite(parameter.grad).all()
        ]
        which = f"the gradients of {_first_three(nonfinite)} are not finite"
        if not nonfinite:
            which = "the gradients of another process are not finite"
            if not self.distributed_launch:
                which = "the norm of the gradients overflows"
        ids = self._name_ids()
        logger.warning(
            f"Skipping step {self.optimizer_step + 1} (batch {self.step}): "
            f"{which}.{ids}"
        )
        optimizers = self.optimizers_dict or {"optimizer": self.optimizer}
        for opt in optimizers.values():
            opt.zero_grad(set_to_none=True)

        self._restore_statistics()
        self._batch_ids = None
        if self._skipped_in_a_row > self.nonfinite_patience:
            raise ValueError(
                f"Skipped {self._skipped_in_a_row} steps in a row, and "
                f"nonfinite_patience is {self.nonfinite_patience}: "
                f"{which}.{ids} "
                f"{self._where_nonfinite()}"
            )

    def _restore_statistics(self):
        """Restores the running statistics before the batches of a step."""
        if self._kept_statistics is not None:
            self._kept_statistics.restore()
        if self._lost_statistics_anywhere():
            which = _first_three(self._nonfinite_statistics())
            raise ValueError(
                f"Running statistics are not finite after batch {self.step}, "
                "and there are no earlier finite ones to restore: "
                f"{which or 'on another process'}.{self._name_ids()} Look at "
                "the audio of that batch and at its augmentation."
            )

    def _lost_statistics_anywhere(self):
        """Whether running statistics are not finite on any process."""
        value = math.nan if self._nonfinite_statistics() else 0.0
        return _is_nonfinite_anywhere(torch.tensor(value, device=self.device))

    def _keep_statistics(self):
        if self._kept_statistics is None:
            self._kept_statistics = _KeptStatistics()
        self._kept_statistics.keep(self.modules)

    def _nonfinite_statistics(self):
        """Returns the names of running statistics that are not finite."""
        return [
            f"{path}.{name}"
            for path, module in self.modules.named_modules()
            for own, name in _statistics_of(module)
            if torch.is_tensor(own[name]) and not own[name].isfinite().all()
        ]

    def _name_ids(self, batches=0):
        """Returns a sentence with the ids of the last batches, or of all that
        belong to the step, whose cause may be on another process; empty if
        they have none."""
        if not batches and self.distributed_launch:
            return ""
        several = (self._batch_ids or [])[-batches:]
        ids = [each for batch in several for each in batch]
        which = f"{len(several)} batches" if len(several) > 1 else "batch"
        return f" Ids of the {which}: {_first_three(ids)}." if ids else ""

    def _where_nonfinite(self):
        """Returns a sentence that names the model's first non-finite tensor."""
        parameters = self.modules.named_parameters()
        for name, value in [*parameters, *self.modules.named_buffers()]:
            if not torch.isfinite(value).all():
                return f"The first non-finite tensor of the model is {name}."
        return (
            "Parameters and buffers are finite: look at the data and the "
            "learning rate, or use torch.autograd.detect_anomaly()."
        )
