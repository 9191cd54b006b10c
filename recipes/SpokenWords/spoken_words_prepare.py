"""Prepares a folder of spoken words, ``<word>/<speaker>_nohash_<n>.wav``, as JSON manifests for training.

Where the folder holds no speech yet, a small corpus is made there with eSpeak NG
(see make_spoken_words.py). With the Speech Commands corpus in it, that is used.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

# What the made corpus says: words of Speech Commands, so that the recipe's settings fit both.
MADE_WORDS = (
    "yes no up down left right on off stop go zero one two three four five six seven eight nine "
    "bed bird cat dog happy house marvin sheila tree wow"
).split()


def prepare_spoken_words(data_folder, words, manifests, valid_percent=15, test_percent=25, skip_prep=False):
    """Write one manifest for each split; no speaker is in two splits.

    Arguments
    ---------
    data_folder : str
        The folder of the words' folders. Missing or empty: a corpus is made.
    words : list of str
        The words to use; other folders are left alone.
    manifests : dict of str to str
        Where the manifests of ``train``, ``valid`` and ``test`` go.
    valid_percent, test_percent : int
        The share of speakers in these splits, drawn by a hash of their name.
    skip_prep : bool
        Keep the manifests as they are.

    Raises
    ------
    ValueError
        If a word has no clip, a split has none, or a clip cannot be read.
    """
    if skip_prep:
        return
    folder = Path(data_folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        logger.warning(f"{folder} holds no speech: making {len(MADE_WORDS)} words there with eSpeak NG.")
        # In a process of its own: eSpeak keeps a state, so what was said before changes what comes out.
        maker = Path(__file__).resolve().with_name("make_spoken_words.py")
        if subprocess.run([sys.executable, str(maker), str(folder), *MADE_WORDS]).returncode:
            raise RuntimeError(f"making speech in {folder} failed, as said above")

    splits = {split: {} for split in manifests}
    for word in words:
        clips = sorted((folder / word).glob("*.wav"))
        if not clips:
            found = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise ValueError(
                f"{folder / word} holds no .wav file; expected is {folder}/<word>/<speaker>_nohash_<n>.wav, "
                f"and the folders there are: {', '.join(found) or 'none'}. Mend data_folder or words."
            )
        for clip in tqdm(clips, desc=word, unit="clip", disable=None, leave=False):
            speaker = clip.name.split("_nohash_")[0]
            try:
                info = soundfile.info(str(clip))
            except soundfile.SoundFileError as error:
                raise ValueError(f"{clip} cannot be read as audio ({error}): replace or remove it.") from error
            fault = fault_of(info)
            if fault:
                raise ValueError(f"{clip} {fault}: convert, replace or remove it.")
            splits[split_of(speaker, valid_percent, test_percent)][f"{word}/{clip.stem}"] = {
                "wav": str(Path("{data_root}", word, clip.name)),
                "duration": info.duration,
                "word": word,
                "speaker": speaker,
            }
    empty = [split for split, items in splits.items() if not items]
    if empty:
        raise ValueError(f"{folder}: no speaker falls into {', '.join(empty)}: use more speakers or other percentages.")
    for split, path in manifests.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump(splits[split], file, indent=1)
        os.replace(f"{path}.part", path)
        logger.info(f"{path}: {len(splits[split])} clips")


def fault_of(info, sample_rate=16000, shortest=0.1):
    """Say what is wrong with a clip, by its header.

    Arguments
    ---------
    info : soundfile._SoundFileInfo
        What the header says.
    sample_rate : int
        The sample rate that it should have, in Hz.
    shortest : float
        How long it should be at least, in seconds.

    Returns
    -------
    str
        The fault; None if there is none.
    """
    if info.samplerate != sample_rate:
        return f"has a sample rate of {info.samplerate} Hz, not of {sample_rate}"
    if info.channels != 1:
        return f"has {info.channels} channels, not one"
    return None if info.duration >= shortest else f"is {info.duration:.3f} s long, shorter than {shortest} s"


def same_run(folder, **what):
    """Refuse to go on from the checkpoints of a run on something else.

    Arguments
    ---------
    folder : str
        The output folder; it remembers what its first run was on.
    **what : object
        What the run is on.

    Raises
    ------
    ValueError
        If that differs from the first run's.
    """
    path = os.path.join(folder, "run_on.json")
    what = json.loads(json.dumps(what))
    if not os.path.exists(path):
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump(what, file, indent=1)
        os.replace(f"{path}.part", path)
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    for key in what:
        if before.get(key) != what[key]:
            raise ValueError(
                f"{folder} holds a run with {key} {before.get(key)}, not {what[key]}: name another --output_folder."
            )


def split_of(speaker, valid_percent, test_percent):
    """Say which split a speaker belongs to; the answer does not change when speakers are added.

    Arguments
    ---------
    speaker : str
        Name of the speaker.
    valid_percent, test_percent : int
        The share of speakers in these splits.

    Returns
    -------
    str
        ``train``, ``valid`` or ``test``.

    Example
    -------
    >>> split_of("0a7c2a8d", valid_percent=0, test_percent=100)
    'test'
    """
    draw = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 100
    if draw < valid_percent:
        return "valid"
    return "test" if draw < valid_percent + test_percent else "train"
