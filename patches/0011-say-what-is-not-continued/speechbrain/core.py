"""At a resume, fit() says once what it does not continue."""

import contextlib
import logging
import math
import time

import torch
import yaml

from speechbrain.core import Stage, logger
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.epoch_loop import EpochCounter

# Checkpoints with an earlier time are of an earlier run
_START = time.time()


class Brain:
    # Whether fit() has said what it does not continue
    _said = False

    # This epoch, and the first batch of its validation: its ids, its loss, and
    # the optimizer_step
    _epoch = None
    _first_valid = None

    def fit(
        self,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs={},
        valid_loader_kwargs={},
    ):
        with self._recording_validation():
            self._upstream_fit(
                self._epochs(epoch_counter),
                train_set,
                valid_set,
                progressbar,
                train_loader_kwargs,
                valid_loader_kwargs,
            )

    @contextlib.contextmanager
    def _recording_validation(self):
        """Lets each checkpoint that follows a validation record its first
        batch, so that a later run can compare."""
        replaced = (
            (self, "evaluate_batch"),
            (self.checkpointer, "save_checkpoint"),
        )
        # Something is already replaced in a fit() inside fit()
        if not isinstance(self.checkpointer, Checkpointer) or any(
            name in vars(owner) for owner, name in replaced
        ):
            epoch = self._epoch
            yield
            self._epoch = epoch
            return
        self.evaluate_batch = self._evaluate_and_note
        self.checkpointer.save_checkpoint = self._save_and_record
        try:
            yield
        finally:
            for owner, name in replaced:
                vars(owner).pop(name, None)

    def _evaluate_and_note(self, batch, *args, **kwargs):
        loss = type(self).evaluate_batch(self, batch, *args, **kwargs)
        ids = getattr(batch, "id", None)
        if (
            self.step == 1
            and Stage.VALID in (*args, *kwargs.values())
            and isinstance(ids, (list, tuple))
            and torch.is_tensor(loss)
            and loss.numel() == 1
        ):
            self._first_valid = (ids, loss, self.optimizer_step)
        return loss

    def _save_and_record(self, *args, **kwargs):
        checkpointer = self.checkpointer
        ckpt = type(checkpointer).save_checkpoint(checkpointer, *args, **kwargs)
        # At another step, training has gone on since the validation
        if ckpt is not None and self._first_valid and self.step == 0:
            ids, loss, optimizer_step = self._first_valid
            record = {
                "epoch": self._epoch,
                "ids": [str(item) for item in ids],
                "loss": float(loss),
                "precision": self.eval_precision,
                "device": str(self.device).partition(":")[0],
            }
            if (
                optimizer_step == self.optimizer_step
                and math.isfinite(record["loss"])
                and isinstance(self._epoch, int)
            ):
                path = ckpt.path / "validation.yaml"
                path.write_text(yaml.safe_dump(record), encoding="utf-8")
        return ckpt

    def _epochs(self, epoch_counter):
        """Yields the epochs, and first says what is not continued."""
        is_first_call = not self._said
        self._said = True
        first = None
        for epoch in epoch_counter:
            if first is None:
                first = epoch
                if is_first_call:
                    self._say_what_is_not_continued(epoch_counter, first)
            self._epoch, self._first_valid = epoch, None
            yield epoch
        if first is None and is_first_call:
            self._say_what_is_not_continued(epoch_counter, first)

    def _say_what_is_not_continued(self, epoch_counter, first):
        """Warns of what differs from a run that was never interrupted.

        ``first`` is the first epoch, None if there is none left.
        """
        if not isinstance(self.checkpointer, Checkpointer):
            return
        if not if_main_process():
            return
        ckpt, learning_rates = self.checkpointer.loaded
        if ckpt is None:
            self._say_what_is_not_recovered()
        elif ckpt.meta["unixtime"] < _START:
            self._compare_epochs(ckpt, epoch_counter, first)
            self._compare_recoverables(ckpt)
            if not self._has_scheduler():
                self._compare_learning_rates(learning_rates)

    def _say_what_is_not_recovered(self):
        if self.checkpointer.searched:
            return
        times = [
            c.meta["unixtime"] for c in self.checkpointer.list_checkpoints()
        ]
        num_earlier = sum(unixtime < _START for unixtime in times)
        if num_earlier:
            logger.warning(
                f"{self.checkpointer.checkpoints_dir} has {num_earlier} "
                "checkpoint(s) of an earlier run, but training starts from "
                "scratch. To continue that run, call super().on_fit_start() in "
                "your on_fit_start(). To start a new one, choose another "
                "output_folder."
            )

    def _compare_epochs(self, ckpt, epoch_counter, first):
        has_counter = any(
            obj is epoch_counter or isinstance(obj, EpochCounter)
            for obj in self.checkpointer.recoverables.values()
        )
        if first is None or self._optimizer_step_limit_exceeded:
            logger.warning(
                f"Nothing is left to train: {ckpt.path} is from the end of a "
                "run. To train on, raise the number of epochs (or the limit "
                "that ended it). To start a new run, choose another "
                "output_folder."
            )
        elif first in (0, 1) and ckpt.meta["end-of-epoch"] and not has_counter:
            logger.warning(
                f"Training continues {ckpt.path}, but the epochs start again "
                f"at {first}. To continue them too, pass fit() an EpochCounter "
                "that is in the recoverables of the checkpointer."
            )

    def _compare_recoverables(self, ckpt):
        absent = [
            name
            for name in self.checkpointer.recoverables
            if name not in ckpt.paramfiles
        ]
        if absent and self.checkpointer.allow_partial_load:
            logger.warning(
                f"{ckpt.path} has no file for these, which keep their initial "
                f"state (allow_partial_load is set): {', '.join(absent)}."
            )

    def _has_scheduler(self):
        """Whether there is something that may set the learning rate."""
        known = {**vars(self), **self.checkpointer.recoverables}
        known.update(getattr(getattr(self, "hparams", None), "__dict__", {}))
        return any(
            "sched" in text or "anneal" in text
            for name, obj in known.items()
            for text in (name.lower(), type(obj).__module__)
        )

    def _compare_learning_rates(self, learning_rates):
        for name, asked in learning_rates.items():
            optimizer = self.checkpointer.recoverables.get(name)
            groups = getattr(optimizer, "param_groups", [])
            for group, rate in zip(groups, asked):
                # A rate of 0 is the start of a warm-up
                if not rate or group.get("lr") in (None, rate):
                    continue
                # A lower one may come from a decay that the script computes
                level = logging.WARNING if group["lr"] > rate else logging.INFO
                logger.log(
                    level,
                    f"{name} continues with lr={group['lr']:g}, as in the "
                    f"checkpoint, not with lr={rate:g}, as the recipe asks. To "
                    "change it, set it in on_fit_start(), after the recovery.",
                )
                break
