"""Checks the token sequences that speech recognizers and language models learn."""

import math
from itertools import pairwise

import torch
from speechbrain.preflight.checks.audio import unusual
from speechbrain.preflight.observe.calls import TRANSDUCER
from speechbrain.preflight.observe.sequences import SLACK
from speechbrain.preflight.report import Finding, some

CODES = {
    "lengths-not-relative": "lengths are absolute where relative ones (0 to 1) are expected, or the other way round",
    "token-outside": "a token is not one of the outputs of the model, or not one of the ids of an embedding",
    "token-is-blank": "a target of CTC or of a transducer contains the blank",
    "ctc-without-log-softmax": "ctc_loss gets values that are not log-probabilities",
    "more-labels-than-frames": "a CTC target has more labels (plus repeated ones) than its input has frames",
    "targets-as-inputs": "the decoder gets the tokens that it learns to predict, not shifted by one",
    "model-sees-targets": "scores depend on later targets: the decoder's mask is missing or wrong",
    "padding-in-loss": "the padding of shorter targets contributes to the loss",
    "last-token-ignored": "the loss ignores the token that ends all targets, for example because it equals the padding",
    "vocabulary-too-small": "the model has outputs that its tokenizer or label encoder cannot decode",
    "many-unknown": "more than a fifth of the tokens are the unknown token",
    "transcript-empty": "a target has no tokens",
    "encoders-disagree": "the training and the validation set map the same label to different ids",
    "speaking-rate": "a target has far more or far fewer tokens for each second of audio than the others",
}

SHOWN = 4  # items in a message
ALIGNED = ("ctc_loss", TRANSDUCER)  # losses that align targets with frames, and need a blank
OVER_TOKENS = ("nll_loss", "kl_div", "cross_entropy")
LOSSES = (*ALIGNED, *OVER_TOKENS)
SPECIAL, SPECIALS = ("_index", "_idx", "_id"), 4  # how hparams of BOS, EOS, padding and blank end; how many there are
LEAK = 0.01  # a smaller share of the gradient may come from normalization over positions
UNKNOWN = 0.2
PADDED, FOREIGN = 0.1, 0.5  # shares of the outputs that cannot be decoded: up to here, or from here, it is no accident
RATES = 6  # times the usual number of tokens for each second
FEWEST = 20  # items that a comparison with the usual needs


def _calls(seen, *names):
    """The calls of these names; of several with the same key, the first."""
    found = [one for one in seen.sequences.taken if one.call.name in names]
    return [*{(one.call.name, one.call.size, one.key or id(one)): one for one in reversed(found)}.values()][::-1]


def _rows(seen, *names):
    """Yield each call of these names, each set, its place in the report, and its tokens by item: of all or the first batch."""
    for one in _calls(seen, *names):
        known = [(one, split, f"{split} {key}", rows) for (split, key), rows in seen.sequences.rows.items() if key == one.key]
        yield from known or [(one, "train", f"train {one.key}, first batch" if one.key else "train, first batch", one.rows)]


def _known(seen, one, split="train"):
    """The tokenizers and label encoders of a call's targets."""
    return seen.sequences.vocabularies.get((split, one.key), ())


def _finding(level, code, what, where, names, remedy):
    """A finding about some items."""
    return Finding(level, code, what, f"{where}: {some(names, SHOWN)}", remedy)


def lengths(seen):
    """Yield lengths that are not of the kind that is expected."""
    for one in _calls(seen, *ALIGNED):
        frames = one.call.scores.shape[0 if one.call.name == "ctc_loss" else 1]
        for which, steps in (("input", frames), ("target", one.call.ids.shape[-1] if one.call.ids.dim() > 1 else 0)):
            given = torch.as_tensor(one.call.options[f"{which}_lengths"]).reshape(-1)
            most = int(given.max()) if given.numel() else 0
            cut = which == "input" and len(given) > 1 and most == 1  # relative lengths as integers
            if steps > 1 and (most > steps or cut):
                what = f"{one.call.name} gets {which} lengths up to {most}, but the {which} has {steps} steps"
                remedy = "pass numbers of steps to torch's losses, and relative lengths, 0 to 1, to SpeechBrain's"
                yield Finding("error", "lengths-not-relative", what, f"{one.call.name}, {which} lengths", remedy)
            least = _shortest(seen, one, which, steps) if steps > 1 and 0 < most == given.min() == steps else steps
            if least < steps - SLACK * (which == "input"):
                what = f"all {which} lengths are {steps}, but without padding, one {which} has only {least:.0f} steps"
                level, remedy = "error" if which == "target" else "warning", "pass the lengths that the batch has for it"
                yield Finding(level, "lengths-not-relative", what, f"{one.call.name}, {which} lengths", remedy)
    for name, most in seen.step.lengths.items():
        if most > 1.01:
            what = f"this module takes relative lengths, 0 to 1, but gets {float(most):g}"
            remedy = "pass the lengths of the batch (batch.sig.lengths), not numbers of samples or frames"
            yield Finding("error", "lengths-not-relative", what, name, remedy)


def _shortest(seen, one, which, steps):
    """The fewest steps without padding: by the durations of the audio, or if shorter targets end with blanks; else all."""
    if which == "input":
        seconds = [seen.sequences.seconds.get(("train", name), 0.0) for name in one.names]
        return steps * min(seconds) / max(seconds) if all(seconds) else steps
    tokens = one.call.ids != one.call.options["blank"]
    counts = tokens.sum(1)
    padded = counts.max() == steps and torch.equal(tokens, torch.arange(steps, device=counts.device) < counts[:, None])
    return counts.min().item() if padded else steps


def outside(seen):
    """Yield tokens that are no output, or no id of an embedding."""
    names = {id(parameter): name for name, parameter in seen.given.modules.named_parameters()}
    for one, _, where, rows in _rows(seen, *LOSSES, "embedding"):
        allowed, has = {*range(one.call.size), one.call.options.get("ignore_index"), -100}, f"{one.call.name} gets outputs"
        if one.call.name == "embedding":
            has = f"{names.get(id(one.call.weight), 'an embedding').removesuffix('.weight')} has ids"
            allowed = range(one.call.size)
        bad = {name: tokens for name, row in rows.items() if (tokens := {*row}.difference(allowed))}
        if bad:
            tokens = some(map(str, sorted(set().union(*bad.values()))), SHOWN)
            what = f"{has} 0 to {one.call.size - 1}, but {len(bad)} of {len(rows)} items have other tokens: {tokens}"
            remedy = "make the layer as large as the vocabulary with BOS, EOS and blank, or use the model's own tokenizer"
            yield _finding("error", "token-outside", what, where, bad, remedy)


def blank(seen):
    """Yield targets that contain the blank."""
    for one, _, where, rows in _rows(seen, *ALIGNED):
        number = one.call.options["blank"]
        unknown = any(known.unknown == number for known in _known(seen, one))
        bad = [name for name, row in rows.items() if number in row]
        if bad:
            what = f"{len(bad)} of {len(rows)} items have the token {number}, which is the blank of {one.call.name}"
            what += " and the unknown token" * unknown
            level = "error" if len(bad) > len(rows) / 2 and not unknown else "warning"
            yield _finding(level, "token-is-blank", what, where, bad, "give the blank an id that no token has")


def log_softmax(seen):
    """Yield scores of CTC that are not log-probabilities."""
    for one in _calls(seen, "ctc_loss"):
        scores = one.call.scores.float()
        frames = torch.as_tensor(one.call.options["input_lengths"]).reshape(-1).to(scores.device)
        if scores.dim() != 3 or len(frames) != scores.shape[1]:
            continue
        sums = scores.logsumexp(-1)[torch.arange(len(scores), device=scores.device)[:, None] < frames]
        if sums.numel() and not sums.isnan().any() and (sums.abs() > 0.1).float().mean() > 0.5:
            what = f"the probabilities of all classes sum to {sums.median().exp():.3g}, not to 1"
            where = f"ctc_loss, input {' x '.join(map(str, scores.shape))}"
            remedy = "apply a log_softmax over the classes, its last dimension, before it"
            yield Finding("error", "ctc-without-log-softmax", what, where, remedy)


def _needed(row):
    """How many frames CTC needs for labels: one for each, and a blank between equal neighbors."""
    return len(row) + sum(a == b for a, b in pairwise(row))


def too_long(seen):
    """Yield targets that CTC cannot align with their frames."""
    for one, split, where, rows in _rows(seen, "ctc_loss"):
        frames = torch.as_tensor(one.call.options["input_lengths"]).reshape(-1).tolist()
        exact = dict(zip(one.rows, zip(map(_needed, one.rows.values()), frames))) if len(one.names) == len(one.rows) else {}
        all_of_batch = split == "train" and len(exact) > 1 and all(needed > there for needed, there in exact.values())
        most = {name: seen.sequences.most(split, name) for name in rows}
        found = {name: (_needed(row), int(most[name])) for name, row in rows.items() if most[name] < math.inf}
        found |= exact if split == "train" else {}
        bad = sorted((there - needed, name) for name, (needed, there) in found.items() if needed > there)
        if bad:
            zeroed = one.call.options.get("zero_infinity")
            effect = "so the loss leaves them out" if zeroed else "so the loss is infinite"
            what = f"at least {len(bad)} of {len(found)} items{', and all of the first batch,' * all_of_batch}"
            what += f" have fewer frames than CTC needs for their labels, {effect}"
            worst = (f"{name} (needs {found[name][0]}, has at most {found[name][1]})" for _, name in bad)
            level = "error" if not zeroed or all_of_batch or len(bad) > len(found) / 2 else "warning"
            remedy = "lower the encoder's strides (subsampling), use longer tokens, or remove these items"
            yield _finding(level, "more-labels-than-frames", what, where, worst, remedy)


def decoder(seen):
    """Yield decoders that get, or see, the tokens that they learn to predict."""
    inputs = [one for one in _calls(seen, "embedding") if one.key is not None]
    for one in _calls(seen, *OVER_TOKENS):
        leaks = one.call.leaks
        if leaks and min(leaks) > LEAK:  # an encoder of the same tokens may see all of them
            what = "the score of the first token depends on the tokens after it, which the model should predict"
            remedy = "give the decoder a causal mask (get_lookahead_mask), and only unidirectional layers"
            yield Finding("error", "model-sees-targets", what, f"{one.call.name}, targets {one.key or 'of the script'}", remedy)
        for given in inputs if one.inside is not None else ():
            same = given.ids.shape == one.ids.shape and (given.ids[:, 0] == one.ids[:, 0]).all()
            differ = ((given.ids != one.ids) & one.inside).sum(1) if same else None
            if same and one.inside.sum(1).float().mean() >= 3 and differ.max() <= 1:
                what = "the decoder gets the same tokens that the loss has as targets, so it learns to copy its input"
                remedy = "give the decoder the targets after BOS (tokens_bos), and the loss those before EOS (tokens_eos)"
                where = f"embedding {given.key}, {one.call.name} {one.key}"
                yield Finding("error", "targets-as-inputs", what, where, remedy)


def masks(seen):
    """Yield losses that count padding, or that ignore the last token of each target."""
    for one in _calls(seen, *OVER_TOKENS):
        if one.inside is None or one.call.trained is None or one.call.trained.numel() != one.ids.numel():
            continue
        trained, where = one.call.trained.cpu().reshape(one.ids.shape), f"{one.call.name}, targets {one.key}"
        counted = int((trained & ~one.inside).sum())
        if counted:
            what = f"{counted} of {int(trained.sum())} positions that contribute to the loss are padding"
            remedy = "pass the relative lengths of the targets to the loss, or set ignore_index to the padding"
            yield Finding("warning", "padding-in-loss", what, where, remedy)
        at = one.inside.sum(1).clamp(min=1)[:, None] - 1
        last = one.ids.gather(1, at).unique().tolist()
        if len(last) == 1 and len(at) > 1 and trained.any() and not trained.gather(1, at).any():
            what = f"all targets end with token {last[0]}, but the loss ignores it: the model never learns to stop"
            remedy = "give EOS and the padding (pad_idx, ignore_index) different ids"
            yield Finding("error", "last-token-ignored", what, where, remedy)


def vocabulary(seen):
    """Yield outputs that cannot be decoded."""
    special = {value for name, value in seen.given.hparams.items() if name.endswith(SPECIAL) and isinstance(value, int)}
    special.update(token for one in seen.sequences.taken for row in one.rows.values() for token in row)
    for one, known in [(call, known) for call in _calls(seen, *LOSSES) for known in _known(seen, call)]:
        size, ids = one.call.size, set(known.ids)
        more = set(range(size)) - ids - special - {one.call.options.get("blank")}
        if len(more) > max(SPECIALS, PADDED * size) and max(more) > max(ids, default=0):
            what = (
                f"the model has {size} outputs, but the vocabulary has {len(ids)} tokens: output {max(more)} cannot be decoded"
            )
            level = "warning" if len(more) > FOREIGN * size else "note"
            remedy = "give the model as many outputs as the vocabulary has tokens"
            yield Finding(level, "vocabulary-too-small", what, f"{one.call.name}, targets {one.key}", remedy)


def unknown(seen):
    """Yield sets with many unknown tokens."""
    found = {}
    for one, split, where, rows in _rows(seen, *LOSSES):
        inner = [token for row in rows.values() for token in row[1:-1]]  # without BOS and EOS
        for known in _known(seen, one, split) if len(inner) >= FEWEST else ():
            share = inner.count(known.unknown) / len(inner)
            if share > UNKNOWN:
                what = f"{share:.0%} of the tokens are the unknown token ({known.unknown})"
                worst = sorted(rows, key=lambda name: -rows[name].count(known.unknown))
                remedy = "normalize the text (case, punctuation) as for the tokenizer's training, or train another tokenizer"
                found.setdefault(split, _finding("warning", "many-unknown", what, where, worst, remedy))
    yield from found.values()


def empty(seen):
    """Yield targets without tokens."""
    for _, _, where, rows in _rows(seen, *LOSSES):
        ends = len(rows) >= FEWEST and len({row[-1] for row in rows.values() if row}) == 1  # an EOS
        least = int(ends and max(map(len, rows.values())) > 1)
        bad = [name for name, row in rows.items() if len(row) <= least]
        if bad:
            what = f"{len(bad)} of {len(rows)} targets have no tokens" + least * " except EOS"
            level = "error" if len(bad) == len(rows) else "warning"
            yield _finding(level, "transcript-empty", what, where, bad, "remove these items, or fix their transcripts")


def encoders(seen):
    """Yield label encoders of the two sets that map shared labels differently."""
    for (split, key), mine in seen.sequences.vocabularies.items():
        its = seen.sequences.vocabularies.get(("valid", key), ())
        if split != "train" or len(mine) != 1 or len(its) != 1:
            continue
        mine, its = mine[0].labels, its[0].labels
        shared = [label for label in mine if label in its]
        differ = [label for label in shared if mine[label] != its[label]]
        if differ:
            first = differ[0]
            what = f"{len(differ)} of {len(shared)} labels have other ids in the validation set: {first!r} is {mine[first]}"
            what += f" in train, and {its[first]} in valid"
            yield Finding("error", "encoders-disagree", what, key, "use the training set's label encoder for both sets")


def speaking_rate(seen):
    """Yield targets whose number of tokens does not fit the duration of their audio."""
    done = set()
    for _, split, where, rows in _rows(seen, *LOSSES):
        seconds = {name: seen.sequences.seconds.get((split, name), 0.0) for name in rows}
        rates = {name: len(row) / seconds[name] for name, row in rows.items() if row and seconds[name]}
        if split in done or len(rates) < FEWEST:
            continue
        done.add(split)
        usual, far = unusual(rates, RATES)
        if far:
            what = f"{len(far)} of {len(rates)} items are far from the usual {usual:.2g} tokens per second"
            worst = (f"{name} ({len(rows[name])} in {seconds[name]:.3g} s)" for name in far)
            remedy = "listen to them: their transcripts may belong to other files"
            yield _finding("note", "speaking-rate", what, where, worst, remedy)


RULES = (lengths, outside, blank, log_softmax, too_long, decoder, masks, vocabulary, unknown, empty, encoders, speaking_rate)
