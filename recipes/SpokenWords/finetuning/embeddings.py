"""Caches the embeddings of a frozen encoder on disk, so that training a classifier need not run the encoder again.

The name of a file contains a digest of everything that its content depends on:
another encoder, other features, audio, clip length or batch size give another
file, so outdated embeddings are never read.
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
    """Compute a digest of the modules that turn audio into embeddings.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        The features, the normalization and the encoder.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for path, part in torch.nn.ModuleDict(modules).named_modules():
        options = {name: value for name, value in vars(part).items() if isinstance(value, (int, float, str))}
        for name in ("training", "device"):  # these do not change the embeddings
            options.pop(name, None)
        sha.update(f"{path} {type(part).__qualname__} {sorted(options.items())}".encode())
    for name, value in torch.nn.ModuleDict(modules).state_dict().items():
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def key_of(dataset, **settings):
    """Compute a digest of everything that the embeddings of a dataset depend on.

    Arguments
    ---------
    dataset : DynamicItemDataset
        The dataset; ``sha1`` of each item identifies its audio.
    **settings : object
        The digest of the encoder, and the settings that prepare audio for it.

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
    """Write the embeddings of a dataset, unless the file exists and is undamaged.

    Arguments
    ---------
    path : str
        The path of the file, which is in NumPy's format. Its checksum is written to
        ``path.sha256``, which ``sha256sum --check`` reads.
    batches : iterable of PaddedBatch
        The batches of the dataset, in order.
    count : int
        The number of items of the dataset.
    embed : callable
        Takes a batch, returns its embeddings, [batch, 1, emb_dim].
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with FileLock(f"{path}.lock"):  # the second of two simultaneous runs waits, and finds the file
        if not _whole(path):
            _write(path, batches, count, embed)


def _whole(path):
    """Whether a file exists and has the right checksum."""
    try:
        with open(f"{path}.sha256", encoding="utf-8") as file:
            if file.read().split()[0] == _sha256(path):
                return True
        logger.warning(f"{path} is damaged: computing its embeddings again.")
    except (FileNotFoundError, IndexError):
        pass  # there is no file yet, or a run was killed before it wrote the checksum
    return False


def _write(path, batches, count, embed):
    """Compute embeddings and write them, then their checksum."""
    rows = 0
    with open(f"{path}.part", "wb") as file, torch.no_grad():  # writes each batch at once, so only one is in memory
        for batch in _ahead(batches):
            array = embed(batch).squeeze(1).float().cpu().numpy()
            if rows == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, array.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.astype("<f4").tobytes())
            rows += len(array)
    os.replace(f"{path}.part", path)
    write_text(f"{path}.sha256", f"{_sha256(path)}  {os.path.basename(path)}\n")


def _ahead(batches):
    """Yield batches, while a thread already reads the next one."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


class Embeddings:
    """Reads the embeddings of utterances by name; only the requested ones are in memory.

    Arguments
    ---------
    datasets : dict of str to DynamicItemDataset
        The datasets of the splits.
    paths : dict of str to str
        The file of each split.
    """

    def __init__(self, datasets, paths):
        self.row = {}
        for split, path in paths.items():
            # Maps the file only to find its rows: reading a map of a file that is cut off kills the process.
            array = np.load(path, mmap_mode="r")
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - stays open as long as this object
            places = range(array.offset, array.offset + array.nbytes, array.strides[0])
            self.row.update((name, (file, at, array.strides[0])) for at, name in zip(places, datasets[split].data_ids))

    def __call__(self, names):
        """Read the embeddings of some utterances, [batch, 1, emb_dim]."""
        return torch.from_numpy(np.stack([self._read(*self.row[name]) for name in names]))[:, None]

    def _read(self, file, at, size):
        """Read a row; RuntimeError if the file has become too short."""
        file.seek(at)
        row = file.read(size)
        if len(row) < size:
            raise RuntimeError(f"{file.name} was cut off while it was in use: run the same command again to compute it again.")
        return np.frombuffer(row, "<f4")


def _sha256(path):
    """Compute the SHA-256 of a file, piece by piece."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()
