"""Prepares a folder of spoken words as JSON manifests, after a look at every clip.

The folder holds ``<word>/<speaker>_nohash_<n>.wav`` (flac, mp3 and ogg too), as
the Speech Commands corpus does. Its lists of validation and testing files are
honoured where they are there; else a hash of the speaker's name decides.
"""

import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg")
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}  # the names that Speech Commands gives them
SHORTEST = 0.1  # seconds
SILENT = -60.0  # dB below full scale, of the loudest sample
LOUDEST = 2.0**31  # times full scale: floats may hold whole numbers of 32 bits, but the energy of far more is infinite
FEW = 10  # clips of a word to learn from
STREAMED = 0x7FFFF000  # bytes; a header tells as many or more where its writer could not know

# What the made corpus says: words of Speech Commands, so that the recipe's settings fit both.
MADE_WORDS = (
    "yes no up down left right on off stop go zero one two three four five six seven eight nine "
    "bed bird cat dog happy house marvin sheila tree wow"
).split()


def prepare_spoken_words(
    data_folder,
    words,
    manifests,
    data_report,
    clip_seconds,
    bad_clips="leave_out",
    make_speech=False,
    valid_percent=15,
    test_percent=25,
    skip_prep=False,
):
    """Check every clip, and write a manifest for each split and a report of what was found.

    Arguments
    ---------
    data_folder : str
        The folder of the words' folders.
    words : list of str
        The words to use; other folders are left alone.
    manifests : dict of str to str
        Where the manifests of ``train``, ``valid`` and ``test`` go.
    data_report : str
        Where the report goes.
    clip_seconds : float
        What will be heard of each clip: its middle, if it is longer.
    bad_clips : str
        What becomes of clips with a fault: ``leave_out`` or ``refuse``.
    make_speech : bool
        Whether to make a small corpus with eSpeak NG if the folder is missing.
    valid_percent, test_percent : int
        The share of speakers in these splits, where the corpus has no lists.
    skip_prep : bool
        Keep the manifests as they are.

    Raises
    ------
    FileNotFoundError
        If the folder is missing, and no speech is to be made, or manifests that are to be kept are.
    ValueError
        If words is no list of different ones, a word has no clip or a split has none, or clips are to be refused.
    """
    if skip_prep:
        for path in manifests.values():
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path} is not there to be kept: run once without skip_prep.")
        return
    if bad_clips not in ("leave_out", "refuse"):
        raise ValueError(f"bad_clips is {bad_clips!r}: it can be leave_out or refuse.")
    if not words or isinstance(words, str) or len({str(word) for word in words}) < len(words):
        raise ValueError(f'words is {words!r}: it must be a list of different words, as in --words "[left, right]".')
    folder, words = Path(data_folder), [str(word) for word in words]
    if any(Path(word).name != word for word in words):
        raise ValueError(f"words is {words}: each must be the name of a folder in {folder}, not a path.")
    if not folder.is_dir() or not any(folder.iterdir()):
        if not make_speech:
            raise FileNotFoundError(
                f"{folder} is no folder, or empty: mend data_folder, or have speech made there by --make_speech True."
            )
        logger.warning(f"{folder} holds no speech: making {len(MADE_WORDS)} words there with eSpeak NG.")
        # In a process of its own: eSpeak keeps a state, so what was said before changes what comes out.
        maker = Path(__file__).resolve().parents[1] / "make_spoken_words.py"
        if subprocess.run([sys.executable, str(maker), str(folder), *MADE_WORDS]).returncode:
            raise RuntimeError(f"making speech in {folder} failed, as said above")

    clips, others = (list(itertools.chain(*paths)) for paths in zip(*(clips_of(folder, word) for word in words)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # soundfile reads without Python's lock
        looks = list(tqdm(pool.map(look_at, clips), desc="checking clips", total=len(clips), disable=None, leave=False))
    faults = {clip: look["fault"] for clip, look in zip(clips, looks) if look["fault"]}
    listed = read_lists(folder)
    splits = {split: {} for split in manifests}
    for clip, look in zip(clips, looks):
        if clip not in faults:
            word = clip.parent.name
            splits[split_of(clip, listed, valid_percent, test_percent)][f"{word}/{clip.name}"] = {
                "wav": f"{{data_root}}/{literal(word)}/{literal(clip.name)}",
                "duration": look["duration"],
                "sample_rate": look["sample_rate"],
                "channels": look["channels"],
                "word": literal(word),
                "speaker": literal(speaker_of(clip)),
                "sha1": look["sha1"],
            }
    remarks = [*remarks_on_folder(words, clips, others, listed), *remarks_on_splits(splits, words, clip_seconds)]
    write(
        data_report, "".join(f"{line}\n" for line in [*(f"{c}: {f}" for c, f in faults.items()), *remarks]) or "nothing found\n"
    )
    for line in remarks:
        logger.warning(line)
    if faults:
        shown = "; ".join(f"{clip} {fault}" for clip, fault in list(faults.items())[:5])
        told = f"{len(faults)} of {len(clips)} clips have a fault: {shown}. All are in {data_report}"
        if bad_clips == "refuse":
            raise ValueError(f"{told}: replace or remove them, or go on without them by --bad_clips leave_out.")
        logger.warning(f"{told}; they are left out.")
    empty = [split for split, items in splits.items() if not items]
    if empty:
        remedy = f"mend the lists, {' and '.join(LISTS.values())}" if listed else "use more speakers or other percentages"
        raise ValueError(f"{folder}: no clip falls into {', '.join(empty)}: {remedy}.")
    for split, path in manifests.items():
        write(path, json.dumps(splits[split], indent=1))
        logger.info(f"{path}: {len(splits[split])} clips")


def clips_of(folder, word):
    """List the clips of a word, and what else is there but hidden files; ValueError if there is no clip."""
    there = sorted(path for path in (folder / word).glob("*") if not path.name.startswith("."))
    clips = [path for path in there if path.suffix.lower() in EXTENSIONS]
    if not clips:
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ValueError(
            f"{folder / word} holds no {', '.join(EXTENSIONS)} file; expected is {folder}/<word>/<speaker>_nohash_<n>.wav, "
            f"and the folders there are: {', '.join(found) or 'none'}. Mend data_folder, or words, where quotes keep what YAML "
            "would take for a number or null."
        )
    return clips, sorted({*there} - {*clips})


def look_at(clip):
    """Read a clip to its end, and say what is in it.

    Arguments
    ---------
    clip : pathlib.Path
        The audio file.

    Returns
    -------
    dict
        ``fault`` (None if there is none), ``duration`` in seconds,
        ``sample_rate`` in Hz, ``channels``, and the ``sha1`` of these two and the samples.
    """
    look = dict.fromkeys(("fault", "duration", "sample_rate", "channels", "sha1"))
    try:
        size = clip.stat().st_size
        if size == 0:
            return {**look, "fault": "is empty"}
        with soundfile.SoundFile(str(clip)) as file:
            expected, look["sample_rate"], look["channels"] = file.frames, file.samplerate, file.channels
            samples = file.read(dtype="float32", always_2d=True)
        if clip.suffix.lower() == ".wav":
            with open(clip, "rb") as file:
                tag, told = struct.unpack("<4sI", file.read(8))
            if tag == b"RIFF" and size < told < STREAMED:  # not told + 8: some writers tell the size of the whole file
                return {**look, "fault": f"is cut off: its header tells {told + 8} bytes, and it has {size}"}
    except (OSError, ValueError, MemoryError, soundfile.SoundFileError) as error:  # soundfile raises each of them
        return {**look, "fault": f"cannot be read ({error})"}
    look["duration"] = len(samples) / look["sample_rate"]
    look["sha1"] = hashlib.sha1(f"{look['sample_rate']} {look['channels']} ".encode() + samples.tobytes()).hexdigest()
    if len(samples) < expected:
        look["fault"] = f"is cut off: {len(samples)} of {expected} samples can be read"
    elif look["duration"] < SHORTEST:
        look["fault"] = f"is {look['duration']:.3f} s long, shorter than {SHORTEST} s"
    elif not np.isfinite(samples).all():
        look["fault"] = f"holds {np.count_nonzero(~np.isfinite(samples))} samples that are not finite"
    elif np.abs(samples).max() > LOUDEST:
        look["fault"] = f"holds samples of up to {np.abs(samples).max():.0e}, where full scale is 1"
    else:
        level = 20 * np.log10(max(np.abs(samples.mean(axis=1)).max(), 1e-10))  # of what is heard: two channels may cancel
        look["fault"] = f"is silent: its loudest sample is at {level:.0f} dB" if level < SILENT else None
    return look


def read_clip(path, normalizer, seconds):
    """Read a clip as mono at the normalizer's sample rate, and pad or cut it on both sides to a fixed length.

    Arguments
    ---------
    path : str or pathlib.Path
        The audio file.
    normalizer : speechbrain.dataio.preprocess.AudioNormalizer
        Resamples and mixes down.
    seconds : float
        The length.

    Returns
    -------
    torch.Tensor
        The samples, [time].
    """
    sig = normalizer(*audio_io.load(str(path), channels_first=False))
    missing = round(seconds * normalizer.sample_rate) - len(sig)
    return torch.nn.functional.pad(sig, (missing // 2, missing - missing // 2))


def speaker_of(clip):
    """Name the speaker of a clip, or the clip where its name does not tell."""
    return clip.stem.split("_nohash_")[0]


def literal(text):
    """Double the braces of a name, which SpeechBrain would take for a placeholder in a manifest."""
    return text.replace("{", "{{").replace("}", "}}")


def read_lists(folder):
    """Read which clips the corpus wants in validation and in the test: the split of each ``<word>/<file>``."""
    lists = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
    texts = {split: path.read_text(encoding="utf-8-sig", errors="replace") for split, path in lists.items()}
    return {line.strip(): split for split, text in texts.items() for line in text.splitlines() if line.strip()}


def split_of(clip, listed, valid_percent, test_percent):
    """Say which split a clip belongs to.

    By the corpus's own lists, or by a hash of the speaker, so that nobody is in
    two splits and the answer does not change when clips are added.
    """
    if listed:
        return listed.get(f"{clip.parent.name}/{clip.name}", "train")
    draw = int(hashlib.sha1(speaker_of(clip).encode()).hexdigest(), 16) % 100
    if draw < valid_percent:
        return "valid"
    return "test" if draw < valid_percent + test_percent else "train"


def remarks_on_folder(words, clips, others, listed):
    """Say what is odd in the folder: lines of the lists that name nothing, and what is taken for no clip."""
    names = {f"{clip.parent.name}/{clip.name}" for clip in clips}
    astray = [line for line in listed if line not in names and ("/" not in line or {*line.split("/")} & {*words})]
    if astray:
        shown = ", ".join(astray[:5])
        lists = " and ".join(LISTS.values())
        yield f"{len(astray)} lines of {lists} name no clip; if they mean one by another name, it is trained on: {shown}"
    if others:
        shown = ", ".join(map(str, others[:5]))
        yield f"{len(others)} files or folders beside the clips are not {', '.join(EXTENSIONS)}, and left alone: {shown}"


def remarks_on_splits(splits, words, clip_seconds):
    """Say what is odd in the splits: words with few clips, people or recordings on two sides, long clips, other rates."""
    count = {split: Counter(item["word"] for item in items.values()) for split, items in splits.items()}
    for word in map(literal, words):
        if count["train"][word] == 0:
            yield f"{word} has no clip to train on, and {count['valid'][word]} in validation: it cannot be learned"
        elif count["train"][word] < FEW:
            yield f"{word} has {count['train'][word]} clips to train on: fewer than {FEW} are hard to learn from"
    for key, what in (("speaker", "speakers"), ("sha1", "recordings")):
        where = defaultdict(set)
        for split, items in splits.items():
            for item in items.values():
                where[item[key]].add(split)
        shared = sorted(name for name, found in where.items() if len(found) > 1)
        if shared:
            yield f"{len(shared)} {what} are in more than one split, so the test tells too little: {', '.join(shared[:5])}"
    items = [item for items in splits.values() for item in items.values()]
    if items and not any("_nohash_" in item["wav"] for item in items):
        yield "the file names tell no speaker (<speaker>_nohash_<n>): one person's clips may be in two splits"
    long = sum(item["duration"] > clip_seconds for item in items)
    if long:
        yield f"{long} clips are longer than clip_seconds, {clip_seconds}: of each only the middle is heard"
    rates = Counter((item["sample_rate"], item["channels"]) for item in items)
    if len(rates) > 1:
        kinds = ", ".join(f"{number} at {rate} Hz with {channels} channels" for (rate, channels), number in rates.most_common())
        yield f"the clips are not alike: {kinds}; all are resampled and mixed down"


def write(path, text):
    """Write a text file whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.part", "w", encoding="utf-8", errors="backslashreplace") as file:  # some file names are no text
        file.write(text)
    os.replace(f"{path}.part", path)


def same_run(folder, **what):
    """Refuse to go on from the checkpoints of a run on something else.

    Arguments
    ---------
    folder : str
        The output folder; it remembers what its checkpoints are of.
    **what : object
        What the run is on.

    Raises
    ------
    ValueError
        If that differs from the first run's.
    """
    path = os.path.join(folder, "run_on.json")
    what = json.loads(json.dumps(what))
    if not os.path.exists(path) or not any(Path(folder, "save").rglob("CKPT*")):  # nothing to go on from, as after a typo
        write(path, json.dumps(what, indent=1))
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    for key in what:
        if before.get(key) != what[key]:
            raise ValueError(
                f"{folder} holds a run with {key} {before.get(key)}, not {what[key]}: name another --output_folder."
            )
