"""Makes a small corpus of spoken words with eSpeak NG, in the layout of Speech Commands: ``<word>/<speaker>_nohash_<n>.wav``.

Many speakers (voice, speed, pitch) say each word a few times, at a random place
in a one-second clip and in noise of random strength and colour. As in Speech
Commands, there is also a folder ``_background_noise_``. The same arguments make
the same files, byte for byte.

To make a few clips and listen to them:
> python make_spoken_words.py FOLDER cat dog --speakers 5
"""

import argparse
import ctypes
import hashlib
import itertools
import os
import shutil
import sys
import wave

import espeakng_loader
import numpy as np
from filelock import FileLock
from tqdm import tqdm

SAMPLE_RATE = 16000  # Hz, of the corpus; eSpeak speaks at 22050 Hz
ACCENTS = ["en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
NOISES = "_background_noise_"  # the name of the folder in Speech Commands
# Voices whose speech is the same in each process; that of f2, f3, f5 and Alicia is not.
VARIANTS = ("f1 f4 m1 m2 m3 m4 m5 m6 m7 m8 Andy Annie Denis Gene Hugo Jacky Lee Michael anika belinda linda max steph").split()


class ESpeak:
    """The part of the eSpeak NG library that speaks one word into an array."""

    SYNCHRONOUS, RATE, PITCH, CHARS_UTF8 = 2, 1, 3, 1  # from speak_lib.h of eSpeak NG

    def __init__(self):
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG finds no voices in {data.decode()}: reinstall espeakng-loader.")
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.chunks = []
        self.callback = callback(self._collect)  # a reference, so that it is not garbage-collected while the library calls it
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, count, _events):
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, word, voice, rate, pitch):
        """Speak a word; returns 16-bit samples at ``self.sample_rate``."""
        self.chunks.clear()
        text = word.encode()
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"eSpeak NG has no voice {voice!r}.")
        self.library.espeak_SetParameter(self.RATE, rate, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        self.library.espeak_Synth(text, len(text) + 1, 0, 0, 0, self.CHARS_UTF8, None, None)
        if not self.chunks:
            raise RuntimeError(f"eSpeak NG made no sound for {word!r}: use another word.")
        return np.concatenate(self.chunks)


def clip(speech, source_rate, random, snr):
    """Place speech at a random point in one second of noise.

    Arguments
    ---------
    speech : numpy.ndarray
        The samples of one word, at ``source_rate`` Hz.
    source_rate : int
        The sample rate of the speech.
    random : numpy.random.Generator
        Draws the place, and the noise with its strength and colour.
    snr : tuple of float
        Lowest and highest signal-to-noise ratio, in dB.

    Returns
    -------
    numpy.ndarray
        16000 samples between -1 and 1.
    """
    from scipy.signal import resample_poly  # here, because it takes a second: --help answers without it

    speech = resample_poly(speech.astype(np.float64), SAMPLE_RATE, source_rate)
    speech = np.trim_zeros(np.round(speech))[:SAMPLE_RATE]
    noise = coloured_noise(SAMPLE_RATE, random.uniform(0.0, 1.0), random)
    ratio = 10 ** (random.uniform(*snr) / 20)
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) / ratio
    start = random.integers(0, SAMPLE_RATE - len(speech) + 1)
    noise[start : start + len(speech)] += speech
    return noise * (random.uniform(0.3, 0.9) / np.abs(noise).max())


def coloured_noise(count, exponent, random):
    """Draw noise with an amplitude of frequency to the power -exponent: 0 is white, 0.5 pink, 1 brown."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 50.0)
    return np.fft.irfft(np.fft.rfft(random.standard_normal(count)) * frequency**-exponent)


def write(path, samples):
    """Write samples between -1 and 1 as a wav file."""
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def holds_anything(folder):
    """Whether a path exists and is not an empty folder."""
    return os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder))


def make(folder, words, speakers, takes, snr, seed):
    """Write the corpus into a folder that does not exist yet or is empty; if that fails, leave nothing there.

    Arguments
    ---------
    folder : str
        The folder of the corpus.
    words : list of str
        The words to say.
    speakers : int
        How many speakers say them.
    takes : int
        How often each speaker says each word.
    snr : tuple of float
        Lowest and highest signal-to-noise ratio, in dB.
    seed : int
        The seed of all random numbers.
    """
    random = np.random.default_rng(seed)
    casts = list(itertools.product(ACCENTS, VARIANTS))
    random.shuffle(casts)
    folder = os.path.abspath(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    part = os.path.join(os.path.dirname(folder), f".making-{os.path.basename(folder)}")
    open(f"{part}.lock", "a").close()  # raises an error if no file can be made, where FileLock would wait forever
    with FileLock(f"{part}.lock"):
        if holds_anything(folder):
            print(f"Another process has just made speech in {folder}; keeping that.", file=sys.stderr)
            return
        shutil.rmtree(part, ignore_errors=True)  # left by a killed process
        try:
            for name in [*words, NOISES]:
                os.makedirs(os.path.join(part, name))
            for colour, exponent in (("white", 0.0), ("pink", 0.5), ("brown", 1.0)):
                noise = coloured_noise(20 * SAMPLE_RATE, exponent, random)
                write(os.path.join(part, NOISES, f"{colour}_noise.wav"), 0.5 * noise / np.abs(noise).max())
            espeak = ESpeak()
            # In a log file, a line every five seconds is enough.
            interval = 0.1 if sys.stderr.isatty() else 5
            for number in tqdm(range(speakers), desc="making speech", unit="speaker", mininterval=interval):
                accent, variant = casts[number % len(casts)]
                name = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:8]
                rate, pitch = random.integers(120, 200), random.integers(20, 80)
                for word, take in itertools.product(words, range(takes)):
                    drift = random.integers(-15, 16), random.integers(-8, 9)
                    speech = espeak.say(word, f"{accent}+{variant}", int(rate + drift[0]), int(pitch + drift[1]))
                    path = os.path.join(part, word, f"{name}_nohash_{take}.wav")
                    write(path, clip(speech, espeak.sample_rate, random, snr))
            os.rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of the corpus; it must not exist yet, or be empty")
    parser.add_argument("words", nargs="+", help="the words to say")
    parser.add_argument("--speakers", type=int, default=60, help="how many speakers say them (default: %(default)s)")
    parser.add_argument("--takes", type=int, default=2, help="how often each speaker says each word (default: %(default)s)")
    parser.add_argument(
        "--snr",
        type=float,
        nargs=2,
        metavar=("LOWEST", "HIGHEST"),
        default=(0.0, 15.0),
        help="signal-to-noise ratio in dB (default: 0 15)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="another seed makes another corpus (default: %(default)s)")
    arguments = parser.parse_args()
    if holds_anything(arguments.folder):
        parser.error(f"{arguments.folder} already contains something: use a new folder, or delete that one.")
    if min(arguments.speakers, arguments.takes) < 1 or arguments.snr[0] > arguments.snr[1]:
        parser.error("--speakers and --takes must be 1 or more, and the first number of --snr not above the second.")
    if len(set(arguments.words)) < len(arguments.words) or any(os.path.basename(word) != word for word in arguments.words):
        parser.error("give each word only once, and without slashes: it becomes the name of a folder.")
    count = f"{len(arguments.words)} words by {arguments.speakers} speakers"
    print(f"make_spoken_words.py: making {count} in {arguments.folder}", file=sys.stderr, flush=True)
    try:
        make(**vars(arguments))
    except OSError as error:
        sys.exit(f"{arguments.folder} could not be made ({error}); nothing was written there.")
