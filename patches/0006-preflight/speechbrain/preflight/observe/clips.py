"""Reads audio files to find out what is wrong with them: all headers, then whole files."""

import math
import os
import struct
import time
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}
UNKNOWN_SIZE = 0x7FFFF000  # from here on, a size is a placeholder of a program that could not go back to fill it in
CHUNK = 16  # files that a thread takes at once
MOST = 1 << 19  # samples that are read at once
FEW = 4096  # samples that are read at once at least, even if the header promises fewer
WRONG = (OSError, RuntimeError, ValueError, TypeError)  # what reading a file can raise; soundfile raises RuntimeErrors
TOGETHER = 3  # samples at full scale in a row that count as clipped
STRIDE = 61  # a fingerprint uses one sample in so many
PARTS, PICKED = 16, 1024  # of an envelope, and the samples that it takes from a block
ROUNDED, REST = 3 / 2**15, 0.01  # how much such copies may differ: at most, and as a share of the standard deviation


class Header(NamedTuple):
    """The header of a file."""

    rate: int  # in Hz
    channels: int
    frames: int  # that the file contains
    subtype: str  # the encoding
    missing: int = 0  # frames that the header promises, but that the file does not contain


class Look(NamedTuple):
    """What a whole file contains."""

    frames: int
    low: float  # the lowest and the highest sample, or nan if any is
    high: float
    clipped: float  # the share of clipped samples
    fingerprint: int
    envelope: np.ndarray | None = None  # the levels of its parts, as a vector of length 1; None if half are silent


def read_header(path):
    """Read a file's header."""
    with open(path, "rb", buffering=0) as raw:
        lacks = _bytes_missing(raw.read(4096), os.fstat(raw.fileno()).st_size)
    with soundfile.SoundFile(path) as file:
        lacks = lacks * 8 // BITS[file.subtype] // file.channels if file.subtype in BITS else 0
        return Header(file.samplerate, file.channels, file.frames, file.subtype, lacks)


def _bytes_missing(start, size):
    """How many bytes of samples a WAV file lacks that its header promises; soundfile does not say."""
    at = 12 if start[:4] == b"RIFF" else len(start)
    while at + 8 <= len(start):
        name, length = struct.unpack_from("<4sI", start, at)
        at += 8 + (length + length % 2) * (name != b"data")
        if name == b"data":
            return max(0, at + length - size) if length < UNKNOWN_SIZE else 0
    return 0


def read_whole(path):
    """Read a whole file."""
    frames, clipped, fingerprint, lows, highs, picked = 0, 0, 0, [], [], []
    with soundfile.SoundFile(path) as file:
        subtype, channels, bits = file.subtype, file.channels, BITS.get(file.subtype, 99)
        exact = "PCM" in subtype
        for block in _blocks(file, "int16" if subtype == "PCM_16" else "float32"):
            top = 2 ** (bits - 1) - 1 if block.dtype.kind == "i" else 1 - 2.0 ** (1 - bits) if exact else 1
            low, high = block.min().item(), block.max().item()
            lows.append(low)
            highs.append(high)
            frames += len(block)
            fingerprint = hash((fingerprint, block.ravel()[::STRIDE].tobytes()))
            picked.append(block.ravel()[:: max(1, block.size // PICKED)].astype("float32"))
            if high >= top or low <= -top:
                clipped += _in_runs((block >= top) | (block <= -top))
    if not frames:
        return Look(0, 0, 0, 0.0, 0)
    finite = math.isfinite(sum(lows) + sum(highs))
    low, high = (min(lows), max(highs)) if finite else (math.nan, math.nan)
    # At full scale, samples of a lossy format, or of floats that go beyond 1, were not clipped.
    counts = subtype in BITS and (exact or max(high, -low) <= 1)
    envelope = _envelope(np.concatenate(picked)) if finite else None
    return Look(frames, low, high, clipped / (frames * channels) if counts else 0.0, fingerprint, envelope)


def _envelope(samples):
    levels = samples[: len(samples) // PARTS * PARTS].reshape(PARTS, -1).std(1) if len(samples) > PARTS else np.zeros(1)
    return levels / np.linalg.norm(levels) if np.count_nonzero(levels) > PARTS / 2 else None


def is_scaled(one, other):
    """Return whether a file has the samples of another one, or these times a number and rounded to 16 bits."""
    try:
        quiet, loud = sorted((soundfile.read(path, MOST, dtype="float32")[0].ravel() for path in (one, other)), key=np.std)
    except soundfile.SoundFileError:
        return False
    rest = quiet - loud * (quiet @ loud / max(loud @ loud, 1e-20)) if len(quiet) == len(loud) else np.ones(1)
    return abs(rest).max() <= ROUNDED and rest.std() <= REST * quiet.std()


def _blocks(file, dtype):
    """Yield the samples of a file, block by block."""
    # Not larger than necessary: soundfile fills the rest with zeros.
    into = np.empty((min(max(file.frames, FEW) + 1, MOST // file.channels), file.channels), dtype)
    while len(block := file.read(out=into)):
        yield block
        if len(block) < len(into):
            break


def _in_runs(at_top):
    """Count the samples at full scale that are in runs of at least ``TOGETHER``."""
    starts = at_top[2:] & at_top[1:-1] & at_top[:-2]
    inside = np.zeros_like(at_top)
    for shift in range(TOGETHER):
        inside[shift : shift + len(starts)] |= starts
    return int(inside.sum())


def in_parallel(work, paths, deadline, name):
    """Call a function for many files, on several threads, with a progress bar; yield each path, and the answer or exception."""

    def attempt(path):
        try:
            return work(path) if time.perf_counter() < deadline else None
        except WRONG as error:
            return error

    threads = max(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPool(threads) as pool:
        answers = zip(paths, pool.imap(attempt, paths, CHUNK))
        for path, answer in tqdm(answers, name, len(paths), unit="file", disable=None, leave=False, delay=1):
            if answer is not None:
                yield path, answer
