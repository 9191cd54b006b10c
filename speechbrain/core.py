"""What a Brain says of its parameters, how it averages losses, and torchrun on CPU. The rest of this module is upstream's."""

from collections.abc import Sized
from types import SimpleNamespace

import speechbrain as sb
import torch
import yaml
from speechbrain.core import logger, tqdm  # upstream's own
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import format_order_of_magnitude
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

# The names under which normalisations keep what they learn from the batches that they see, and how many these were.
STATISTICS = ("running_mean", "running_var", "running_std", "glob_mean", "glob_std")

COUNTS = ("num_batches_tracked", "weight", "count")


def _on_any_process(flag):
    """Tell whether a flag is set on any process; one wait for the device."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        flag = flag.to(torch.uint8)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


class Brain:
    """Upstream's class with some of its methods replaced."""

    # How many losses of the stage were not finite; its average leaves them out.
    nonfinite_skipped = 0

    # The parameters that the processes of torchrun keep the same, by id; None without torchrun.
    _wrapped = None

    # False has every step taken, and gradients clipped, as the stock release does.
    only_finite_steps = True

    # Steps in a row that were not taken, and running statistics as the last one that was taken has left them.
    _steps_left_out = 0

    _statistics = None

    def print_trainable_parameters(self):
        """Log how many parameters the modules have, and how many of them are trainable.

        Upstream's asked every parameter for its size, so one that is not
        initialised yet (``LazyLinear`` and its kin) ended ``Brain.__init__``.
        Such parameters are named in a warning, and the totals leave them out. A
        parameter that several modules share counts once.

        Example
        -------
        >>> Brain({"model": torch.nn.Linear(10, 10)}).print_trainable_parameters()
        """
        trainable = total = 0
        uninitialised = {}
        for name, parameter in self.modules.named_parameters():
            try:
                size = parameter.numel()
            except ValueError:  # which is how one that is not initialised answers; asking first is slower
                uninitialised[name] = parameter.requires_grad
                continue
            total += size
            if parameter.requires_grad:
                trainable += size
        if uninitialised:
            logger.warning(f"Not initialised yet, so the totals below leave them out: {', '.join(uninitialised)}")
        if total == 0 and not uninitialised:
            logger.warning("The model has no parameters!")
        elif trainable == 0 and not any(uninitialised.values()):
            logger.warning("The model has no trainable parameters!")
        percentage = f"{100 * trainable / total:.4f}" if total else "0.00"
        logger.info(
            f"{type(self).__name__} Model Statistics:\n"
            f"* Total Number of Trainable Parameters: {format_order_of_magnitude(trainable)}\n"
            f"* Total Number of Parameters: {format_order_of_magnitude(total)}\n"
            f"* Trainable Parameters represent {percentage}% of the total size."
        )

    def _train_loader_specifics(self, dataset, loader_kwargs):
        # Upstream's asks for hparams.sorting under torchrun, whether or not the Brain has hparams.
        if self.distributed_launch and not hasattr(self, "hparams"):
            self.hparams = SimpleNamespace()
        return self._upstream__train_loader_specifics(dataset, loader_kwargs)

    def zero_grad(self, set_to_none=False):
        """Clear the gradients of what the optimizers train.

        Upstream's says nothing where a module was unfrozen after it had been
        wrapped for torchrun: each process then trains it on its own. As fit()
        calls this after ``on_stage_start``, it is the place to notice.

        Arguments
        ---------
        set_to_none : bool
            Whether to drop the gradients instead of filling them with zeros.
        """
        self._upstream_zero_grad(set_to_none)
        if self._wrapped is None:
            return
        late = [name for name, p in self.modules.named_parameters() if p.requires_grad and id(p) not in self._wrapped]
        if late:
            logger.warning(
                f"Not synchronised between the processes: {', '.join(late)}. They were unfrozen after fit() had wrapped the "
                "modules for torchrun: unfreeze them before fit(), and freeze again what is not to be trained yet."
            )
            self._wrapped.update(id(p) for p in self.modules.parameters())  # said once

    def check_loss_isfinite(self, loss):
        """Count the losses that are not finite, and end the run where there are too many in an epoch.

        Upstream's raised on the process whose loss it was, while the others
        waited for it, and did not say where to look. Under torchrun this one
        counts alike on all processes.

        Arguments
        ---------
        loss : torch.Tensor
            The loss of a batch.

        Raises
        ------
        ValueError
            If more than ``nonfinite_patience`` losses of an epoch are not finite.
        """
        if _on_any_process(~torch.isfinite(loss).all()):
            self.nonfinite_count += 1
            if self.nonfinite_count > self.nonfinite_patience:
                raise ValueError(
                    f"Loss is not finite and patience is exhausted: {self.nonfinite_count} of this epoch are not finite, and "
                    f"nonfinite_patience is {self.nonfinite_patience}. {self._first_nonfinite()}"
                )
            logger.warning(
                f"The loss of batch {self.step} is not finite, {self.nonfinite_count} of {self.nonfinite_patience} that are "
                "tolerated in an epoch."
            )

    def optimizers_step(self):
        """Clip the gradients, and let the optimizers step if all gradients are finite.

        Upstream's took the step with nan too, which destroys the weights, clipped
        the first group of an optimizer alone, and turned the gradient around
        where ``max_grad_norm`` is negative. Here one norm is taken over all groups
        of an optimizer, a negative ``max_grad_norm`` means no clipping, and
        where a norm is not finite no optimizer steps, on any process. With fp16
        the GradScaler decides, as on upstream's.

        Raises
        ------
        ValueError
            If more than ``nonfinite_patience`` steps in a row, across epochs,
            cannot be taken, or if the statistics of a normalisation cannot be
            put back.
        """
        if not self.only_finite_steps:
            return self._upstream_optimizers_step()
        if self.optimizers_dict is not None:
            optimizers = self.freeze_optimizers(self.optimizers_dict)
        elif self.opt_class is not None:
            optimizers = {"optimizer": self.optimizer}
        else:
            return
        for optimizer in optimizers.values():
            self.scaler.unscale_(optimizer)
        trained = [[p for group in o.param_groups for p in group["params"] if p.grad is not None] for o in optimizers.values()]
        norms = [torch.nn.utils.get_total_norm([p.grad for p in parameters]) for parameters in trained]
        if not self.scaler.is_enabled() and norms:
            finite = torch.stack([torch.isfinite(norm).to(norms[0].device) for norm in norms]).all()
            if _on_any_process(~finite):
                self._leave_out_step()
                return
        if self.max_grad_norm >= 0:
            for parameters, norm in zip(trained, norms):
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        for optimizer in optimizers.values():
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self._steps_left_out = 0
        self._remember_statistics()

    def _leave_out_step(self):
        """Do without a step whose gradients are not finite, and without what its batch did to running statistics."""
        self._steps_left_out += 1
        bad = [n for n, p in self.modules.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        which = f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}" or "no parameter here"
        logger.warning(
            f"Step {self.optimizer_step + 1} is not taken (batch {self.step}): not finite are the gradients of {which}."
        )
        for optimizer in (self.optimizers_dict or {"optimizer": self.optimizer}).values():
            optimizer.zero_grad(set_to_none=True)
        self._put_statistics_back()
        spoiled = self._spoiled()
        if _on_any_process(torch.tensor(bool(spoiled), device=self.device)):
            raise ValueError(
                f"Running statistics are not finite after batch {self.step}, and there are none from before to put back: "
                f"{', '.join(spoiled) or 'on another process'}. Look at the audio of that batch."
            )
        if self._steps_left_out > self.nonfinite_patience:
            raise ValueError(
                f"{self._steps_left_out} steps in a row could not be taken, nonfinite_patience is {self.nonfinite_patience}; "
                f"not finite were the gradients of {which}. {self._first_nonfinite()}"
            )

    def _holders(self):
        """The modules with running statistics, and the names of these and of their counts."""
        for module in self.modules.modules():
            own = {**module._buffers, **module.__dict__}
            if any(isinstance(own.get(name), torch.Tensor) for name in STATISTICS):
                yield module, [name for name in STATISTICS + COUNTS if name in own]

    def _remember_statistics(self):
        """Keep a copy of the running statistics, which the batch of a step that was taken has left finite."""
        if self._statistics is None:
            self._statistics = [(module, dict.fromkeys(names)) for module, names in self._holders()]
        for module, values in self._statistics:
            for name in values:
                value = getattr(module, name)
                values[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    @torch.no_grad()
    def _put_statistics_back(self):
        for module, values in self._statistics or []:
            for name, value in values.items():
                there = getattr(module, name)
                if name in module._buffers and value is not None and there.shape == value.shape:
                    there.copy_(value)  # torchrun's wrapper holds on to the tensor
                else:
                    setattr(module, name, value.clone() if isinstance(value, torch.Tensor) else value)

    def _spoiled(self):
        """The names of running statistics that are not finite."""
        paths = {module: path for path, module in self.modules.named_modules()}
        values = ((f"{paths[module]}.{name}", getattr(module, name)) for module, names in self._holders() for name in names)
        return [path for path, value in values if isinstance(value, torch.Tensor) and not torch.isfinite(value).all()]

    def _first_nonfinite(self):
        """Say which tensor of the model is the first that is not finite."""
        state = [*self.modules.named_parameters(), *self.modules.named_buffers()]
        first = next((name for name, value in state if not torch.isfinite(value).all()), None)
        if first is not None:
            return f"The first tensor of the model that is not finite is {first}."
        return "Parameters and buffers are finite: look at data and learning rate, or use torch.autograd.detect_anomaly()."

    def _fit_train(self, train_set, epoch, enable):
        # Upstream's says nothing of the losses that an average leaves out.
        if self.step == 0:  # else an epoch goes on from a checkpoint
            self.nonfinite_skipped = 0
            if isinstance(train_set, Sized) and len(train_set) == 0:
                self.avg_train_loss = float("nan")
        self._upstream__fit_train(train_set, epoch, enable)
        self._say_what_was_skipped(f"training in epoch {epoch}")

    def _fit_valid(self, valid_set, epoch, enable):
        # As in training; and 0.0 was the average where there is no batch.
        if valid_set is not None:
            self.on_stage_start(sb.Stage.VALID, epoch)
            average = self._average_of(valid_set, sb.Stage.VALID, enable)
            self.step = 0
            with torch.no_grad():
                self.on_stage_end(sb.Stage.VALID, average, epoch)
            self._say_what_was_skipped(f"validation in epoch {epoch}")

    @torch.no_grad()
    def _average_of(self, batches, stage, enable):
        """Evaluate batches; returns the average of the finite losses, nan where there is none."""
        self.modules.eval()
        self.nonfinite_skipped, average = 0, 0.0
        colour = self.tqdm_barcolor[stage.name.lower()]
        for batch in tqdm(batches, dynamic_ncols=True, disable=not enable, colour=colour):
            self.step += 1
            average = self.update_average(self.evaluate_batch(batch, stage=stage), average)
            if self.debug and self.step == self.debug_batches:
                break
        return average if self.step else float("nan")

    def _wrap_distributed(self):
        # Upstream's makes a SyncBatchNorm of every BatchNorm, which refuses to work without a GPU.
        if self.distributed_launch and torch.device(self.device).type == "cpu":
            for name, module in self.modules.items():
                if any(parameter.requires_grad for parameter in module.parameters()):
                    if any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in module.modules()):
                        logger.warning(
                            f"{name}: BatchNorm works on each process's own part of the batch, since SyncBatchNorm needs a GPU."
                        )
                    unused = self.find_unused_parameters
                    self.modules[name] = DDP(module, device_ids=None, find_unused_parameters=unused)
        else:
            self._upstream__wrap_distributed()
        if self.distributed_launch:
            self._wrapped = {id(p) for p in self.modules.parameters() if p.requires_grad}

    def evaluate(self, test_set, max_key=None, min_key=None, progressbar=None, test_loader_kwargs={}):  # noqa: B006
        """Evaluate, and say how many losses were not finite.

        Upstream's left such losses out of the average without a word, and
        reported 0.0 where there is no batch.

        Arguments
        ---------
        test_set : Dataset or DataLoader
            What to evaluate on.
        max_key, min_key : str
            The key in the checkpoints' meta that tells the best one.
        progressbar : bool
            Whether to show the progress.
        test_loader_kwargs : dict
            How to load a Dataset. Upstream's writes into it, this one does not.

        Returns
        -------
        float
            The average of the finite losses; nan where none is.
        """
        enable = if_main_process() and (not self.noprogressbar if progressbar is None else progressbar)
        if not isinstance(test_set, (DataLoader, LoopedLoader)):
            test_set = self.make_dataloader(test_set, sb.Stage.TEST, **{**test_loader_kwargs, "ckpt_prefix": None})
        self.on_evaluate_start(max_key=max_key, min_key=min_key)
        self.on_stage_start(sb.Stage.TEST, epoch=None)
        average = self._average_of(test_set, sb.Stage.TEST, enable)
        with torch.no_grad():
            self.on_stage_end(sb.Stage.TEST, average, None)
        self.step = 0
        self._say_what_was_skipped("the test")
        return average

    def _say_what_was_skipped(self, stage):
        if self.nonfinite_skipped:
            logger.warning(f"{self.nonfinite_skipped} losses of {stage} were not finite; the average leaves them out.")

    def update_average(self, loss, avg_loss):
        """Update the running average of a stage's losses.

        Upstream's divided by the number of all batches, those with a loss that
        is not finite included: nothing but nan averaged to 0.0, which then was
        the best epoch of all, and 2, nan, 4 to 2.67.

        Arguments
        ---------
        loss : torch.Tensor
            The loss of the batch that is the ``self.step``-th of its stage, a
            single value.
        avg_loss : float
            The average so far.

        Returns
        -------
        float
            The average of the finite losses; nan while there is none.

        Example
        -------
        >>> brain, average = Brain(), 0.0
        >>> for loss in (2.0, float("nan"), 4.0):
        ...     brain.step += 1
        ...     average = brain.update_average(torch.tensor(loss), average)
        >>> average
        3.0
        """
        if self.step <= 1:
            self.nonfinite_skipped = 0
        if not torch.isfinite(loss):
            self.nonfinite_skipped += 1
            return avg_loss if self.nonfinite_skipped < self.step else float("nan")
        if self.nonfinite_skipped == 0:
            return self._upstream_update_average(loss, avg_loss)
        count = self.step - self.nonfinite_skipped
        if count == 1:  # the average so far is nan
            return float(loss)
        return avg_loss + (float(loss) - avg_loss) / count

    @sb.utils.checkpoints.mark_as_saver
    def _save(self, path):
        # An average that goes on from a checkpoint must know what it left out.
        self._upstream__save(path)
        with open(path, "a", encoding="utf-8") as file:
            yaml.dump({"nonfinite_skipped": self.nonfinite_skipped}, file)

    @sb.utils.checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        # Checkpoints of the stock release lack the number.
        self._upstream__recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            self.nonfinite_skipped = yaml.safe_load(file).get("nonfinite_skipped", 0)
