"""preflight() as a function: training after it gives the same result as training without it."""

import gc
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy
import pytest
import torch
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.preflight import preflight
from speechbrain.preflight.observe.calls import Call, tokens_inside
from speechbrain.preflight.report import Finding, Report
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch.nn import Dropout, Linear, Sequential
from torch.nn import functional as F
from torch.utils.data import DataLoader

from brains import Classifier, body, data, head, normed, sgd

LOADER = {"batch_size": 8, "shuffle": True}
forks = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, nothing is forked")


class Noisy(Classifier):
    """Draws from every random state, and unfreezes a module in on_stage_start."""

    head = staticmethod(head)

    def on_stage_start(self, stage, epoch=None):
        self.modules.body.requires_grad_(True)
        self.hparams.seen.append((stage, epoch))

    def compute_forward(self, batch, stage):
        frames = torch.stack([batch[0], -batch[0]], 1)  # two frames, because 1.0.1 takes the standard deviation over them
        x = self.modules.norm(frames, torch.ones(len(frames)), epoch=1)[:, 0]
        x = x + torch.randn_like(x) * random.random() * numpy.random.rand()
        return self.modules.head(self.modules.body(x))


class TwoOptimizers(Noisy):
    """Takes two steps with each batch, and changes hparams and checkpoints."""

    def init_optimizers(self):
        self.of_body = torch.optim.Adam(self.modules.body.parameters())
        self.of_head = sgd(self.modules.head.parameters())
        self.optimizers_dict = {"body": self.of_body, "head": self.of_head}
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.of_head, 0.9)
        self.checkpointer.add_recoverables({"of_body": self.of_body, "of_head": self.of_head, "scheduler": self.scheduler})

    def fit_batch(self, batch):
        for optimizer in (self.of_body, self.of_head):
            optimizer.zero_grad()
            loss = F.cross_entropy(self.compute_forward(batch, None), batch[1])
            loss.backward()
            optimizer.step()
        self.scheduler.step()
        self.hparams.seen.append(float(loss))
        self.checkpointer.save_and_keep_only()
        return loss.detach()


class Lazy(Noisy):
    head = staticmethod(lambda: torch.nn.LazyLinear(3))

    def print_trainable_parameters(self):
        """Do nothing: on the stock release, the constructor would crash here."""


def make(cls, folder):
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    norm = InputNormalization(norm_type="global", update_until_epoch=3)
    modules = {"norm": norm, "body": Sequential(normed(), Dropout()).requires_grad_(False), "head": cls.head()}
    counter = EpochCounter(2)
    checkpointer = Checkpointer(folder, {**modules, "counter": counter})
    hparams = {"seen": [], "epoch_counter": counter}
    return cls(modules, lambda p: torch.optim.Adam(p), hparams, checkpointer=checkpointer)


def trained(cls, folder, flown, again):
    """Train, after a preflight if ``flown``, and from an earlier run's checkpoint if ``again``."""
    if again:
        earlier = make(cls, folder)
        earlier.fit([1], data(), train_loader_kwargs=LOADER)
        earlier.checkpointer.save_checkpoint()
    brain = make(cls, folder)
    before = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if flown:
        report = preflight(brain, data(), data(24), LOADER, LOADER)
        assert not report.findings and not [said for said in report.said if "was checked" in said], report.text()
        assert before == (sorted(path.name for path in folder.iterdir()) if folder.exists() else [])
    brain.fit(brain.hparams.epoch_counter, data(), data(24), train_loader_kwargs=LOADER, valid_loader_kwargs=LOADER)
    norm = brain.modules.norm
    tensors = [*brain.modules.state_dict().values(), norm.glob_mean, norm.glob_std, torch.tensor(norm.count)]
    return (
        [tensor.tolist() for tensor in tensors],
        brain.hparams.seen,
        random.random(),
        numpy.random.rand(),
        float(torch.rand(1)),
    )


@pytest.mark.parametrize("fork", [True, False], ids=["in a child", "put back"])
@pytest.mark.parametrize("again", [False, True], ids=["from scratch", "resumed"])
@pytest.mark.parametrize("cls", [Noisy, TwoOptimizers, Lazy])
def test_training_is_the_same_after_a_preflight(tmp_path, monkeypatch, cls, again, fork):
    without = trained(cls, tmp_path / "one", False, again)
    if not fork:
        monkeypatch.delattr(os, "fork")  # as on a GPU
    assert trained(cls, tmp_path / "two", True, again) == without


def test_no_graph_of_the_preflight_stays_alive(monkeypatch):
    """A hook of a graph can hold it in a cycle that Python does not see, and its memory on a GPU with it."""
    monkeypatch.setattr("speechbrain.preflight.run.can_fork", lambda brain: False)
    monkeypatch.setattr("speechbrain.preflight.attempts.can_fork", lambda brain: False)
    preflight(Classifier({"body": body(), "head": head()}), data(), data(), LOADER, LOADER)
    gc.collect()
    assert not [item for item in gc.get_objects() if type(item) is Call]


SCORES = torch.zeros(4, 3).log_softmax(1)
TOKENS = {
    "a class": (lambda ids: F.cross_entropy(SCORES, ids), [0, 1, 2, -100], [0, 1, 2, 3]),
    "an embedding": (lambda ids: F.embedding(ids, SCORES), [0, 3], [0, 4]),
    "ctc": (lambda ids: F.ctc_loss(SCORES, ids, torch.tensor(4), torch.tensor(2)), [1, 2], [1, 3]),
}


@pytest.mark.parametrize("call, inside, outside", TOKENS.values(), ids=TOKENS)
def test_a_gpu_gets_no_token_that_ends_all_use_of_it(call, inside, outside):
    with tokens_inside(SimpleNamespace(device="cuda", modules=torch.nn.ModuleDict())):
        call(torch.tensor(inside))
        with pytest.raises(IndexError, match=f"token {outside[-1]} is out of bounds"):
            call(torch.tensor(outside))


def test_a_step_may_wait_for_a_thread():
    """A forked process would not have it."""
    with ThreadPoolExecutor(1) as pool:

        class Waiting(Classifier):
            def compute_objectives(self, predictions, batch, stage):
                return super().compute_objectives(predictions, batch, pool.submit(lambda: stage).result(60))

        pool.submit(int).result()
        assert not preflight(Waiting({"body": body(), "head": head()}), data(), data(), LOADER).findings


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_the_same_after_a_preflight(monkeypatch, workers):
    monkeypatch.setattr("speechbrain.preflight.run.can_fork", lambda brain: False)
    after = []
    for flown in (False, True):
        torch.manual_seed(0)
        options = {"shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
        train, valid = DataLoader(data(), 8, **options), DataLoader(data(), 8, **options)
        brain = Classifier({"body": body(), "head": head()})
        if flown:
            assert not preflight(brain, train, valid).findings
        brain.fit(range(2), train, valid)
        after.append([*(tensor.tolist() for tensor in brain.modules.state_dict().values()), float(torch.rand(1))])
    assert after[0] == after[1]


def test_the_number_of_epochs_is_known_only_by_an_epoch_counter(tmp_path):
    brain = Classifier({"body": body(), "head": head()}, hparams={"noam": NoamScheduler(0.1, 10)})
    report = preflight(brain, data(), train_loader_kwargs=LOADER)
    assert not report.findings and "left" not in report.plan["epochs"], report.text()
    brain.hparams.epoch_counter = EpochCounter(2)
    assert [f.code for f in preflight(brain, data(), train_loader_kwargs=LOADER).findings] == ["warm-up-too-long"]


def test_the_child_process_has_one_thread():
    """With the number of threads of its parent, it would wait forever for threads that do not exist."""

    def late(*_):
        raise TimeoutError

    threads, handler = torch.get_num_threads(), signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        torch.set_num_threads(2)
        torch.randn(500, 500) @ torch.randn(500, 500)
        assert preflight(Classifier({"head": Linear(4, 3)}), data()).ok
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        torch.set_num_threads(threads)


def test_the_child_process_can_use_dataloader_workers():
    workers = {"batch_size": 8, "num_workers": 2, "persistent_workers": True}
    assert preflight(Classifier({"head": Linear(4, 3)}), data(), data(), workers, workers).ok


@forks
def test_a_killed_child_process_is_a_finding():
    class Greedy(Classifier):
        def compute_forward(self, batch, stage):
            os.kill(os.getpid(), signal.SIGKILL)

    (finding,) = preflight(Greedy({"head": Linear(4, 3)}), data()).findings
    assert finding.code == "preflight-killed" and "(signal 9)" in finding.what


def test_one_report_has_all_findings():
    class Faulty(Classifier):
        def compute_forward(self, batch, stage):
            raise RuntimeError("a sentence")

    modules = {"body": body(), "head": head()}
    torch.nn.init.constant_(modules["body"][0].bias, float("inf"))
    report = preflight(Faulty(modules), data(), data(), {"batch_sise": 1}, {"batch_size": 0})
    assert [f.code for f in report.findings] == ["dataloader-failed"] * 2 + ["weight-not-finite"]
    report = preflight(Faulty(modules, None), data(), data())
    assert {f.code for f in report.findings} == {"first-step-failed", "weight-not-finite", "no-optimizer"}
    assert "Traceback" in report.findings[0].what and report.text().count("Traceback") == 1


def test_a_check_that_fails_is_a_remark(monkeypatch):
    from speechbrain.preflight.checks import losses
    from speechbrain.preflight.observe import weights

    for module, name in ((losses, "_spoiled"), (weights, "look")):
        monkeypatch.setattr(module, name, lambda *args: 1 / 0)
    report = preflight(Classifier({"head": Linear(4, 3).requires_grad_(False)}), data())
    assert [f.code for f in report.findings] == ["nothing-trainable"]
    assert [said.partition(" failed")[0] for said in report.said if "was checked" in said] == [
        "Not everything was checked: weights",
        "Not everything was checked: speechbrain.preflight.checks.losses.value",
    ]


@pytest.mark.parametrize("field", ["what", "where", "remedy"])
def test_a_report_with_a_file_name_that_is_not_utf_8_can_be_printed(field):
    finding = Finding(**{"level": "error", "code": "a-b", "what": "a", field: os.fsdecode(b"caf\xe9.wav")})
    assert "caf\\udce9.wav" in Report([finding]).text().encode().decode()
