"""Many kinds of healthy recipes have no findings."""

import numpy
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder, CTCTextEncoder
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models import ECAPA_TDNN, Xvector
from speechbrain.nnet import losses
from speechbrain.nnet.attention import RelPosEncXL
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import GRU, LSTM, AttentionalRNNDecoder
from speechbrain.preflight.__main__ import Takeover
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch.nn import functional as F

from brains import OPTIONS, sgd

RECIPES = []


def recipe(function):
    RECIPES.append(function)
    return function


class Brain(sb.Brain):
    """A Brain on the CPU that saves all its modules."""

    def __init__(self, folder, modules, hparams=None, opt_class=sgd, more=None, **options):
        checkpointer = Checkpointer(folder / "save", {**modules, **(more or {})})
        super().__init__(modules, opt_class, hparams or {}, {**OPTIONS, **options}, checkpointer)

    def start(self, train, valid, shuffle=True):
        loader = {"batch_size": 4}
        counter = EpochCounter(3)
        self.checkpointer.add_recoverable("counter", counter)
        self.fit(counter, train, valid, train_loader_kwargs={**loader, "shuffle": shuffle}, valid_loader_kwargs=loader)


def speech(folder, split, count=12):
    """A dataset of noise, with a speaker and a phrase for each item."""
    draw = numpy.random.default_rng(list(split.encode()))
    items = {}
    for number in range(count):
        path = folder / f"{split}{number}.wav"
        soundfile.write(path, 0.1 * draw.standard_normal(draw.integers(4000, 6000)), 16000)
        items[f"{split}{number}"] = {"wav": str(path), "speaker": f"s{(number * 5) % 4}", "phrase": "abcd"[number % 3 : 4]}
    dataset = DynamicItemDataset(items)
    dataset.add_dynamic_item(sb.dataio.dataio.read_audio, takes="wav", provides="sig")
    return dataset


def add(datasets, function, takes, *provides):
    for dataset in datasets:
        dataset.add_dynamic_item(function, takes, list(provides) if len(provides) > 1 else provides[0])
        dataset.set_output_keys(["id", "sig", *provides])


def feature_modules():
    norm = InputNormalization(norm_type="global", update_until_epoch=4)
    return {"features": Fbank(n_mels=20), "norm": norm}


def encoded(datasets, encoder):
    """Encode the phrases."""
    encoder.update_from_iterable("abcd", sequence_input=False)

    def encode(phrase):
        yield list(phrase)
        yield encoder.encode_sequence_torch(list(phrase))

    add(datasets, encode, "phrase", "letters", "tokens")
    return encoder


class Speech(Brain):
    def features(self, batch, epoch=1):
        wavs, lens = batch.sig
        return self.modules.norm(self.modules.features(wavs), lens, epoch=epoch), lens

    def pooled(self, batch):
        """Features that are averaged over time, without the padding."""
        feats, lens = self.features(batch)
        mask = length_to_mask(lens * feats.shape[1], feats.shape[1])[..., None]
        return (feats * mask).sum(1) / mask.sum(1)


@recipe
def ctc(folder):
    class CTC(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            return self.modules.out(self.modules.encoder(feats)[0]).log_softmax(-1), lens

        def compute_objectives(self, predictions, batch, stage):
            tokens, token_lens = batch.tokens
            return losses.ctc_loss(*(predictions[0], tokens, predictions[1], token_lens), blank_index=0)

    train, valid = speech(folder, "train"), speech(folder, "valid")
    encoder = CTCTextEncoder()
    encoder.insert_blank(index=0)
    encoded([train, valid], encoder)
    modules = {**feature_modules(), "encoder": GRU(16, input_size=20), "out": Linear(5, input_size=16)}
    CTC(folder, modules, {"label_encoder": encoder}).start(train, valid)


@recipe
def transducer(folder):
    class Transducer(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            acoustic = self.modules.encoder(feats)[0]
            text = self.modules.predictor(self.modules.embedding(F.pad(batch.tokens.data, (1, 0))))[0]
            joint = acoustic[:, :, None] + text[:, None]
            return self.modules.out(joint.tanh()).log_softmax(-1), self.modules.ctc(acoustic).log_softmax(-1), lens

        def compute_objectives(self, predictions, batch, stage):
            joint, by_ctc, lens = predictions
            tokens, token_lens = batch.tokens
            blank = joint[..., 0].mean()
            emit = joint[:, :, :-1].gather(-1, tokens[:, None, :, None].expand(-1, joint.shape[1], -1, 1)).mean()
            return -blank - emit + 0.3 * losses.ctc_loss(by_ctc, tokens, lens, token_lens, blank_index=0)

    train, valid = speech(folder, "train"), speech(folder, "valid")
    encoder = CTCTextEncoder()
    encoder.insert_blank(index=0)
    encoded([train, valid], encoder)
    modules = {
        **feature_modules(),
        "encoder": LSTM(16, input_size=20),
        "embedding": Embedding(5, consider_as_one_hot=True, blank_id=0),
        "predictor": GRU(16, input_size=4),
        "out": Linear(5, input_size=16),
        "ctc": Linear(5, input_size=16),
    }
    Transducer(folder, modules, {"label_encoder": encoder}, grad_accumulation_factor=3).start(train, valid)


@recipe
def seq2seq(folder):
    class Seq2Seq(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            states = self.modules.encoder(feats)[0]
            embedded = self.modules.embedding(F.pad(batch.tokens.data, (1, 0)))
            out, _ = self.modules.decoder(embedded, states, lens)
            return self.modules.out(out).log_softmax(-1)

        def compute_objectives(self, predictions, batch, stage):
            tokens, token_lens = batch.tokens
            return losses.nll_loss(predictions[:, :-1], tokens, token_lens, label_smoothing=0.1)

    train, valid = speech(folder, "train"), speech(folder, "valid")
    encoder = sb.dataio.encoder.TextEncoder()
    encoder.insert_bos_eos(bos_index=0)
    encoded([train, valid], encoder)
    decoder = AttentionalRNNDecoder("gru", "location", 16, 8, 1, 16, 6, channels=4, kernel_size=5)
    modules = {
        **feature_modules(),
        "encoder": GRU(16, input_size=20),
        "embedding": Embedding(8, embedding_dim=6),
        "decoder": decoder,
        "out": Linear(8, input_size=16),
    }
    Seq2Seq(folder, modules, {"label_encoder": encoder}).start(train, valid)


def texts(split, length=12):
    draw = numpy.random.default_rng(list(split.encode()))
    data = {f"{split}{i}": {"text": draw.integers(1, 9, draw.integers(4, 8)).tolist()} for i in range(length)}
    dataset = DynamicItemDataset(data)
    dataset.add_dynamic_item(torch.tensor, "text", "tokens")
    dataset.add_dynamic_item(lambda text: torch.tensor([9 - token for token in dict.fromkeys(text)]), "text", "phonemes")
    dataset.set_output_keys(["id", "tokens", "phonemes"])
    return dataset


@recipe
def grapheme_to_phoneme(folder):
    class G2P(Brain):
        def compute_forward(self, batch, stage):
            states = self.modules.encoder(self.modules.graphemes(batch.tokens.data), lengths=batch.tokens.lengths)[0]
            return self.modules.out(states).log_softmax(-1), self.modules.ctc(states).log_softmax(-1)

        def compute_objectives(self, predictions, batch, stage):
            seq, by_ctc = predictions
            ctc = losses.ctc_loss(by_ctc, *batch.phonemes[:1], batch.tokens.lengths, batch.phonemes.lengths, blank_index=0)
            return losses.nll_loss(seq, *batch.phonemes) + 0.1 * ctc

    modules = {
        "graphemes": Embedding(9, embedding_dim=8),
        "encoder": LSTM(8, input_size=8, bidirectional=True),
        "out": Linear(9, input_size=16),
        "ctc": Linear(9, input_size=16),
    }
    G2P(folder, modules).start(texts("train"), texts("valid"))


@recipe
def language_model(folder):
    class LM(Brain):
        def compute_forward(self, batch, stage):
            x = self.modules.embedding(F.pad(batch.tokens.data, (1, 0))[:, :-1])
            x = x + self.modules.position(x)[:, -x.shape[1] :]
            mask = self.modules.model.mask[: x.shape[1], : x.shape[1]]
            return self.modules.out(self.modules.model(x, mask=mask))

        def compute_objectives(self, predictions, batch, stage):
            return F.cross_entropy(predictions.transpose(1, 2), batch.tokens.data, ignore_index=0)

    model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    model.register_buffer("mask", torch.full((20, 20), float("-inf")).triu(1))  # in a mask, Inf is normal
    embedding, out = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9, bias=False)
    out.weight = embedding.weight  # tied
    modules = {"embedding": embedding, "position": RelPosEncXL(8), "model": model, "out": out}
    LM(folder, modules).start(texts("train"), texts("valid"))


@recipe
def voice_activity(folder):
    class VAD(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            return self.modules.out(self.modules.rnn(self.modules.cnn(feats.transpose(1, 2)).transpose(1, 2))[0])[..., 0], lens

        def compute_objectives(self, predictions, batch, stage):
            scores, lens = predictions
            targets = length_to_mask(lens * scores.shape[1] * 0.5, scores.shape[1]).float()
            return losses.bce_loss(scores, targets, lens, pos_weight=torch.tensor(2.0))

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    cnn = torch.nn.Sequential(torch.nn.Conv1d(20, 16, 3, padding=1), torch.nn.BatchNorm1d(16), torch.nn.LeakyReLU())
    VAD(folder, {**feature_modules(), "cnn": cnn, "rnn": GRU(8, input_size=16), "out": Linear(1, input_size=8)}).start(
        train, valid
    )


@recipe
def separation(folder):
    class Separation(Brain):
        def compute_forward(self, batch, stage):
            wavs = batch.sig.data
            mixture = wavs + wavs.flip(1)
            h = F.relu(self.modules.encoder(mixture[:, None]))
            masks = self.modules.masknet(h).chunk(2, 1)
            return torch.cat([self.modules.decoder(h * F.relu(mask)) for mask in masks], 1), torch.stack(
                [wavs, wavs.flip(1)], 1
            )

        def compute_objectives(self, predictions, batch, stage):
            estimated, targets = predictions
            length = min(estimated.shape[-1], targets.shape[-1])
            return losses.get_si_snr_with_pitwrapper(
                targets[..., :length].transpose(1, 2), estimated[..., :length].transpose(1, 2)
            )

        def fit_batch(self, batch):
            predictions = self.compute_forward(batch, sb.Stage.TRAIN)
            loss = self.compute_objectives(predictions, batch, sb.Stage.TRAIN)
            loss = loss[loss > -30].mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 5.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss.detach().cpu()

        def evaluate_batch(self, batch, stage):
            return self.compute_objectives(self.compute_forward(batch, stage), batch, stage).mean()

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    modules = {
        "encoder": torch.nn.Conv1d(1, 16, 16, 8, bias=False),
        "masknet": torch.nn.Sequential(torch.nn.BatchNorm1d(16), torch.nn.Conv1d(16, 32, 1), torch.nn.PReLU()),
        "decoder": torch.nn.ConvTranspose1d(16, 1, 16, 8, bias=False),
    }
    Separation(folder, modules).start(train, valid)


@recipe
def adversarial(folder):
    """Has two optimizers that are only attributes, weight norm, and a discriminator that is frozen for half of a step."""

    class GAN(Brain):
        def init_optimizers(self):
            self.optimizer_g = torch.optim.AdamW(self.modules.generator.parameters(), 2e-4)
            self.optimizer_d = torch.optim.AdamW(self.modules.discriminator.parameters(), 2e-4)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer_g, 0.9)  # wraps the optimizer's step
            self.checkpointer.add_recoverables({"optimizer_g": self.optimizer_g, "optimizer_d": self.optimizer_d})
            self.checkpointer.add_recoverable("scheduler", self.scheduler)

        def fit_batch(self, batch):
            real = batch.sig.data[:, None, :4000]
            made = self.modules.generator(torch.randn_like(real))
            self.optimizer_d.zero_grad()
            scores = [self.modules.discriminator(x) for x in (real, made.detach())]
            loss_d = F.mse_loss(scores[0], torch.ones_like(scores[0])) + F.mse_loss(scores[1], torch.zeros_like(scores[1]))
            loss_d.backward()
            self.optimizer_d.step()
            self.modules.discriminator.requires_grad_(False)
            self.optimizer_g.zero_grad()
            score = self.modules.discriminator(made)
            loss_g = F.mse_loss(score, torch.ones_like(score)) + F.l1_loss(made, real)
            loss_g.backward()
            self.optimizer_g.step()
            self.scheduler.step()
            self.modules.discriminator.requires_grad_(True)
            return (loss_g + loss_d).detach().cpu()

        def evaluate_batch(self, batch, stage):
            real = batch.sig.data[:, None, :4000]
            return F.l1_loss(self.modules.generator(torch.ones_like(real)), real)

    def stack(last):
        one = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(1, 8, 9, padding=4))
        two = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(8, 1, 9, padding=4))
        return torch.nn.Sequential(one, torch.nn.BatchNorm1d(8), torch.nn.LeakyReLU(), two, last)

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    GAN(folder, {"generator": stack(torch.nn.Tanh()), "discriminator": stack(torch.nn.Identity())}, opt_class=None).start(
        train, valid
    )


@recipe
def metric_gan(folder):
    """Calls fit again in on_stage_start."""

    class MetricGAN(Brain):
        def on_stage_start(self, stage, epoch=None):
            if stage == sb.Stage.TRAIN:
                self.fit(range(1), self.hparams.past)

        def compute_forward(self, batch, stage):
            return self.modules.model(batch.sig.data[:, None]).mean(-1)

        def compute_objectives(self, predictions, batch, stage):
            return F.mse_loss(predictions, torch.ones_like(predictions))

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    MetricGAN(folder, {"model": torch.nn.Conv1d(1, 2, 5)}, {"past": train}).start(train, valid)


@recipe
def clustering(folder, trainable=False):
    """Learns by counting: it has no optimizer, and its loss has no graph."""

    class Clustering(Brain):
        def compute_forward(self, batch, stage):
            return self.modules.model(batch.sig.data[:, None]).mean(-1)

        def compute_objectives(self, predictions, batch, stage):
            self.modules.centers.lerp_(predictions.detach().mean(0), 0.1)
            return self.modules.centers.norm().detach().requires_grad_()

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    brain = Clustering(folder, {"model": torch.nn.Conv1d(1, 2, 5)}, opt_class=None)
    brain.modules.requires_grad_(trainable)
    brain.modules.centers = torch.zeros(2)
    brain.start(train, valid)


@recipe
def clustering_with_trainable_parameters(folder):
    clustering(folder, trainable=True)


@recipe
def autoencoder(folder):
    class Autoencoder(Brain):
        def compute_forward(self, batch, stage):
            x = batch.sig.data[:, :4000].reshape(-1, 100)
            mean, log_var = self.modules.encoder(x).chunk(2, -1)
            return x, self.modules.decoder(mean + torch.randn_like(mean) * (log_var / 2).exp()), mean, log_var

        def compute_objectives(self, predictions, batch, stage):
            x, made, mean, log_var = predictions
            return F.mse_loss(made, x) + 1e-3 * (mean**2 + log_var.exp() - log_var - 1).mean()

    train, valid = speech(folder, "train"), speech(folder, "valid")
    add([train, valid], lambda speaker: speaker, "speaker", "who")
    Autoencoder(folder, {"encoder": Linear(16, input_size=100), "decoder": Linear(100, input_size=8)}).start(train, valid)


def speakers(folder):
    train, valid = speech(folder, "train"), speech(folder, "valid")
    encoder = CategoricalEncoder()

    def encode(speaker):
        yield speaker
        yield encoder.encode_label_torch(speaker)

    add([train, valid], encode, "speaker", "who", "label")
    for _ in range(2):  # the second time, it is loaded from the file
        encoder.load_or_create(str(folder / "label_encoder.txt"), from_didatasets=[train], output_key="who")
    return train, valid, encoder


@recipe
def speaker_template(folder):
    class Speaker(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            feats, lens = torch.cat([feats, feats * 0.9]), torch.cat([lens, lens])  # augmented
            return self.modules.classifier(self.modules.embedding_model(feats, lens)), lens

        def compute_objectives(self, predictions, batch, stage):
            scores, lens = predictions
            return losses.nll_loss(scores, torch.cat([batch.label.data] * 2), lens)

    train, valid, encoder = speakers(folder)
    classifier = Xvector.Classifier([None, None, 16], lin_blocks=1, lin_neurons=16, out_neurons=4)
    model = Xvector.Xvector(
        in_channels=20,
        tdnn_blocks=2,
        tdnn_channels=[16, 16],
        tdnn_kernel_sizes=[3, 1],
        tdnn_dilations=[1, 1],
        lin_neurons=16,
    )
    modules = {**feature_modules(), "embedding_model": model, "classifier": classifier}
    Speaker(folder, modules, {"label_encoder": encoder, "sample_rate": 16000}).start(train, valid)


@recipe
def speaker_with_a_margin(folder):
    """Trains ECAPA with an additive angular margin, so that the first loss is large."""

    class Speaker(Speech):
        def compute_forward(self, batch, stage):
            feats, lens = self.features(batch)
            return self.modules.classifier(self.modules.embedding_model(feats, lens)), lens

        def compute_objectives(self, predictions, batch, stage):
            return self.hparams.compute_cost(predictions[0], batch.label.data, predictions[1])

    train, valid, encoder = speakers(folder)
    model = ECAPA_TDNN.ECAPA_TDNN(20, channels=[8] * 5, attention_channels=8, res2net_scale=2, se_channels=8, lin_neurons=8)
    cost = losses.LogSoftmaxWrapper(losses.AdditiveAngularMargin(margin=0.2, scale=30))
    modules = {**feature_modules(), "embedding_model": model, "classifier": ECAPA_TDNN.Classifier(8, out_neurons=4)}
    Speaker(folder, modules, {"label_encoder": encoder, "compute_cost": cost}).start(train, valid)


class Tuning(Speech):
    """Trains a head on a small encoder."""

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.encoder(self.pooled(batch)))

    def compute_objectives(self, predictions, batch, stage):
        return F.cross_entropy(predictions, batch.label.data[:, 0])


def encoder():
    return torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 16))


def tuning_modules():
    return {**feature_modules(), "encoder": encoder(), "head": torch.nn.Linear(16, 4)}


@recipe
def loss_functions_used_as_metrics(folder):
    """Calls nll_loss with probabilities, and cross_entropy with labels that are no classes: neither is trained."""

    class Measuring(Tuning):
        def compute_objectives(self, predictions, batch, stage):
            labels = batch.label.data[:, 0]
            self.metrics = [F.nll_loss(predictions.softmax(-1), labels), F.cross_entropy(predictions.softmax(-1), labels)]
            self.metrics.append(F.cross_entropy(predictions * 0, labels * 0 - 100))
            return super().compute_objectives(predictions, batch, stage)

    train, valid, _ = speakers(folder)
    Measuring(folder, tuning_modules()).start(train, valid)


@recipe
def unfreezing_at_the_start_of_a_stage(folder):
    class Unfreezing(Tuning):
        def on_stage_start(self, stage, epoch=None):
            if stage == sb.Stage.TRAIN:
                self.modules.requires_grad_(True)

    train, valid, _ = speakers(folder)
    modules = tuning_modules()
    for module in modules.values():
        module.requires_grad_(False)
    Unfreezing(folder, modules).start(train, valid)


@recipe
def frozen_encoder_in_evaluation_mode(folder):
    class Frozen(Tuning):
        def compute_forward(self, batch, stage):
            self.modules.encoder.eval()
            with torch.no_grad():
                embeddings = self.modules.encoder(self.pooled(batch))
            return self.modules.head(embeddings)

    train, valid, _ = speakers(folder)
    modules = tuning_modules()
    modules["encoder"].requires_grad_(False)
    pretrained = encoder()
    pretrained.load_state_dict(tuning_modules()["head"].state_dict(), strict=False)  # into a module that is not trained
    wrapped = {f"module.{key}": value for key, value in pretrained.state_dict().items()}
    modules["encoder"].load_state_dict(wrapped, strict=False)  # this fails,
    modules["encoder"].load_state_dict({key[7:]: value for key, value in wrapped.items()})  # and this is right
    Frozen(folder, modules).start(train, valid)


@recipe
def two_optimizers_one_of_them_waiting(folder):
    """Freezes the encoder's optimizer in the first epochs."""

    class Waiting(Tuning):
        def init_optimizers(self):
            self.of_encoder = sgd(self.modules.encoder.parameters())
            self.of_head = sgd(self.modules.head.parameters())
            self.optimizers_dict = {"encoder": self.of_encoder, "head": self.of_head}

        def freeze_optimizers(self, optimizers):
            return {"head": optimizers["head"]}

    train, valid, _ = speakers(folder)
    Waiting(folder, tuning_modules(), opt_class=None, max_grad_norm=1e-3).start(train, valid)


@recipe
def hidden_optimizer(folder, at_the_end=False):
    """Has an optimizer that is no attribute, and that steps in fit_batch or in on_fit_batch_end."""

    class OwnStep(Tuning):
        def init_optimizers(self):
            optimizer = sgd(self.modules.parameters())
            self.train_on = lambda loss: (loss.backward(), optimizer.step(), optimizer.zero_grad())

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, sb.Stage.TRAIN), batch, sb.Stage.TRAIN)
            self.train_on(loss)
            return loss.detach()

    class AtTheEnd(Tuning):
        def init_optimizers(self):
            optimizer = sgd(self.modules.parameters())
            self.step_it = optimizer.step

        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            self.step_it()

    train, valid, _ = speakers(folder)
    cls = AtTheEnd if at_the_end else OwnStep
    cls(folder, tuning_modules(), opt_class=None).start(train, valid)


@recipe
def hidden_optimizer_in_a_hook(folder):
    hidden_optimizer(folder, at_the_end=True)


@recipe
def low_rank_adapters(folder):
    adapters = pytest.importorskip("speechbrain.nnet.adapters")  # not in 1.0.1

    class Adapters(Tuning):
        def compute_forward(self, batch, stage):
            self.modules.encoder.adapted_model[1].eval()
            return super().compute_forward(batch, stage)

    train, valid, _ = speakers(folder)
    modules = tuning_modules()
    modules["encoder"] = adapters.AdaptedModel(modules["encoder"], adapters.LoRA, all_linear=True, adapter_kwargs={"rank": 4})
    torch.nn.init.zeros_(modules["head"].weight)
    Adapters(folder, modules).start(train, valid)


@recipe
def checkpointed_activations(folder):
    """Has parameters that get gradients although they are not in the graph of the loss."""

    class Saving(Tuning):
        def compute_forward(self, batch, stage):
            x = self.pooled(batch).requires_grad_()
            return self.modules.head(torch.utils.checkpoint.checkpoint(self.modules.encoder, x, use_reentrant=True))

    train, valid, _ = speakers(folder)
    Saving(folder, tuning_modules()).start(train, valid)


@recipe
def resumed(folder):
    """Resumes a run from its checkpoint, which also contains a normaliser."""
    train, valid, _ = speakers(folder)
    modules = tuning_modules()
    brain = Tuning(folder, modules)
    brain.init_optimizers()
    modules["norm"](torch.randn(4, 9, 20), torch.ones(4), epoch=1)
    brain.checkpointer.add_recoverable("counter", EpochCounter(3))
    brain.checkpointer.save_checkpoint()
    Tuning(folder, modules).start(train, valid)


@recipe
def lazy(folder):
    class Silent(Tuning):
        def print_trainable_parameters(self):
            """Do nothing: on the stock release, the constructor would crash here."""

    train, valid, _ = speakers(folder)
    Silent(folder, {**tuning_modules(), "head": torch.nn.LazyLinear(4)}).start(train, valid)


@recipe
def bfloat16(folder):
    train, valid, _ = speakers(folder)
    Tuning(folder, tuning_modules(), precision="bf16").start(train, valid)


@recipe
def compiled(folder):
    train, valid, _ = speakers(folder)
    Tuning(folder, tuning_modules(), jit=True, jit_module_keys=["encoder"]).start(train, valid)


@pytest.mark.parametrize("start", RECIPES, ids=lambda start: start.__name__)
def test_a_healthy_recipe_has_no_findings(tmp_path, start):
    torch.manual_seed(0)
    report = Takeover().run(lambda: start(tmp_path))
    assert not report.findings, report.text()
    assert not [said for said in report.said if "was checked" in said], report.said
