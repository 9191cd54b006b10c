"""Checks every clip of a folder of spoken words, and writes JSON manifests.

The folder contains ``<word>/<speaker>_nohash_<n>.wav`` (or flac, mp3, ogg), as
the Speech Commands corpus does. If it has lists of validation and testing files,
they decide the splits; otherwise a hash of the speaker's name does.
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
LOUDEST = 2.0**31  # times full scale: allows 32-bit integers stored as floats; far larger samples have infinite energy
FEW = 10  # training clips of a word
STREAMED = 0x7FFFF000  # bytes; a header with this size or more means that its writer did not know the size

# The words of the made corpus, all from Speech Commands, so that the settings of the recipe fit both.
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
    """Check every clip; write a manifest for each split, and a report of the faults and remarks.

    Arguments
    ---------
    data_folder : str
        The folder with a folder for each word.
    words : list of str
        The words to use; other folders are ignored.
    manifests : dict of str to str
        The paths of the manifests of ``train``, ``valid`` and ``test``.
    data_report : str
        The path of the report.
    clip_seconds : float
        The length that the model hears; of longer clips it hears the middle.
    bad_clips : str
        What to do with clips that have a fault: ``leave_out`` or ``refuse``.
    make_speech : bool
        Whether to make a small corpus with eSpeak NG if the folder is missing or empty.
    valid_percent, test_percent : int
        The share of speakers in these splits, if the corpus has no lists.
    skip_prep : bool
        Use the existing manifests, unchanged.

    Raises
    ------
    FileNotFoundError
        If the folder is missing and ``make_speech`` is false, or a manifest is missing and ``skip_prep`` is true.
    ValueError
        If ``words`` is not a list of different words, a word or a split has no clip, or a clip is refused.
    RuntimeError
        If making speech failed.
    """
    if skip_prep:
        for path in manifests.values():
            if not os.path.exists(path):
                raise FileNotFoundError(f"skip_prep is set, but {path} does not exist: run once without skip_prep.")
        return
    if bad_clips not in ("leave_out", "refuse"):
        raise ValueError(f"bad_clips is {bad_clips!r}: it must be leave_out or refuse.")
    if not words or isinstance(words, str) or len({str(word) for word in words}) < len(words):
        raise ValueError(f'words is {words!r}: it must be a list of different words, as in --words "[left, right]".')
    folder, words = Path(data_folder), [str(word) for word in words]
    if any(Path(word).name != word for word in words):
        raise ValueError(f"words is {words}: each must be the name of a folder in {folder}, not a path.")
    if not folder.is_dir() or not any(folder.iterdir()):
        if not make_speech:
            raise FileNotFoundError(
                f"{folder} is not a folder, or is empty: correct data_folder, or add --make_speech True to make speech there."
            )
        logger.warning(f"{folder} contains no speech: making {len(MADE_WORDS)} words there with eSpeak NG.")
        # In a new process: eSpeak keeps a state, so what it said before changes what it says next.
        maker = Path(__file__).resolve().parents[1] / "make_spoken_words.py"
        if subprocess.run([sys.executable, str(maker), str(folder), *MADE_WORDS]).returncode:
            raise RuntimeError(f"making speech in {folder} failed; the lines above say why")

    clips, others = (list(itertools.chain(*paths)) for paths in zip(*(clips_of(folder, word) for word in words)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # soundfile releases the GIL while it reads
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
        found = f"{len(faults)} of {len(clips)} clips have a fault: {shown}. {data_report} lists them all"
        if bad_clips == "refuse":
            raise ValueError(f"{found}: replace or remove them, or leave them out with --bad_clips leave_out.")
        logger.warning(f"{found}; they are left out.")
    empty = [split for split, items in splits.items() if not items]
    if empty:
        remedy = f"correct the lists, {' and '.join(LISTS.values())}" if listed else "use more speakers or other percentages"
        raise ValueError(f"{folder}: there is no clip for {', '.join(empty)}: {remedy}.")
    for split, path in manifests.items():
        write(path, json.dumps(splits[split], indent=1))
        logger.info(f"{path}: {len(splits[split])} clips")


def clips_of(folder, word):
    """List the clips in the folder of a word, and its other files, except hidden ones; ValueError if there is no clip."""
    there = sorted(path for path in (folder / word).glob("*") if not path.name.startswith("."))
    clips = [path for path in there if path.suffix.lower() in EXTENSIONS]
    if not clips:
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ValueError(
            f"{folder / word} contains no {', '.join(EXTENSIONS)} file; {folder}/<word>/<speaker>_nohash_<n>.wav is expected, "
            f"and the folders there are: {', '.join(found) or 'none'}. Correct data_folder or words; quote "
            "words that YAML would read as a number or null."
        )
    return clips, sorted({*there} - {*clips})


def look_at(clip):
    """Read a clip to its end, and describe it.

    Arguments
    ---------
    clip : pathlib.Path
        The audio file.

    Returns
    -------
    dict
        ``fault`` (None if there is none), ``duration`` in seconds, ``sample_rate`` in Hz,
        ``channels``, and ``sha1``, the digest of sample rate, channels and samples.
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
                tag, length = struct.unpack("<4sI", file.read(8))
            if tag == b"RIFF" and size < length < STREAMED:  # not length + 8: some writers give the size of the whole file
                return {**look, "fault": f"is cut off: its header gives {length + 8} bytes, and it has {size}"}
    except (OSError, ValueError, MemoryError, soundfile.SoundFileError) as error:  # soundfile raises all of these
        return {**look, "fault": f"cannot be read ({error})"}
    look["duration"] = len(samples) / look["sample_rate"]
    look["sha1"] = hashlib.sha1(f"{look['sample_rate']} {look['channels']} ".encode() + samples.tobytes()).hexdigest()
    if len(samples) < expected:
        look["fault"] = f"is cut off: {len(samples)} of {expected} samples can be read"
    elif look["duration"] < SHORTEST:
        look["fault"] = f"is {look['duration']:.3f} s long, shorter than {SHORTEST} s"
    elif not np.isfinite(samples).all():
        look["fault"] = f"contains {np.count_nonzero(~np.isfinite(samples))} samples that are not finite"
    elif np.abs(samples).max() > LOUDEST:
        look["fault"] = f"contains samples of up to {np.abs(samples).max():.0e}, where full scale is 1"
    else:
        level = 20 * np.log10(max(np.abs(samples.mean(axis=1)).max(), 1e-10))  # of the mix: two channels may cancel
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
    """Name the speaker of a clip; if the file name does not contain one, name the clip."""
    return clip.stem.split("_nohash_")[0]


def literal(text):
    """Double the braces of a name, because SpeechBrain reads braces in a manifest as placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


def read_lists(folder):
    """Read the lists of the corpus: a dict from ``<word>/<file>`` to ``valid`` or ``test``."""
    lists = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
    texts = {split: path.read_text(encoding="utf-8-sig", errors="replace") for split, path in lists.items()}
    return {line.strip(): split for split, text in texts.items() for line in text.splitlines() if line.strip()}


def split_of(clip, listed, valid_percent, test_percent):
    """Choose the split of a clip, by the lists of the corpus or by a hash of the speaker.

    With the hash, no speaker is in two splits, and the split of a clip does not
    change when clips are added.
    """
    if listed:
        return listed.get(f"{clip.parent.name}/{clip.name}", "train")
    draw = int(hashlib.sha1(speaker_of(clip).encode()).hexdigest(), 16) % 100
    if draw < valid_percent:
        return "valid"
    return "test" if draw < valid_percent + test_percent else "train"


def remarks_on_folder(words, clips, others, listed):
    """Yield remarks on the folder: lines of the lists that match no clip, and files that are not clips."""
    names = {f"{clip.parent.name}/{clip.name}" for clip in clips}
    astray = [line for line in listed if line not in names and ("/" not in line or {*line.split("/")} & {*words})]
    if astray:
        shown = ", ".join(astray[:5])
        lists = " and ".join(LISTS.values())
        yield f"{len(astray)} lines of {lists} match no clip; if that clip has another name here, it is in training: {shown}"
    if others:
        shown = ", ".join(map(str, others[:5]))
        yield f"{len(others)} files or folders beside the clips are not {', '.join(EXTENSIONS)}, and are ignored: {shown}"


def remarks_on_splits(splits, words, clip_seconds):
    """Yield remarks on the splits: words with few clips, speakers or recordings in two splits, long clips, mixed formats."""
    count = {split: Counter(item["word"] for item in items.values()) for split, items in splits.items()}
    for word in map(literal, words):
        if count["train"][word] == 0:
            yield f"{word} has no training clip, and {count['valid'][word]} in validation: the model cannot learn it"
        elif count["train"][word] < FEW:
            yield f"{word} has {count['train'][word]} training clips: with fewer than {FEW} it is hard to learn"
    for key, what in (("speaker", "speakers"), ("sha1", "recordings")):
        where = defaultdict(set)
        for split, items in splits.items():
            for item in items.values():
                where[item[key]].add(split)
        shared = sorted(name for name, found in where.items() if len(found) > 1)
        if shared:
            yield f"{len(shared)} {what} are in more than one split, so the test error will be too low: {', '.join(shared[:5])}"
    items = [item for items in splits.values() for item in items.values()]
    if items and not any("_nohash_" in item["wav"] for item in items):
        yield "the file names contain no speaker (<speaker>_nohash_<n>): clips of one person may be in two splits"
    long = sum(item["duration"] > clip_seconds for item in items)
    if long:
        yield f"{long} clips are longer than clip_seconds, {clip_seconds}: the model hears only the middle of each"
    rates = Counter((item["sample_rate"], item["channels"]) for item in items)
    if len(rates) > 1:
        kinds = ", ".join(f"{number} at {rate} Hz with {channels} channels" for (rate, channels), number in rates.most_common())
        yield f"the clips have different formats: {kinds}; all are resampled and mixed down"


def write(path, text):
    """Write a text file; if that is interrupted, leave no incomplete file under its name."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.part", "w", encoding="utf-8", errors="backslashreplace") as file:  # some file names are not valid text
        file.write(text)
    os.replace(f"{path}.part", path)


def same_run(folder, **what):
    """Refuse to resume from the checkpoints of a run on other data, words or another encoder.

    Arguments
    ---------
    folder : str
        The output folder; ``run_on.json`` in it records what its checkpoints belong to.
    **what : object
        What this run uses.

    Raises
    ------
    ValueError
        If the first run used something else.
    """
    path = os.path.join(folder, "run_on.json")
    what = json.loads(json.dumps(what))
    if not os.path.exists(path) or not any(Path(folder, "save").rglob("CKPT*")):  # nothing to resume, as after a typo
        write(path, json.dumps(what, indent=1))
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    for key in what:
        if before.get(key) != what[key]:
            raise ValueError(
                f"{folder} belongs to a run with {key} {before.get(key)}, not {what[key]}: use another --output_folder."
            )
