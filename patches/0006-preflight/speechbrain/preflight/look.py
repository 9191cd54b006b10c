"""Shows what the model hears: the first batch as WAV files, and a picture of it and of the sets."""

import re
import textwrap
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import soundfile
import torch
from speechbrain.preflight.checks.audio import expected_rate
from speechbrain.preflight.observe.given import hooked, ids_of
from speechbrain.preflight.observe.items import is_audio
from speechbrain.preflight.observe.not_finite import tensors
from speechbrain.utils.distributed import if_main_process

WRITTEN, DRAWN = 16, 8  # clips as files, and in the picture
LEAST, CHANNELS = 2000, 8  # samples of a waveform, which an embedding does not have, and channels at most
CHANGES = re.compile("augment|resampl|perturb", re.IGNORECASE)  # modules that change a waveform before the model gets it
CLASSES = 20  # each has a bar of its own if there are at most so many
LONG = 4.0  # seconds of clips that need wide axes
RANGE = 80  # dB in a spectrogram
FONTS = re.compile("CJK|Noto Sans|Unicode|Hei|Gothic|PingFang")  # the names of fonts that have many signs


@contextmanager
def hearing(given):
    """Yield a list that gets the waveform that the first module after the augmentations gets, or None if it gets none."""
    heard, inside = [], []

    def before(module, arguments):
        if CHANGES.search(f"{type(module).__module__}.{type(module).__name__}"):
            inside.append(module)
        elif not heard and not inside:
            first = [value for value in arguments[:1] if isinstance(value, torch.Tensor) and value.is_floating_point()]
            heard.extend(value.detach().float().cpu().clone() if _is_waveform(value) else None for value in first)

    def after(module, arguments, output):
        if module in inside:
            inside.remove(module)

    with hooked(given.brain, before, after) if given.look else nullcontext():
        yield heard


def _is_waveform(tensor):
    shape = tensor.shape[1:]
    return len(shape) in (1, 2) and max(shape) >= LEAST and (len(shape) == 1 or min(shape) <= CHANNELS)


def look(folder, seen, heard, log):
    """Write the WAV files and the picture, and say so."""
    known = [one for one in heard if one is not None]
    known += [tensor.detach().float().cpu() for _, tensor in tensors(seen.start.batch) if _is_waveform(tensor)]
    if not known or not if_main_process():
        log.said += ["--look: neither the first module nor the first batch has a waveform."] * (not known)
        return
    clips = list(_clips(known[0], seen))
    rates = [expected_rate(seen.given), *(header.rate for header in seen.clips.headers.values()), 16000]
    rate = int(next(filter(None, rates)))
    for number, (name, text, samples) in enumerate(clips[:WRITTEN], 1):
        name = re.sub(r"[^\w.-]+", "_", f"{name} {text}")[:50].strip("._")
        soundfile.write(folder / f"{number:02} {name}.wav", samples / max(1.0, np.abs(samples).max()), rate)
    _draw(folder / "look.png", clips[:DRAWN], rate, [*_graphs(seen)])
    log.said.append(f"--look: look.png and {min(len(clips), WRITTEN)} WAV files, at {rate} Hz, are in {folder}.")


def _clips(wave, seen):
    """Yield each clip of the first batch and its copies: the id, the text, and the samples [T, channels] without padding."""
    ids = ids_of(seen.start.batch)
    ids = ids if ids and len(wave) % len(ids) == 0 else [str(i) for i in range(len(wave))]
    texts = _texts(seen, {*ids})
    for i, name in enumerate(ids):
        for copy, samples in enumerate(wave[i :: len(ids)]):
            samples = (samples[:, None] if samples.dim() == 1 else samples.T if len(samples) <= CHANNELS else samples).numpy()
            end = max(np.flatnonzero(samples.any(1)), default=0) + 1
            yield name + f" (copy {copy})" * (copy > 0), texts.get(name, ""), samples[:end]


def _texts(seen, ids):
    """By id, the values of the manifest from which an item is made, except its audio files: labels or a transcript."""
    items = seen.given.sets.get("train")
    chosen = [static for static in map(items.static, range(len(items))) if str(static.get("id")) in ids] if items else []
    keys = [key for key in items.needed() if key != "id"] if chosen else []
    values = {str(static["id"]): [static[key] for key in keys if key in static] for static in chosen}
    return {name: " ".join(str(value) for value in of if not is_audio(value)) for name, of in values.items()}


def _graphs(seen):
    """Yield graphs of the sets: a title, what the axes show, and by set the values (a list), or how often each is there."""
    lengths, rates = {split: [*seen.clips.seconds(items)[0].values()] for split, items in seen.given.sets.items()}, {}
    if any(lengths.values()):
        yield "Durations", "s", "items", lengths
    for key in seen.labels.targets:
        columns = {split: column for (split, outer), column in seen.labels.columns.items() if outer == key}
        counts = {split: Counter(map(of.say, range(len(of.values)))) for split, of in columns.items()}
        if max(map(len, counts.values()), default=0) <= CLASSES:
            yield f"Classes ({key})", "items", "", counts
        else:
            yield f"Items of each class ({key})", "items", "classes", {split: [*of.values()] for split, of in counts.items()}
    for key in [one.key for one in seen.sequences.taken if one.key and one.call.name != "embedding"][:1]:
        for split in ("train", "valid"):
            rows, seconds = seen.sequences.rows.get((split, key), {}), seen.sequences.seconds
            timed = ((len(row), seconds.get((split, name))) for name, row in rows.items())
            rates[split] = [count / length for count, length in timed if length]
        if any(rates.values()):
            yield f"Speaking rates ({key})", "tokens per second", "items", rates


def _draw(path, clips, rate, graphs):
    """Draw the clips, and below them the graphs of the sets."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    longest = max(len(samples) for *_, samples in clips) / rate
    columns = min(len(clips), 2 if longest > LONG else 4)
    rows = -(-len(clips) // columns)
    fonts = sorted({font.name for font in fontManager.ttflist if FONTS.search(font.name)})
    style = {"font.family": ["DejaVu Sans", *fonts], "font.size": 8, "text.parse_math": False}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about signs that no font has
        heights = [2.6 * rows, 3.4 * bool(graphs)]
        figure = Figure((14, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = figure.subfigures(2, 1, height_ratios=heights) if graphs else (figure, None)
        axes = top.subplots(2 * rows, columns, height_ratios=[1, 2] * rows, squeeze=False)
        for i, pair in enumerate(zip(axes[::2].flat, axes[1::2].flat)):
            if i < len(clips):
                _draw_clip(*pair, *clips[i], rate, longest, 170 // columns)
            else:
                [axis.remove() for axis in pair]
        for axis, graph in zip(bottom.subplots(1, max(2, len(graphs))) if graphs else (), [*graphs, None]):
            _draw_graph(axis, *graph) if graph else axis.remove()
        figure.align_ylabels()
        figure.savefig(path, dpi=100)


def _draw_clip(above, below, name, text, samples, rate, longest, width):
    """Draw the waveform and the spectrogram of a clip, under its id, length and label."""
    frames, channels = samples.shape
    peak, wave = float(np.abs(samples).max()), np.nan_to_num(samples[:, 0])
    about = f"{name}: {frames / rate:.2f} s" + f", first of {channels} channels" * (channels > 1)
    about += f", peak {peak:.3g} (the file is quieter)" * (peak > 1)
    text = textwrap.wrap(text, width, max_lines=2, placeholder=" ...")
    above.set_title("\n".join([textwrap.shorten(about, width, placeholder=" ..."), *text]), loc="left", fontsize=8)
    step = -(-frames // 1500)
    parts = np.array_split(wave, -(-frames // step))
    times = np.arange(len(parts)) * step / rate
    above.fill_between(times, [part.min() for part in parts], [part.max() for part in parts], linewidth=0.6)
    above.set(xlim=(0, longest), xticklabels=[], ylabel="amplitude")
    size = 2 ** round(np.log2(rate / 40))  # about 25 ms
    hop, window = max(size // 4, frames // 1500), torch.hann_window(size)
    spectrum = torch.stft(torch.from_numpy(wave), size, hop, window=window, pad_mode="constant", return_complex=True).abs()
    level = 20 * spectrum.clamp(min=1e-10).log10()
    where = (0, frames / rate, 0, rate / 2000)
    below.imshow(level, origin="lower", aspect="auto", extent=where, vmin=float(level.max()) - RANGE, cmap="magma")
    below.set(xlim=(0, longest), xlabel="s", ylabel="kHz")


def _draw_graph(axis, title, x, y, sets):
    """Draw a histogram of values, or how often each class is there."""
    if y:
        axis.hist([*sets.values()], 30, label=[f"{split}: {len(of)} {y}" for split, of in sets.items()])
        axis.yaxis.get_major_locator().set_params(integer=True)
    else:
        names = sorted(set().union(*sets.values()), key=lambda name: (-sum(of[name] for of in sets.values()), name))
        for i, (split, of) in enumerate(sets.items()):
            axis.barh([n + 0.4 * i - 0.2 for n in range(len(names))], [of[name] for name in names], 0.4, label=split)
        axis.set_yticks(range(len(names)), [textwrap.shorten(name, 24, placeholder="...") for name in names])
        axis.set_ylim(max(len(names), 6) - 0.5, -0.5)
    axis.set(xlabel=x, ylabel=y)
    axis.set_title(title, loc="left")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderpad=0)
