"""Mistakes in token sequences are reported, before the first epoch and for every item; healthy twins stay quiet."""

import copy
import io

import numpy as np
import pytest
import sentencepiece
import soundfile
import speechbrain as sb
import torch
import torchaudio
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.nnet import losses
from speechbrain.nnet.pooling import StatisticsPooling
from speechbrain.preflight.__main__ import Takeover
from speechbrain.preflight.checks import sequences
from torch.nn import GRU, Conv1d, Embedding, Linear

BLANK, BOS, EOS, LETTERS = 0, 1, 2, "abcdefgh"
SIZE = 3 + len(LETTERS)
RATE = 8000
CODES = {}
TOKENIZER = {"__name__": "transformers.stub"}
exec(
    """class Tokenizer:
    unk_token_id = 11

    def __len__(self):
        return 12

    def convert_tokens_to_ids(self, word):
        return [3 + "abcdefgh".index(letter) if letter.islower() else 11 for letter in word]
""",
    TOKENIZER,
)


class Run:
    """A small recognizer with a CTC head and a decoder: its data, modules and losses."""

    def __init__(self, folder):
        self.folder = folder
        draw = np.random.default_rng(0)
        self.words = {f"{split}{i}": "".join(draw.permutation(list(LETTERS))[: 3 + i % 5]) for split in "tv" for i in range(24)}
        self.seconds = {name: 0.1 * len(word) for name, word in self.words.items()}
        self.modules = {
            "encoder": Conv1d(1, 8, 400, 200, padding=200),
            "pool": StatisticsPooling(),
            "ctc": Linear(8, SIZE),
            "embed": Embedding(SIZE, 8),
            "decoder": GRU(8, 8, batch_first=True),
            "head": Linear(8, SIZE),
        }
        self.hparams = {"sample_rate": RATE}
        self.tokens = lambda word: [3 + LETTERS.index(letter) for letter in word]
        self.tokens_of_valid = None
        self.shift = lambda tokens: [BOS, *tokens]
        self.inputs = lambda batch: batch.tokens_bos.data
        self.encode = lambda run, sig: torch.relu(run.encoder(sig.data[:, None])).transpose(1, 2)
        self.decode = lambda run, embedded: run.decoder(embedded)[0]
        self.ctc_scores = lambda scores: scores.log_softmax(-1)
        self.ctc = lambda scores, batch: losses.ctc_loss(
            scores, batch.tokens.data, batch.sig.lengths, batch.tokens.lengths, BLANK
        )
        self.nll = lambda scores, batch: losses.nll_loss(scores, batch.tokens_eos.data, batch.tokens_eos.lengths)
        self.lengths = lambda batch: batch.sig.lengths

    def dataset(self, split):
        encode = (split == "v" and self.tokens_of_valid) or self.tokens
        items = {name: {"wav": str(self.folder / f"{name}.wav"), "word": word} for name, word in self.words.items()}
        for name, item in items.items():
            if name.startswith(split):
                sound = np.random.default_rng([*map(ord, name)]).normal(0, 0.1, round(self.seconds[name] * RATE))
                soundfile.write(item["wav"], sound, RATE)

        def text(word):
            tokens = encode(word)
            yield torch.LongTensor(tokens)
            yield torch.LongTensor(self.shift(tokens))
            yield torch.LongTensor([*tokens, EOS])

        made = DynamicItemDataset({name: item for name, item in items.items() if name.startswith(split)})
        made.add_dynamic_item(sb.dataio.dataio.read_audio, "wav", "sig")
        made.add_dynamic_item(text, "word", ["tokens", "tokens_bos", "tokens_eos"])
        made.set_output_keys(["id", "sig", "tokens", "tokens_bos", "tokens_eos"])
        return made

    def report(self):
        run = self

        class Recognizer(sb.Brain):
            def compute_forward(self, batch, stage):
                encoded = run.encode(self.modules, batch.sig)
                pooled = self.modules.pool(encoded, run.lengths(batch))[:, :, :8]
                decoded = run.decode(self.modules, self.modules.embed(run.inputs(batch)))
                ctc, scores = self.modules.ctc(encoded), self.modules.head(decoded + pooled)
                return run.ctc_scores(ctc), scores.log_softmax(-1)

            def compute_objectives(self, predictions, batch, stage):
                return run.ctc(predictions[0], batch) + run.nll(predictions[1], batch)

        torch.manual_seed(0)
        brain = Recognizer(copy.deepcopy(self.modules), lambda p: torch.optim.SGD(p, 0.1), self.hparams, {"device": "cpu"})
        loader = {"batch_size": 4}
        sets = self.dataset("t"), self.dataset("v")
        return Takeover().run(lambda: brain.fit(range(1), *sets, train_loader_kwargs=loader, valid_loader_kwargs=loader))


CASES = []


def broken(code, level, *words, also=()):
    """Register a function that breaks a Run; ``words`` are in the finding, ``also`` lists codes that it may have beside it."""

    def register(change):
        CASES.append(pytest.param(change, code, level, words, also, id=f"{code}: {change.__name__}"))
        return change

    return register


@broken("lengths-not-relative", "error", "input lengths up to 525", "25 steps")
def ctc_with_absolute_input_lengths(run):
    run.ctc = lambda scores, batch: losses.ctc_loss(
        scores, batch.tokens.data, (batch.sig.lengths * 21).round(), batch.tokens.lengths, BLANK
    )


@broken("lengths-not-relative", "error", "target lengths up to 36", "6 steps")
def ctc_with_absolute_target_lengths(run):
    run.ctc = lambda scores, batch: losses.ctc_loss(
        scores, batch.tokens.data, batch.sig.lengths, (batch.tokens.lengths * 6).round(), BLANK
    )


@broken("lengths-not-relative", "error", "input lengths up to 1")
def torch_ctc_with_relative_lengths(run):
    run.ctc = lambda scores, batch: torch.nn.functional.ctc_loss(
        scores.transpose(0, 1), batch.tokens.data, batch.sig.lengths.int(), (batch.tokens.lengths * 6).round().int()
    )


@broken("lengths-not-relative", "error", "all target lengths are 6, but without padding, one target has only 3 steps", "ctc")
def ctc_with_target_lengths_of_one(run):
    run.ctc = lambda scores, batch: losses.ctc_loss(
        scores, batch.tokens.data, batch.sig.lengths, torch.ones_like(batch.tokens.lengths), BLANK
    )


@broken("lengths-not-relative", "error", "all target lengths are 6", "transducer_loss, target lengths", also=("first-loss",))
def transducer_with_target_lengths_of_one(run):
    transducer(run, lengths=torch.ones_like)


@broken("lengths-not-relative", "warning", "all input lengths are 25, but without padding, one input has only 12")
def ctc_with_input_lengths_of_one(run):
    run.ctc = lambda scores, batch: losses.ctc_loss(
        scores, batch.tokens.data, torch.ones_like(batch.sig.lengths), batch.tokens.lengths, BLANK
    )


@broken("lengths-not-relative", "error", "pool", "gets 4800")
def pooling_with_absolute_lengths(run):
    run.lengths = lambda batch: batch.sig.lengths * batch.sig.data.shape[1]


@broken("token-outside", "error", "ctc_loss gets outputs 0 to 9", "other tokens: 10", "5 of 24", "t4")
def too_few_outputs(run):
    run.modules["ctc"] = Linear(8, SIZE - 1)
    run.words = {name: "".join(sorted(set(word) - {"h"})) + "h" * (name in LATE) for name, word in run.words.items()}


@broken("token-outside", "error", "embed has ids 0 to 9", "other tokens: 10", "tokens_bos", "t4")
def too_few_embeddings(run):
    run.modules["embed"] = Embedding(SIZE - 1, 8)
    run.words = {name: "".join(sorted(set(word) - {"h"})) + "h" * (name in LATE) for name, word in run.words.items()}


LATE = ("t4", "t9", "t12", "t20", "t21")


@broken("token-outside", "error", "embed has ids 0 to 1", "tokens_bos")
def first_batch_beyond_the_embeddings(run):
    run.modules["embed"] = Embedding(2, 8)


@broken("token-outside", "error", "ctc_loss gets outputs 0 to 10", "other tokens: -1")
def negative_label(run):
    encode = run.tokens
    run.modules["embed"] = Embedding(SIZE + 1, 8)
    run.inputs = lambda batch: batch.tokens_bos.data.clamp(min=0)
    run.tokens = lambda word: [-1, *encode(word)[1:]] if word == run.words["t9"] else encode(word)


@broken("token-is-blank", "warning", "token 0, which is the blank of ctc_loss", "1 of 24", "t9")
def blank_in_one_target(run):
    encode = run.tokens
    run.tokens = lambda word: [BLANK, *encode(word)[1:]] if word == run.words["t9"] else encode(word)


@broken("token-is-blank", "error", "token 3, which is the blank of", "transducer_loss", "of 24 items")
def blank_of_a_transducer_is_a_letter(run):
    transducer(run, blank=3)


@broken(
    "token-is-blank",
    "error",
    "token 3, which is the blank of",
    "transducer_loss",
    "of 24 items",
    also=("first-loss", "first-step-failed"),
)
def blank_of_speechbrains_transducer_is_a_letter(run):
    def transducer_loss(logits, targets, input_lens, target_lens, blank_index):  # as SpeechBrain's, which needs a GPU
        return logits.log_softmax(-1).mean()

    run.ctc = lambda scores, batch: transducer_loss(
        scores[:, :, None].expand(-1, -1, batch.tokens.data.shape[1] + 1, -1),
        batch.tokens.data,
        (batch.sig.lengths * scores.shape[1]).round().int(),
        (batch.tokens.lengths * batch.tokens.data.shape[1]).round().int(),
        3,
    )


@broken("ctc-without-log-softmax", "error", "ctc_loss, input 25 x 4 x 11", also=("first-loss",))
def ctc_of_logits(run):
    run.ctc_scores = lambda scores: scores


@broken("more-labels-than-frames", "error", "and all of the first batch, have fewer frames", "t2 (needs 5, has at most 3)")
def strides_too_large(run):
    run.modules["encoder"] = Conv1d(1, 8, 1200, 1200)


@broken("more-labels-than-frames", "warning", "at least 1 of 24", "t12 (needs 24, has at most 22)")
def one_item_is_a_little_too_short(run):
    run.words["t12"] = "abcdefgh" * 3


@broken("more-labels-than-frames", "warning", "at least 1 of 24", "t12 (needs 40,", also=("speaking-rate",))
def one_item_is_too_short(run):
    run.words["t12"] = "abcdefgh" * 5


@broken("model-sees-targets", "error", "nll_loss, targets tokens_eos")
def bidirectional_decoder(run):
    run.modules["decoder"] = GRU(8, 4, batch_first=True, bidirectional=True)


@broken("targets-as-inputs", "error", "embedding tokens_eos, nll_loss tokens_eos")
def unshifted_inputs(run):
    run.inputs = lambda batch: batch.tokens_eos.data


@broken("targets-as-inputs", "error", "embedding tokens_bos, nll_loss tokens_bos")
def unshifted_in_the_pipeline(run):
    run.shift = lambda tokens: [*tokens, EOS]


@broken("padding-in-loss", "warning", "positions that contribute to the loss are padding", "nll_loss, targets tokens_eos")
def no_lengths(run):
    run.nll = lambda scores, batch: losses.nll_loss(scores, batch.tokens_eos.data)


@broken("padding-in-loss", "warning", "cross_entropy, targets tokens_eos")
def flat_cross_entropy_without_ignore_index(run):
    run.nll = lambda scores, batch: torch.nn.functional.cross_entropy(
        scores.reshape(-1, SIZE), batch.tokens_eos.data.reshape(-1)
    )


@broken(
    "last-token-ignored", "error", "token 2, but the loss ignores it", "kl_div, targets tokens_eos", also=("padding-in-loss",)
)
def padding_is_eos(run):
    run.nll = lambda scores, batch: losses.kldiv_loss(scores, batch.tokens_eos.data, None, 0.1, pad_idx=EOS)


@broken("vocabulary-too-small", "note", "16 outputs", "the vocabulary has 11 tokens", "output 15 cannot be decoded")
def more_outputs_than_labels(run):
    encoder = encoded(run)
    assert len(encoder) == 11
    run.modules["ctc"] = Linear(8, 16)


@broken("vocabulary-too-small", "warning", "30 outputs", "the vocabulary has 12 tokens", "output 29 cannot be decoded")
def more_outputs_than_pieces(run):
    pieces(run)
    run.modules["ctc"] = Linear(8, 30)


@broken("many-unknown", "warning", "of the tokens are the unknown token (11)")
def another_case(run):
    encoder = encoded(run)
    encoder.add_unk()
    for module, size in (("ctc", Linear(8, 12)), ("embed", Embedding(12, 8)), ("head", Linear(8, 12))):
        run.modules[module] = size
    run.words = {name: word[:2] + word[2:].upper() for name, word in run.words.items()}


@broken("many-unknown", "warning", "of the tokens are the unknown token (11)")
def another_case_for_transformers(run):
    another_case(run)
    run.tokens = TOKENIZER["Tokenizer"]().convert_tokens_to_ids


@broken("transcript-empty", "warning", "2 of 24 targets have no tokens", "t9, t12")
def empty_transcripts(run):
    run.words |= {"t9": "", "t12": ""}


@broken("encoders-disagree", "error", "is 3 in train, and 10 in valid")
def an_encoder_for_each_set(run):
    run.tokens, run.tokens_of_valid = (made(letters).encode_sequence for letters in (LETTERS, LETTERS[::-1]))


@broken("speaking-rate", "note", "1 of 24 items", "t12 (40 in 4 s")
def a_transcript_of_another_file(run):
    run.seconds |= {f"{split}{i}": 4.0 for split in "tv" for i in range(24)}
    run.words["t12"] = "abcdefgh" * 5


def made(letters):
    encoder = CTCTextEncoder()
    encoder.insert_blank(BLANK)
    encoder.insert_bos_eos("<bos>", "<eos>", BOS, EOS)
    encoder.update_from_iterable(letters)
    return encoder


def encoded(run):
    encoder = made(LETTERS)
    run.tokens = encoder.encode_sequence
    return encoder


def pieces(run):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(run.words.values()),
        model_writer=model,
        vocab_size=12,
        model_type="char",
        pad_id=-1,
        minloglevel=2,
    )
    run.tokens = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode_as_ids
    for module, size in (("ctc", Linear(8, 12)), ("embed", Embedding(12, 8)), ("head", Linear(8, 12))):
        run.modules[module] = size


def transducer(run, blank=BLANK, lengths=lambda lengths: lengths):
    run.ctc = lambda scores, batch: torchaudio.functional.rnnt_loss(
        (scores[:, :, None] + scores[:, :1, None].expand(-1, -1, batch.tokens.data.shape[1] + 1, -1)).contiguous(),
        batch.tokens.data.int(),
        (batch.sig.lengths * scores.shape[1]).round().int(),
        (lengths(batch.tokens.lengths) * batch.tokens.data.shape[1]).round().int(),
        blank,
    )


def smoothed(run):
    run.nll = lambda scores, batch: losses.kldiv_loss(scores, batch.tokens_eos.data, None, 0.1, pad_idx=BLANK)


def ignoring(run):
    run.nll = lambda scores, batch: torch.nn.functional.cross_entropy(
        scores.transpose(1, 2), batch.tokens_eos.data, ignore_index=BLANK
    )


def perturbed(run):
    run.modules["speed"] = SpeedPerturb(RATE, [50, 100])  # played slowly, an item has twice as many frames
    run.words["t12"] = "abcdefgh" * 3  # of 0.5 s: 21 frames


def as_long(run):
    """All clips and targets have one length, so all lengths are 1."""
    run.words = {name: "".join(sorted(word)[:3]) for name, word in run.words.items()}
    run.seconds = dict.fromkeys(run.words, 0.5)


def crops(run):
    run.modules["encoder"] = Conv1d(1, 8, 1200, 1200)
    run.encode = lambda modules, sig: torch.relu(modules.encoder(sig.data[:, None].repeat(1, 1, 9))).transpose(1, 2)


def nothing(run):
    pass


HEALTHY = [nothing, encoded, pieces, transducer, smoothed, ignoring, perturbed, crops, as_long]


def report_of(folder, change, *_):
    run = Run(folder)
    change(run)
    return run.report()


@pytest.mark.parametrize("change, code, level, words, also", CASES)
def test_a_broken_run_is_reported(tmp_path, change, code, level, words, also):
    report = report_of(tmp_path, change)
    found = [finding for finding in report.findings if finding.code == code]
    texts = [finding.what + " " + finding.where for finding in found if finding.level == level]
    assert any(all(word in text for word in words) for text in texts), report.text()
    assert {finding.code for finding in report.findings} <= {code, *also}, report.text()
    assert not [said for said in report.said if "was checked" in said], report.said


@pytest.mark.parametrize("change", HEALTHY)
def test_a_healthy_run_is_quiet(tmp_path, change):
    report = report_of(tmp_path, change)
    assert not [finding for finding in report.findings if finding.code != "depends-on-batch"], report.text()
    assert not [said for said in report.said if "was checked" in said], report.said


def test_every_code_has_a_case():
    assert set(sequences.CODES) == {param.values[1] for param in CASES}
