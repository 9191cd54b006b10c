"""Reads audio files to find out what is wrong with them: all headers, then whole files as fast as possible."""

import math
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
FLOATS = ("FLOAT", "DOUBLE")
AS_THEY_ARE = {"PCM_16": "<i2", "PCM_24": "<i4", "FLOAT": "<f4"}  # encodings that are read without a decoder, and their dtypes
UNKNOWN_SIZE = 0x7FFFF000  # from here on, a size is a placeholder of a program that could not go back to fill it in
CHUNK = 16  # files that a thread takes at once
ROOM = 3 << 19  # bytes that are read at once
FRONT = 4  # bytes of room before these, see _as_they_are
FEW = 4096  # samples that are read at once at least, even if the header promises fewer
WRONG = (OSError, RuntimeError, ValueError, TypeError)  # what reading a file can raise; soundfile raises RuntimeErrors
TOGETHER = 3  # samples at full scale in a row that count as clipped
STRIDE = 61  # a fingerprint uses one sample in so many


class Header(NamedTuple):
    """The header of a file.

    Sample rate in Hz, channels, frames that the file contains, encoding, frames
    that are missing, and the byte at which the samples begin if they can be read
    without a decoder (else 0).
    """

    rate: int
    channels: int
    frames: int
    subtype: str
    missing: int = 0
    start: int = 0


class Look(NamedTuple):
    """What a whole file contains: frames, lowest and highest sample (nan if any is), share of clipped samples, fingerprint."""

    frames: int
    low: float
    high: float
    clipped: float
    fingerprint: int


def read(path, room=None, until=math.inf):
    """Read a file's header, and the whole file (a Look, or why it failed) if the header already needs a decoder.

    Example
    -------
    >>> path = str(getfixture("tmpdir") / "clip.mp3")
    >>> soundfile.write(path, np.zeros(16000), 16000)
    >>> header, look = read(path)
    >>> header.rate, look.frames
    (16000, 16000)
    """
    with open(path, "rb", buffering=0) as file:
        start = file.read(4096)
        header = _riff_header(start, os.fstat(file.fileno()).st_size) or _flac_header(start)
    if header is not None:
        return header, None
    with soundfile.SoundFile(path) as file:
        header = Header(file.samplerate, file.channels, file.frames, file.subtype)
        if time.perf_counter() > until:
            return header, None
        try:
            return header, _look(header, _decoded(file, header, make_room() if room is None else room))
        except WRONG as error:
            return header, error


def _riff_header(start, size):
    """Read the header of a WAV file; None for another format, or a header that only soundfile can read."""
    if start[:4] != b"RIFF" or start[8:12] != b"WAVE":
        return None
    at, form = 12, None
    while at + 8 <= len(start):
        name, length = struct.unpack_from("<4sI", start, at)
        at += 8
        if name == b"fmt " and at + 16 <= len(start):
            tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", start, at)
            if tag == 0xFFFE and length >= 26 and at + 26 <= len(start):  # WAVE_FORMAT_EXTENSIBLE: the real tag comes later
                (tag,) = struct.unpack_from("<H", start, at + 24)
            names = {1: {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}, 3: {32: "FLOAT", 64: "DOUBLE"}}
            subtype = names.get(tag, {}).get(bits)
            if subtype and rate and channels and align == channels * bits // 8:
                form = rate, channels, align, subtype
        elif name == b"data":
            if form is None or not 0 < length < UNKNOWN_SIZE:
                return None
            rate, channels, align, subtype = form
            there = min(length, size - at) // align
            return Header(rate, channels, there, subtype, length // align - there, at if subtype in AS_THEY_ARE else 0)
        at += length + length % 2
    return None


def _flac_header(start):
    """Read the header of a FLAC file; None for another format, or a header without the length."""
    if start[:4] != b"fLaC" or start[4] & 127 or len(start) < 26:
        return None
    packed = int.from_bytes(start[18:26], "big")  # 20 bits of Hz, 3 of channels, 5 of bits per sample, 36 of frames
    subtype = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}.get((packed >> 36 & 31) + 1)
    frames = packed & (1 << 36) - 1
    return Header(packed >> 44, (packed >> 41 & 7) + 1, frames, subtype) if frames and subtype else None


def read_whole(path, header, room=None):
    """Read a whole file.

    Example
    -------
    >>> path = str(getfixture("tmpdir") / "clip.wav")
    >>> soundfile.write(path, np.array([0.0, 0.5, -0.25]), 16000)
    >>> header, _ = read(path)
    >>> read_whole(path, header)[:4]
    (3, -8192, 16384, 0.0)
    """
    room = make_room() if room is None else room
    if header.start:
        with open(path, "rb", buffering=0) as file:
            file.seek(header.start)
            return _look(header, _as_they_are(file, header, room))
    with soundfile.SoundFile(path) as file:
        return _look(header, _decoded(file, header, room))


def _look(header, blocks):
    """Make a Look of all samples of a file."""
    frames, clipped, fingerprint, lows, highs = 0, 0, 0, [], []
    bits = BITS.get(header.subtype, 99)
    for block in blocks:
        top = 2 ** (bits - 1) - 1 if block.dtype.kind == "i" else 1 - 2.0 ** (1 - bits)
        low, high = block.min().item(), block.max().item()
        lows.append(low)
        highs.append(high)
        frames += len(block)
        fingerprint = hash((fingerprint, block.ravel()[::STRIDE].tobytes()))
        if high >= top or low <= -top:
            clipped += _in_runs((block >= top) | (block <= -top))
    if not frames:
        return Look(0, 0, 0, 0.0, 0)
    finite = math.isfinite(sum(lows) + sum(highs))
    low, high = (min(lows), max(highs)) if finite else (math.nan, math.nan)
    # At full scale, samples of a lossy format, or of floats that go beyond 1, were not clipped.
    exact = header.subtype in BITS or (header.subtype in FLOATS and max(high, -low) <= 1)
    return Look(frames, low, high, clipped / (frames * header.channels) if exact else 0.0, fingerprint)


def _as_they_are(file, header, room):
    """Yield the samples of a file without decoding, block by block: much faster than with a decoder."""
    width = BITS.get(header.subtype, 32) // 8
    align = width * header.channels
    dtype, left = np.dtype(AS_THEY_ARE[header.subtype]), header.frames * align
    bytes_ = memoryview(room)[FRONT : FRONT + (len(room) - FRONT) // align * align]
    while left and (size := file.readinto(bytes_[:left])):
        count = size // align * header.channels
        block = np.ndarray(count, dtype, room, FRONT + width - dtype.itemsize, (width,))
        # A sample of 3 bytes is read as 4 bytes. The first, which is the lowest, belongs to the sample before: drop it.
        yield (block >> 8 if width < dtype.itemsize else block).reshape(_shape(header))
        left -= size


def _decoded(file, header, room):
    """Yield the samples of any other file, block by block."""
    dtype = "int16" if header.subtype == "PCM_16" else "float32"
    into = room.view(dtype)
    # Not larger than necessary: soundfile fills the rest with zeros.
    frames = min(max(header.frames, FEW) + 1, len(into) // header.channels)
    into = into[: frames * header.channels].reshape(_shape(header))
    while len(block := file.read(dtype=dtype, out=into)):
        yield block
        if len(block) < len(into):
            break


def _shape(header):
    return (-1, header.channels) if header.channels > 1 else (-1,)


def make_room():
    """Make the memory that files are read into."""
    return np.empty(FRONT + ROOM, np.uint8)


def _in_runs(at_top):
    """Count the samples at full scale that are in runs of at least ``TOGETHER``."""
    starts = at_top[2:] & at_top[1:-1] & at_top[:-2]
    inside = np.zeros_like(at_top)
    for shift in range(TOGETHER):
        inside[shift : shift + len(starts)] |= starts
    return int(inside.sum())


def in_parallel(work, paths, deadline, name):
    """Call a function for many files, on several threads, with a progress bar; yield each path, and the answer or exception."""

    def some(paths):
        room, done = make_room(), []
        for path in paths:
            if time.perf_counter() > deadline:
                break
            try:
                done.append((path, work(path, room)))
            except WRONG as error:
                done.append((path, error))
        return done

    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    threads = max(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    bar = tqdm(total=len(paths), desc=name, unit="file", disable=None, leave=False)
    with bar, ThreadPoolExecutor(threads) as pool:
        for done in pool.map(some, chunks):
            bar.update(len(done))
            yield from done
