"""Keeps on disk what a frozen encoder makes of each clip, so that a classifier can be trained without running it again.

A file is named after all that its content depends on: another encoder, other
features, audio, clip length or batch size give another file, and an old one is
never read.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from filelock import FileLock
from speechbrain.utils.logger import get_logger

from spoken_words_prepare import write as write_text

logger = get_logger(__name__)


def digest_of(modules):
    """Digest what turns audio into embeddings.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Features, normalisation, encoder.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for path, part in torch.nn.ModuleDict(modules).named_modules():
        options = {name: value for name, value in vars(part).items() if isinstance(value, (int, float, str))}
        for where in ("training", "device"):  # where it is used is no part of it
            options.pop(where, None)
        sha.update(f"{path} {type(part).__qualname__} {sorted(options.items())}".encode())
    for name, value in torch.nn.ModuleDict(modules).state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def key_of(dataset, **settings):
    """Digest all that the embeddings of a dataset depend on.

    Arguments
    ---------
    dataset : DynamicItemDataset
        Of its items, ``sha1`` tells the audio.
    **settings : object
        The digest of the encoder, and how the audio is brought to it.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, item in dataset.data.items():
        sha.update(f"{name} {item['sha1']}".encode())
    return sha.hexdigest()[:16]


def keep(path, batches, count, embed):
    """Write the embeddings of a dataset, unless they are there and whole.

    Arguments
    ---------
    path : str
        The file, in NumPy's format; its checksum goes into ``path.sha256``,
        which ``sha256sum --check`` understands.
    batches : iterable of PaddedBatch
        The dataset, in order, with a progress bar around it.
    count : int
        How many items it has.
    embed : callable
        Gives the embeddings of a batch, [batch, 1, emb_dim].
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with FileLock(f"{path}.lock"):  # of two runs at once, the second finds what the first has made
        if not _whole(path):
            _write(path, batches, count, embed)


def _whole(path):
    """Tell whether a file is there, and its checksum is right."""
    try:
        with open(f"{path}.sha256", encoding="utf-8") as file:
            if file.read().split()[0] == _sha256(path):
                return True
        logger.warning(f"{path} is damaged: its embeddings are computed again.")
    except (FileNotFoundError, IndexError):
        pass  # none yet, or a run was killed before the checksum
    return False


def _write(path, batches, count, embed):
    """Compute embeddings and write them, then their checksum."""
    rows = 0
    with open(f"{path}.part", "wb") as file, torch.no_grad():  # written row by row: only a batch is in memory
        for batch in _ahead(batches):
            found = embed(batch).squeeze(1).float().cpu().numpy()
            if rows == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, found.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(found.astype("<f4").tobytes())
            rows += len(found)
    os.replace(f"{path}.part", path)
    write_text(f"{path}.sha256", f"{_sha256(path)}  {os.path.basename(path)}\n")


def _ahead(batches):
    """Give batches, of which a thread reads the next while the encoder is at work on one."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


class Embeddings:
    """Finds the embeddings of utterances by their names; only those that are asked for are read into memory.

    Arguments
    ---------
    datasets : dict of str to DynamicItemDataset
        The splits.
    paths : dict of str to str
        The file of each split.
    """

    def __init__(self, datasets, paths):
        self.row = {}
        for split, path in paths.items():
            array = np.load(path, mmap_mode="r")  # to know where the rows are: reading a map that is cut off kills a process
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - read as long as this lives
            places = range(array.offset, array.offset + array.nbytes, array.strides[0])
            self.row.update((name, (file, at, array.strides[0])) for at, name in zip(places, datasets[split].data_ids))

    def __call__(self, names):
        """Give the embeddings of some utterances, [batch, 1, emb_dim]."""
        return torch.from_numpy(np.stack([self._read(*self.row[name]) for name in names]))[:, None]

    def _read(self, file, at, size):
        """Read a row; RuntimeError if it is no longer there."""
        file.seek(at)
        row = file.read(size)
        if len(row) < size:
            raise RuntimeError(f"{file.name} was cut off while it was in use: the same command computes it again.")
        return np.frombuffer(row, "<f4")


def _sha256(path):
    """Digest a file, a piece at a time."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()
