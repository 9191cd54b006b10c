"""The items of a dataset: what its manifest contains, and what is read when an item is evaluated."""

import builtins
import contextlib
import io
import os
import sys
import weakref
from collections.abc import Mapping
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import StaticItem
from torch.utils.data import DataLoader, Subset

AUDIO = frozenset(".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .sph .w64 .wav".split())
# Packages whose functions take paths of audio files. Some open them in C code, where only the arguments can be seen.
READERS = frozenset("audioread av librosa miniaudio pydub scipy soundfile torchaudio torchcodec wave".split())
# Functions that return samples at the rate of the file.
PLAIN = {("soundfile", "read"), ("torchaudio", "load"), ("torchaudio._torchcodec", "load_with_torchcodec")}
# Names that resampling functions have for the rates from which and to which they resample.
RATES_BEFORE, RATES_AFTER = ("orig_freq", "orig_sr"), ("new_freq", "target_sr")
ENCODER = "speechbrain.dataio.encoder"
LOSSES, AUGMENTER = "speechbrain.nnet.losses", "speechbrain.augment.augmenter"
SIGNED = ("cal_si_snr", "cal_snr")  # losses whose values are already negative for good estimates


def is_audio(value):
    """Return whether a value is a path with the extension of an audio file."""
    return isinstance(value, (str, os.PathLike)) and os.path.splitext(os.fspath(value))[1].lower() in AUDIO


class Noted(SimpleNamespace):
    """A call of one of SpeechBrain's losses, or of an Augmenter: its name, arguments, value, and the gradient of the value."""


def note_slope(call, value):
    """Note the gradient of the value of a call in a backward pass."""
    if getattr(value, "requires_grad", False):
        one = weakref.ref(call)  # else, the graph would keep itself alive
        value.register_hook(lambda slope: one() and one().__dict__.update(slope=slope))


class Watch:
    """A context that records audio files, resampling, label encoders, tokenizers, losses and augmentation."""

    def __init__(self):
        self.opened = []  # audio files, in the order in which the code first opened or tried to open them
        self.read = []  # what soundfile and torchaudio read from files, at the rate of the file
        self.resampled = []  # the rates from which functions with "resampl" in their names resampled; None if unknown
        self.encoders = []  # the label encoders that encoded a label
        self.tokenizers = []  # the tokenizers of SentencePiece and of the package transformers that were used
        self.calls = []  # the calls of SpeechBrain's losses that say more than torch's inside them, and of Augmenters
        self._running = {}  # by frame, its call
        self.tensors = None  # those of the item that is evaluated, by key; None if this failed

    def __enter__(self):
        self._before = (builtins.open, io.open)

        def opening(file, *args, _open=builtins.open, **kwargs):
            if is_audio(file):
                self._note(file)
            return _open(file, *args, **kwargs)

        builtins.open = io.open = opening  # pathlib uses io.open
        if sys.getprofile() is None:  # a profiler that is already running could not be restored
            sys.setprofile(self._called)
        return self

    def __exit__(self, *raised):
        builtins.open, io.open = self._before
        if getattr(sys.getprofile(), "__self__", None) is self:
            sys.setprofile(None)

    def _note(self, file):
        path = os.fspath(file) if isinstance(file, os.PathLike) else getattr(file, "name", file)
        if isinstance(path, str) and path not in self.opened:
            self.opened.append(path)

    def _called(self, frame, event, result):
        code = frame.f_code
        if id(code) not in KINDS:
            KINDS[id(code)] = code, _kind(frame)
        note = KINDS[id(code)][1]
        if note is not None:
            note(self, frame, event, result)

    def _note_maker(self, frame, event, _):
        if event != "call":
            return
        maker = frame.f_locals.get("self")
        tokenizer = any(hasattr(type(maker), name) for name in ("get_piece_size", "convert_tokens_to_ids"))
        known = self.encoders if "lab2ind" in getattr(maker, "__dict__", ()) else self.tokenizers if tokenizer else None
        if known is not None and not any(maker is other for other in known):
            known.append(maker)

    def _note_file(self, frame, event, _):
        if event == "call":  # soundfile opens files of any name, and takes open files
            self._note(frame.f_locals.get("file"))

    def _note_arguments(self, frame, event, result):
        code = frame.f_code
        for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if event == "call" else ():
            if is_audio(frame.f_locals.get(name)):
                self._note(frame.f_locals[name])
        if event == "return" and result is not None and (frame.f_globals.get("__name__"), code.co_name) in PLAIN:
            self.read.append(result[0] if isinstance(result, tuple) else result)

    def _note_resampling(self, frame, event, _):
        """Note from which rate a function resamples, unless that is the rate to which it resamples."""
        names = frame.f_locals
        old, new = (next((names[n] for n in rates if n in names), None) for rates in (RATES_BEFORE, RATES_AFTER))
        if event == "call" and (old != new or old is None):
            self.resampled.append(old)

    def _note_call(self, frame, event, result):
        if event == "call":
            self.calls.append(Noted(name=frame.f_code.co_name, given=dict(frame.f_locals), value=None, slope=None))
            self._running[frame] = self.calls[-1]
        elif event == "return" and frame in self._running:
            call = self._running.pop(frame)
            call.value = result
            note_slope(call, result)


KINDS = {}  # by id of a code object: the object, which thus stays, and the method of Watch that notes its calls, or None


def _kind(frame):
    """The method of Watch that notes calls of a function."""
    name, module = frame.f_code.co_name, frame.f_globals.get("__name__") or ""
    if "resampl" in name.lower():
        return Watch._note_resampling
    if (module == ENCODER and name.startswith("encode_")) or module.startswith(("sentencepiece", "transformers.")):
        return Watch._note_maker
    if module in (LOSSES, AUGMENTER) and (name in ("forward", *SIGNED) or "label_smoothing" in frame.f_locals):
        return Watch._note_call
    if module == "soundfile" and name == "__init__":
        return Watch._note_file
    if module.partition(".")[0] in READERS:
        return Watch._note_arguments
    return None


class Items:
    """The items of a dataset that was passed to ``fit`` and whose manifest is known."""

    def __init__(self, split, given, indices=None):
        self.split = split
        self.given = given
        self.indices = range(len(given)) if indices is None else indices
        self.pipeline = getattr(given, "pipeline", None)

    @classmethod
    def of(cls, split, given):
        """Find the items of what was passed to ``fit``; None if they cannot be known without evaluating them."""
        indices = None
        while isinstance(given, (Subset, DataLoader, LoopedLoader)):
            if isinstance(given, Subset):
                indices = given.indices if indices is None else [given.indices[i] for i in indices]
            given = given.loader if isinstance(given, LoopedLoader) else given.dataset
        if isinstance(given, DynamicItemDataset):
            known = isinstance(given.data, dict)  # other mappings may create their values on access
        else:
            known = isinstance(given, (list, tuple)) and all(isinstance(item, Mapping) for item in given)
        return cls(split, given, indices) if known else None

    def __len__(self):
        return len(self.indices)

    def static(self, i):
        """Return what the manifest contains for an item, by key; its id is one of them."""
        i = self.indices[i]
        if self.pipeline is None:
            return self.given[i]
        name = self.given.data_ids[i]
        values = self.given.data[name]
        return {"id": name, **values} if isinstance(values, Mapping) else {"id": name}  # an item in JSON may be null

    def name(self, i):
        """Return the id of an item as text; its number if it has none."""
        return str(self.static(i).get("id", i))

    def needed(self, keys=None):
        """Find the keys of the manifest that are needed for some keys; by default, for the output keys."""
        if self.pipeline is None:
            return list(self.static(0))
        keys = list(self.pipeline.output_mapping.values()) if keys is None else keys
        order = self.pipeline.dg.get_evaluation_order(self.pipeline.get_selected_node_ids(keys))
        return [item.key for _, _, item in order if isinstance(item, StaticItem)]

    @cached_property
    def probes(self):
        """dict: By key of the batch, a Watch for each of a few items; not the first ones, which may be cached."""
        found = {}
        for outer, key in self.pipeline.output_mapping.items() if self.pipeline is not None else ():
            with self.providing([key]):
                found[outer] = [self.watched(i) for i in self.probed]
            for watch in found[outer]:
                watch.read, watch.tensors = [], None  # which may be large
        return found

    @property
    def probed(self):
        """list: The numbers of the items of ``probes``."""
        n = len(self)
        return [*dict.fromkeys((n - 1, n // 2, n // 4))]

    @contextlib.contextmanager
    def providing(self, keys):
        """Replace the pipeline's output keys while this context lasts."""
        before = self.pipeline.output_mapping
        self.pipeline.set_output_keys(keys)
        try:
            yield
        finally:
            self.pipeline.set_output_keys(before)

    def evaluate(self, i):
        """Evaluate an item. Exceptions of the pipeline are not caught."""
        static = self.static(i)
        if self.pipeline is None:
            return static
        for item in self.pipeline.dynamic_items:
            item.reset()  # after an exception, a generator would continue where it stopped
        return self.pipeline.compute_outputs(static)

    def watched(self, i):
        """Evaluate an item; returns a Watch."""
        with Watch() as watch, contextlib.suppress(Exception):
            found = {key: value for key, value in self.evaluate(i).items() if _is_array(value)}
            watch.tensors = {key: torch.as_tensor(value) for key, value in found.items()}
        return watch


def _is_array(value):
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")
