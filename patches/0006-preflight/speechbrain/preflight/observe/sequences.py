"""Reads token sequences: those that losses and embeddings take in the first step, then those of all items."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.preflight.observe.calls import Call
from speechbrain.preflight.observe.given import ids_of, of_batch, parts

SLACK = 2  # frames by which rounding can raise the number of frames above the estimate
CERTAIN = 8  # tokens that are in two keys only if all are
TRUNCATED = 3  # tokens that SpeechBrain's losses cut off, see allowed_len_diff


class Vocabulary(NamedTuple):
    """What a tokenizer or label encoder can decode."""

    ids: Iterable
    unknown: int | None  # the unknown token
    labels: dict


class Taken(NamedTuple):
    """The tokens of a call."""

    call: Call
    key: str | None  # the key of the batch whose values are equal to them
    ids: torch.Tensor  # [rows, positions]
    inside: torch.Tensor | None  # which positions are inside the lengths
    names: list  # the id of the item of each row

    @property
    def rows(self):
        """Dict of str to list of int: By item, the tokens inside the lengths."""
        inside = torch.ones_like(self.ids, dtype=torch.bool) if self.inside is None else self.inside
        return {name: row[mask].tolist() for name, row, mask in zip(self.names, self.ids, inside)}


@dataclass(frozen=True)
class Sequences:
    """The token sequences of a run."""

    taken: list = field(default_factory=list)  # what the losses that count, and embeddings, take in the first step
    # By set and key of the batch, the tokens of each item by its id, and what they are encoded with: a list of Vocabulary.
    rows: dict = field(default_factory=dict)
    vocabularies: dict = field(default_factory=dict)
    # By set and id of an item, its duration; empty unless the lengths in the first batch show that this is right.
    seconds: dict = field(default_factory=dict)
    frames: dict = field(default_factory=dict)  # by number of seconds, the most frames that CTC gets in the first batch

    def most(self, split, name):
        """Return the most frames that CTC can get for an item: inf if unknown."""
        last = self.seconds.get((split, name), math.inf)
        longer = [frames + 1 for seconds, frames in self.frames.items() if seconds >= last]
        rate = max((frames / seconds for seconds, frames in self.frames.items()), default=math.inf)
        return min(rate * last + SLACK, *longer, math.inf)


def sequences(seen):
    """Read the token sequences of the training and the validation set."""
    given, batch, step, columns = seen.given, seen.start.batch, seen.step, seen.labels.columns
    pipeline = getattr(given.sets.get("train"), "pipeline", None)
    keys = [*pipeline.output_mapping] if pipeline is not None and batch is not None else []
    calls = [call for call in step.calls if call.ids is not None and call.ids.numel() > 1]
    calls = [call for call in calls if call.trained is not None or call.value is None or call.name == "embedding"]
    taken = [_taken(call, batch, keys) for call in calls]
    vocabularies = {key: [*map(_vocabulary, column.encoders + column.tokenizers)] for key, column in columns.items()}
    rows = {key: _rows(columns[key]) for key in columns if key[1] in {one.key for one in taken}}
    seconds, drawn = _seconds(given, batch, keys, seen.clips)
    return Sequences(taken, rows, vocabularies, seconds, _frames(given, drawn, taken))


def _rows(column):
    """The tokens of the items by their ids."""
    return {column.items.name(i): value for i, value in enumerate(column.values) if isinstance(value, tuple)}


def _vocabulary(encoder):
    if hasattr(encoder, "get_piece_size"):
        return Vocabulary(range(encoder.get_piece_size()), encoder.unk_id(), {})
    if hasattr(encoder, "unk_token_id"):  # of the package transformers
        return Vocabulary(range(len(encoder)), encoder.unk_token_id, {})
    unknown = encoder.lab2ind.get(encoder.unk_label) if hasattr(encoder, "unk_label") else None
    return Vocabulary(encoder.ind2lab, unknown, encoder.lab2ind)


def _taken(call, batch, keys):
    """Find the tokens of a call in the batch."""
    ids, inside = call.rows()
    masked = 0 if call.name == "kl_div" else call.options.get("ignore_index")
    placed = {key: find_place(ids, inside, masked, *sequences_of(batch, key)) for key in keys}
    found = [(key, *place) for key, place in placed.items() if place]
    if len(found) == 1 or (found and found[0][2].sum() >= CERTAIN):  # few tokens may be equal by accident
        key, ids, inside = found[0]
    else:
        key, ids, inside = None, ids if ids.dim() == 2 else ids.reshape(1, -1), inside if ids.dim() == 2 else None
    names = ids_of(batch)
    if not names or len(ids) % len(names):
        names = [f"row {i}" for i in range(len(ids))]
    return Taken(call, key, ids, inside, [names[i % len(names)] for i in range(len(ids))])


def sequences_of(batch, key):
    """The values of a key in a batch, [items, positions], and their lengths; None if they are something else."""
    data = of_batch(batch, key)
    if data is None or data.dim() != 2 or data.shape[1] < 2:
        return None, None
    lengths = getattr(batch[key], "lengths", torch.ones(len(data)))
    return data.cpu(), (lengths.cpu() * data.shape[1]).round().long()


def find_place(ids, inside, masked, data, lengths):
    """The tokens, [rows, positions], and which are inside the lengths, if they are a key's values, even repeated or cut off."""
    if data is None or (data.is_floating_point() and not ids.is_floating_point()):
        return None
    for width in range(data.shape[1], max(1, data.shape[1] - TRUNCATED - 1), -1):
        times, left = divmod(ids.numel(), len(data) * width)
        if times and not left:
            rows, cut = ids.reshape(-1, width), data[:, :width].repeat(times, 1)
            within = (torch.arange(width) < lengths[:, None]).repeat(times, 1)
            differ = (rows != cut) & within
            same = {*rows[differ].tolist()} <= {masked} and len(cut[differ].unique()) < 2
            if same and (inside is None or torch.equal(within, inside)):
                return cut, within
    return None


def _seconds(given, batch, keys, clips):
    """The duration of each item, and of those of the first batch, if the lengths of a key in it show that they are right."""
    known = [(items, *item) for items in given.sets.values() for item in clips.seconds(items)[0].items()]
    seconds = {(items.split, items.name(i)): duration for items, i, duration in known}
    drawn = [seconds.get(("train", name), 0.0) for name in ids_of(batch)]
    rates = {header.rate for header in clips.headers.values()} | {given.hparams.get("sample_rate")}
    for lengths in [sequences_of(batch, key)[1] for key in keys] if all(drawn) else ():
        for rate in filter(None, rates) if lengths is not None and len(lengths) == len(drawn) else ():
            if all(abs(int(samples) - last * rate) <= 2 for samples, last in zip(lengths, drawn)):
                return seconds, drawn
    return {}, []


def _frames(given, drawn, taken):
    """By number of seconds, the most frames that CTC gets for so much audio, in the first batch."""
    speeds = [part.speeds for _, part in parts(given.brain) if isinstance(part, SpeedPerturb)]
    stretch = max((max(each) / min(each) for each in speeds), default=1.0)
    found = {}
    for call in [one.call for one in taken if drawn and one.call.name == "ctc_loss"]:
        frames = torch.as_tensor(call.options["input_lengths"]).reshape(-1).tolist()
        for last, count in zip(drawn * (len(frames) // len(drawn)), frames) if len(frames) % len(drawn) == 0 else ():
            found[last] = max(found.get(last, 0.0), count * stretch)
    return found
