"""EpochCounterWithStopper continues with what it has saved."""

import yaml

from speechbrain.utils.epoch_loop import mark_as_loader


class EpochCounterWithStopper:
    @mark_as_loader
    def _recover(self, path, end_of_epoch=True, device=None):
        with open(path, encoding="utf-8") as fi:
            if isinstance(yaml.safe_load(fi), int):
                # Of a release that saved only the epoch
                return super()._recover(path, end_of_epoch)
        self._upstream__recover(path, end_of_epoch, device)
        # The limit may have been raised since
        epochs_without_improvement = self.current - self.best_limit
        self.should_stop &= epochs_without_improvement >= self.limit_to_stop
