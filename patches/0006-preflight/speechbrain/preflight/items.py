"""The items of a dataset: what its manifest says of each, and what is read when one is evaluated."""

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Mapping

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import StaticItem
from torch.utils.data import DataLoader, Subset

AUDIO = frozenset(".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .sph .w64 .wav".split())
# Packages whose functions take the paths of audio files; those that open them in C are seen by their arguments alone.
READERS = frozenset("audioread av librosa miniaudio pydub scipy soundfile torchaudio torchcodec wave".split())
ENCODER = "speechbrain.dataio.encoder"


def is_audio(value):
    """Whether a value is a path with the extension of an audio file.

    Arguments
    ---------
    value : object
        Any value.

    Returns
    -------
    bool

    Example
    -------
    >>> is_audio("a/b.FLAC"), is_audio("a/b.json"), is_audio(3)
    (True, False, False)
    """
    return isinstance(value, (str, os.PathLike)) and os.path.splitext(os.fspath(value))[1].lower() in AUDIO


class Watch:
    """Sees, as a context, which audio files are opened, whether something is resampled, and which label encoders are asked.

    Attributes
    ----------
    opened : list of str
        The audio files, in the order in which they were first opened, or failed to open.
    resampled : bool
        Whether a function was called that says by its name that it resamples.
    encoders : list of speechbrain.dataio.encoder.CategoricalEncoder
        The label encoders that were asked for a label.

    Example
    -------
    >>> import soundfile
    >>> with Watch() as watch:
    ...     try:
    ...         _ = soundfile.read("absent.wav")
    ...     except soundfile.LibsndfileError:
    ...         pass
    >>> watch.opened, watch.resampled
    (['absent.wav'], False)
    """

    def __init__(self):
        self.opened = []
        self.resampled = False
        self.encoders = []

    def __enter__(self):
        self._before = (builtins.open, io.open)

        def opening(file, *args, _open=builtins.open, **kwargs):
            if is_audio(file):
                self._note(file)
            return _open(file, *args, **kwargs)

        builtins.open = io.open = opening  # pathlib opens by the latter
        if sys.getprofile() is None:  # a profiler that is at work could not be put back
            sys.setprofile(self._called)
        return self

    def __exit__(self, *raised):
        builtins.open, io.open = self._before
        if getattr(sys.getprofile(), "__self__", None) is self:
            sys.setprofile(None)

    def _note(self, file):
        path = os.fspath(file) if isinstance(file, os.PathLike) else file
        if isinstance(path, str) and path not in self.opened:
            self.opened.append(path)

    def _called(self, frame, event, _):
        if event != "call":
            return
        code, module = frame.f_code, frame.f_globals.get("__name__") or ""
        if "resampl" in code.co_name.lower():
            self.resampled = True
        if module == ENCODER and code.co_name.startswith("encode_"):
            encoder = frame.f_locals.get("self")
            if not any(encoder is known for known in self.encoders):
                self.encoders.append(encoder)
        if module == "soundfile" and code.co_name == "__init__":  # it opens a file of any name, or one that is open
            file = frame.f_locals.get("file")
            if not isinstance(file, os.PathLike):
                file = getattr(file, "name", file)
            self._note(file)
        elif module.partition(".")[0] in READERS:
            for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
                value = frame.f_locals.get(name)
                if is_audio(value):
                    self._note(value)


class Items:
    """The items of a dataset that was given to ``fit``, where its manifest is known.

    Arguments
    ---------
    split : str
        What it is for: ``train`` or ``valid``.
    given : DynamicItemDataset or list of dict
        The dataset.
    indices : sequence of int
        Which of its items; all by default.

    Example
    -------
    >>> data = {"a": {"word": "yes"}, "b": {"word": "no"}}
    >>> items = Items("train", DynamicItemDataset(data, output_keys=["word"]))
    >>> len(items), items.static(1)
    (2, {'id': 'b', 'word': 'no'})
    """

    def __init__(self, split, given, indices=None):
        self.split = split
        self.given = given
        self.indices = range(len(given)) if indices is None else indices
        self.pipeline = getattr(given, "pipeline", None)

    @classmethod
    def of(cls, split, given):
        """Find the items of whatever was given to ``fit``.

        Arguments
        ---------
        split : str
            What it is for.
        given : object
            A dataset, a part of one, or a loader.

        Returns
        -------
        Items
            None where nothing tells what its items are without making them.
        """
        indices = None
        while True:
            if isinstance(given, Subset):
                chosen = given.indices
                indices = chosen if indices is None else [chosen[i] for i in indices]
                given = given.dataset
            elif isinstance(given, DataLoader):
                given = given.dataset
            elif hasattr(given, "epoch_length") and hasattr(given, "loader"):  # a LoopedLoader
                given = given.loader
            else:
                break
        if isinstance(given, DynamicItemDataset):
            known = isinstance(given.data, dict)  # other data may be made when they are asked for
        else:
            known = isinstance(given, (list, tuple)) and all(isinstance(item, Mapping) for item in given)
        return cls(split, given, indices) if known else None

    def __len__(self):
        return len(self.indices)

    def static(self, i):
        """Give what the manifest says of an item.

        Arguments
        ---------
        i : int
            Which item.

        Returns
        -------
        dict
            Its values, its id among them.
        """
        i = self.indices[i]
        if self.pipeline is None:
            return self.given[i]
        name = self.given.data_ids[i]
        values = self.given.data[name]
        return {"id": name, **values} if isinstance(values, Mapping) else {"id": name}  # an item may be null, say

    def needed(self, keys=None):
        """Find out what a pipeline takes from the manifest.

        Arguments
        ---------
        keys : list of str
            What it is to provide; by default what it does provide.

        Returns
        -------
        list of str
            The keys of the manifest.
        """
        if self.pipeline is None:
            return list(self.static(0))
        wanted = list(self.pipeline.output_mapping.values()) if keys is None else keys
        order = self.pipeline.dg.get_evaluation_order(self.pipeline.get_selected_node_ids(wanted))
        return [item.key for _, _, item in order if isinstance(item, StaticItem)]

    @contextlib.contextmanager
    def providing(self, keys):
        """Have, as a context, other keys evaluated than those that the pipeline puts out.

        Arguments
        ---------
        keys : list of str
            The keys, by their names within the pipeline.

        Yields
        ------
        None
        """
        before = self.pipeline.output_mapping
        self.pipeline.set_output_keys(keys)
        try:
            yield
        finally:
            self.pipeline.set_output_keys(before)

    def evaluate(self, i):
        """Evaluate an item.

        Arguments
        ---------
        i : int
            Which item.

        Returns
        -------
        dict
            Its values by key. Exceptions go through.
        """
        static = self.static(i)
        if self.pipeline is None:
            return static
        for item in self.pipeline.dynamic_items:
            item.reset()  # an exception leaves a generator where it was
        return self.pipeline.compute_outputs(static)
