"""A dataloader says if it skips batches of another size."""

import pathlib

import yaml

from speechbrain.dataio.dataloader import logger
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver


class SaveableDataLoader:
    @mark_as_saver
    def _speechbrain_save(self, path):
        self._upstream__speechbrain_save(path)
        # Next to the file, since stock expects only a number in it
        size_path = pathlib.Path(path).with_suffix(".size.yaml")
        with open(size_path, "w", encoding="utf-8") as fo:
            yaml.safe_dump(self._size(), fo)

    @mark_as_loader
    def _speechbrain_load(self, path, end_of_epoch):
        self._upstream__speechbrain_load(path, end_of_epoch)
        skipped = self._speechbrain_recovery_skip_to
        size_path = pathlib.Path(path).with_suffix(".size.yaml")
        if not skipped or not size_path.is_file():
            return
        with open(size_path, encoding="utf-8") as fi:
            saved = yaml.safe_load(fi)
        now = self._size()
        if None not in (*saved.values(), *now.values()) and saved != now:
            logger.warning(
                f"{path} is from the middle of an epoch of "
                f"{saved['num_batches']} batches of {saved['batch_size']}, but "
                f"now there are {now['num_batches']} batches of "
                f"{now['batch_size']}. The first {skipped} batches are "
                "skipped, so some items of this epoch are used twice, or not "
                "at all. To avoid this, finish the epoch with the former "
                "batch size, data and number of processes."
            )

    def _size(self):
        """Batch size and number of batches, None where they may vary."""
        try:
            num_batches = len(self) if self.batch_size is not None else None
        except TypeError:  # Some samplers and datasets have no length
            num_batches = None
        return {"batch_size": self.batch_size, "num_batches": num_batches}
