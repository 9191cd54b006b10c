"""A stage's loss is the average of its finite losses."""

import torch
import yaml
from torch.utils.data import DataLoader

import speechbrain as sb
from speechbrain.core import Stage, logger, tqdm
from speechbrain.dataio.dataloader import LoopedLoader


def _is_empty(batches):
    try:
        return len(batches) == 0
    except TypeError:  # Some samplers and datasets have no length
        return False


class Brain:
    # Number of losses in this stage that are not finite; its average leaves
    # them out.
    nonfinite_skipped = 0

    def _fit_train(self, train_set, epoch, enable):
        # Any other step continues an epoch from a checkpoint
        if self.step == 0:
            self.nonfinite_skipped = 0
            if _is_empty(train_set):
                self.avg_train_loss = float("nan")
        self._upstream__fit_train(train_set, epoch, enable)
        self._warn_about_skipped_losses(f"training in epoch {epoch}")

    def _fit_valid(self, valid_set, epoch, enable):
        if valid_set is not None:
            self.on_stage_start(Stage.VALID, epoch)
            average = self._average_loss(valid_set, Stage.VALID, enable)
            self.step = 0
            with torch.no_grad():
                self.on_stage_end(Stage.VALID, average, epoch)
            self._warn_about_skipped_losses(f"validation in epoch {epoch}")

    @torch.no_grad()
    def _average_loss(self, batches, stage, enable):
        """Evaluates batches and averages their finite losses (nan if none)."""
        self.modules.eval()
        self.nonfinite_skipped = 0
        average = 0.0
        for batch in tqdm(
            batches,
            dynamic_ncols=True,
            disable=not enable,
            colour=self.tqdm_barcolor[stage.name.lower()],
        ):
            self.step += 1
            loss = self.evaluate_batch(batch, stage=stage)
            average = self.update_average(loss, average)

            # Debug mode only runs a few batches
            if self.debug and self.step == self.debug_batches:
                break
        return average if self.step else float("nan")

    def evaluate(
        self,
        test_set,
        max_key=None,
        min_key=None,
        progressbar=None,
        test_loader_kwargs={},
    ):
        if progressbar is None:
            progressbar = not self.noprogressbar
        enable = progressbar and sb.utils.distributed.if_main_process()

        if not isinstance(test_set, (DataLoader, LoopedLoader)):
            # A copy, so that the caller can use the same kwargs again
            loader_kwargs = {**test_loader_kwargs, "ckpt_prefix": None}
            test_set = self.make_dataloader(
                test_set, Stage.TEST, **loader_kwargs
            )
        self.on_evaluate_start(max_key=max_key, min_key=min_key)
        self.on_stage_start(Stage.TEST, epoch=None)
        average = self._average_loss(test_set, Stage.TEST, enable)
        with torch.no_grad():
            self.on_stage_end(Stage.TEST, average, None)
        self.step = 0
        self._warn_about_skipped_losses("the test")
        return average

    def _warn_about_skipped_losses(self, stage):
        if self.nonfinite_skipped:
            logger.warning(
                f"{self.nonfinite_skipped} losses of {stage} were not finite; "
                "the average leaves them out."
            )

    def update_average(self, loss, avg_loss):
        if self.step <= 1:
            self.nonfinite_skipped = 0
        if not torch.isfinite(loss):
            self.nonfinite_skipped += 1
            all_skipped = self.nonfinite_skipped == self.step
            return float("nan") if all_skipped else avg_loss
        if self.nonfinite_skipped == 0:
            return self._upstream_update_average(loss, avg_loss)
        count = self.step - self.nonfinite_skipped
        if count == 1:  # The average so far is nan
            return float(loss)
        return avg_loss + (float(loss) - avg_loss) / count

    @sb.utils.checkpoints.mark_as_saver
    def _save(self, path):
        self._upstream__save(path)
        with open(path, "a", encoding="utf-8") as w:
            w.write(yaml.dump({"nonfinite_skipped": self.nonfinite_skipped}))

    @sb.utils.checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        self._upstream__recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as f:
            save_dict = yaml.safe_load(f)
        # Older checkpoints do not have this number
        self.nonfinite_skipped = save_dict.get("nonfinite_skipped", 0)
