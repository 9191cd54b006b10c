"""Real noise for augmentation, from the folder that Speech Commands calls ``_background_noise_``."""

from pathlib import Path

import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.preprocess import AudioNormalizer

from spoken_words_prepare import EXTENSIONS


class BackgroundNoise:
    """Draws a piece of a recording for each waveform; white noise where there are no recordings.

    It is the ``noise_funct`` of ``speechbrain.augment.time_domain.AddNoise``,
    whose own way to read recordings keeps a place in its list of them: a run that
    was stopped would go on with other noise.

    Arguments
    ---------
    folder : str
        The folder of the recordings.
    sample_rate : int
        Of the waveforms, in Hz.

    Example
    -------
    >>> BackgroundNoise("no_such_folder", 16000)(torch.zeros(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, folder, sample_rate):
        self.folder = Path(folder)
        self.sample_rate = sample_rate
        self.recordings = None

    def __call__(self, waveforms):
        """Draw noise of the shape of the waveforms, [batch, time]."""
        if self.recordings is None:  # when noise is first wanted, the corpus is there
            normalizer = AudioNormalizer(self.sample_rate)
            paths = sorted(path for path in self.folder.glob("*") if path.suffix in EXTENSIONS)
            self.recordings = [normalizer(*audio_io.load(str(path), channels_first=False)) for path in paths]
        count, length = waveforms.shape
        long = [recording for recording in self.recordings if len(recording) >= length]
        if not long:
            return torch.randn_like(waveforms)
        pieces = []
        for which in torch.randint(len(long), (count,)):
            start = int(torch.randint(len(long[which]) - length + 1, ()))
            pieces.append(long[which][start : start + length])
        return torch.stack(pieces).to(waveforms.device)
