"""Recorded noise for augmentation, from the folder that Speech Commands calls ``_background_noise_``."""

from pathlib import Path

import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.utils.logger import get_logger

from spoken_words_prepare import EXTENSIONS, look_at

logger = get_logger(__name__)


class BackgroundNoise:
    """Draws a piece of a recording for each waveform, or white noise if there are no recordings.

    Use it as ``noise_funct`` of ``speechbrain.augment.time_domain.AddNoise``.
    AddNoise can read recordings itself, but it remembers its position in the list
    of recordings, so a resumed run would use other noise.

    Arguments
    ---------
    folder : str
        The folder of the recordings.
    sample_rate : int
        The sample rate of the waveforms, in Hz.

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
        if self.recordings is None:  # not in __init__, which runs before speech is made
            self.recordings = list(self._read(waveforms.shape[1]))
            what = f"{len(self.recordings)} recordings in {self.folder}" if self.recordings else "white noise"
            logger.info(f"Noise for augmentation: {what}")
        count, length = waveforms.shape
        if not self.recordings:
            return torch.randn_like(waveforms)
        pieces = []
        for which in torch.randint(len(self.recordings), (count,)):
            start = int(torch.randint(len(self.recordings[which]) - length + 1, ()))
            pieces.append(self.recordings[which][start : start + length])
        return torch.stack(pieces).to(waveforms.device)

    def _read(self, length):
        """Read the recordings, and log which ones are left out: those with a fault or shorter than the waveforms."""
        normalizer = AudioNormalizer(self.sample_rate)
        for path in sorted(path for path in self.folder.glob("[!.]*") if path.suffix.lower() in EXTENSIONS):
            fault = look_at(path)["fault"]
            recording = [] if fault else normalizer(*audio_io.load(str(path), channels_first=False))
            if len(recording) >= length:
                yield recording
            else:
                logger.warning(f"{path} {fault or 'is shorter than a clip'}: it is left out of the noise for augmentation.")
