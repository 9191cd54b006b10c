"""Steps with non-finite gradients are skipped, and all groups are clipped."""

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


def _on_any_process(flag):
    """Whether a flag (a boolean tensor) is set on any process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        flag = flag.to(torch.uint8)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


class Brain:
    # False takes every step, and clips gradients, as SpeechBrain 1.1.2 does
    only_finite_steps = True

    # Number of steps skipped in a row
    _skipped_in_a_row = 0

    # Running statistics as the last finite step left them, by module
    _last_statistics = None

    def check_loss_isfinite(self, loss):
        if _on_any_process(~torch.isfinite(loss).all()):
            self.nonfinite_count += 1

            # Check if patience is exhausted
            if self.nonfinite_count > self.nonfinite_patience:
                raise ValueError(
                    "Loss is not finite and patience is exhausted: "
                    f"{self.nonfinite_count} losses of this epoch are not "
                    f"finite, and nonfinite_patience is "
                    f"{self.nonfinite_patience}. {self._where_nonfinite()}"
                )
            logger.warning(
                f"The loss of batch {self.step} is not finite: number "
                f"{self.nonfinite_count} of {self.nonfinite_patience} that "
                "this epoch tolerates."
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
                if parameter.grad is not None
            ]
            for opt in valid_optimizers.values()
        ]
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in parameters])
            for parameters in trained
        ]
        # In fp16 the GradScaler skips steps with non-finite gradients
        if norms and not self.scaler.is_enabled():
            device = norms[0].device
            finite = [torch.isfinite(norm).to(device) for norm in norms]
            if _on_any_process(~torch.stack(finite).all()):
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

        self.optimizer_step += 1
        self._skipped_in_a_row = 0
        self._keep_statistics()

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
        which = ", ".join(nonfinite[:3]) or "no parameter of this process"
        if len(nonfinite) > 3:
            which += f" and {len(nonfinite) - 3} more"
        logger.warning(
            f"Skipping step {self.optimizer_step + 1} (batch {self.step}): the "
            f"gradients of {which} are not finite."
        )
        optimizers = self.optimizers_dict or {"optimizer": self.optimizer}
        for opt in optimizers.values():
            opt.zero_grad(set_to_none=True)

        self._restore_statistics()
        lost = self._nonfinite_statistics()
        if _on_any_process(torch.tensor(bool(lost), device=self.device)):
            raise ValueError(
                f"Running statistics are not finite after batch {self.step}, "
                "and no earlier step left finite ones to restore: "
                f"{', '.join(lost) or 'on another process'}. Look at the audio "
                "of that batch."
            )
        if self._skipped_in_a_row > self.nonfinite_patience:
            raise ValueError(
                f"Skipped {self._skipped_in_a_row} steps in a row, and "
                f"nonfinite_patience is {self.nonfinite_patience}: the "
                f"gradients of {which} are not finite. "
                f"{self._where_nonfinite()}"
            )

    def _modules_with_statistics(self):
        """Yields each module with running statistics, and their names."""
        for module in self.modules.modules():
            # Some layers keep them as plain attributes
            own = {**module._buffers, **module.__dict__}
            if any(torch.is_tensor(own.get(n)) for n in RUNNING_STATISTICS):
                names = RUNNING_STATISTICS + RUNNING_COUNTS
                yield module, [name for name in names if name in own]

    def _keep_statistics(self):
        if self._last_statistics is None:
            self._last_statistics = [
                (module, dict.fromkeys(names))
                for module, names in self._modules_with_statistics()
            ]
        for module, values in self._last_statistics:
            for name in values:
                value = getattr(module, name)
                if torch.is_tensor(value):
                    value = value.detach().clone()
                values[name] = value

    @torch.no_grad()
    def _restore_statistics(self):
        for module, values in self._last_statistics or []:
            for name, value in values.items():
                now = getattr(module, name)
                is_buffer = name in module._buffers and value is not None
                if is_buffer and now.shape == value.shape:
                    # In place, since the DDP wrapper refers to this tensor
                    now.copy_(value)
                elif torch.is_tensor(value):
                    setattr(module, name, value.clone())
                else:
                    setattr(module, name, value)

    def _nonfinite_statistics(self):
        """Returns the names of running statistics that are not finite."""
        paths = {module: path for path, module in self.modules.named_modules()}
        return [
            f"{paths[module]}.{name}"
            for module, names in self._modules_with_statistics()
            for name in names
            if torch.is_tensor(value := getattr(module, name))
            and not torch.isfinite(value).all()
        ]

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
