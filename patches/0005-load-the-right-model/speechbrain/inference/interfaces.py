"""At inference, labels are needed to classify only, but then they must fit."""

import contextlib
import functools
import os

import torch

from speechbrain.inference.interfaces import (
    _upstream_pretrained_from_hparams,
    logger,
)
from speechbrain.utils.fetching import FetchConfig, LocalStrategy
from speechbrain.utils.parameter_transfer import LABELS_NEEDED


def _comparing_labels(classify):
    """Makes a method compare the number of outputs with that of labels."""

    @functools.wraps(classify)
    def classify_and_compare(self, *args, **kwargs):
        encoder = getattr(self.hparams, "label_encoder", None)
        labels = getattr(encoder, "ind2lab", None)
        if labels is None:
            return classify(self, *args, **kwargs)
        last = max(labels, default=-1)
        outputs, more, cause = 0, "", None
        try:
            result = classify(self, *args, **kwargs)
            # Else the last dimension may not be that of the classes
            with contextlib.suppress(Exception):
                scores, _, index = result[:3]
                if torch.equal(scores.argmax(dim=-1), index):
                    outputs = scores.shape[-1]
        except KeyError as error:
            index = next(iter(error.args), None)
            if not isinstance(index, int) or index <= last:
                raise
            outputs, more, cause = index + 1, " or more", error
        if last + 1 < outputs:
            raise ValueError(
                f"The classifier has {outputs}{more} outputs, but the label "
                f"encoder has only {len(labels)} labels: restore the label "
                "encoder that was trained with the classifier."
            ) from cause
        kinds = ("unk", "bos", "eos", "blank")
        special = sum(hasattr(encoder, f"{kind}_label") for kind in kinds)
        if len(labels) - special > outputs > 1:
            logger.warning_once(
                f"The classifier has only {outputs} outputs, but the label "
                f"encoder has {len(labels)} labels: check that the label "
                "encoder was trained with the classifier."
            )
        return result

    return classify_and_compare


def pretrained_from_hparams(
    cls,
    source,
    hparams_file="hyperparams.yaml",
    overrides={},
    overrides_must_match=True,
    savedir=None,
    download_only=False,
    local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
    fetch_config: FetchConfig = FetchConfig(),
    **kwargs,
):
    token = LABELS_NEEDED.set(False)
    try:
        return _upstream_pretrained_from_hparams(
            cls,
            source,
            hparams_file,
            overrides,
            overrides_must_match,
            savedir,
            download_only,
            local_strategy,
            fetch_config,
            **kwargs,
        )
    finally:
        LABELS_NEEDED.reset(token)


class Pretrained:
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in ("classify_batch", "classify_file"):
            if name in vars(cls):
                setattr(cls, name, _comparing_labels(vars(cls)[name]))

    def load_audio(self, path, savedir=None):
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        return self._upstream_load_audio(path, savedir)
