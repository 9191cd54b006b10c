"""Training with two processes on a CPU."""

import re

import pytest

SCRIPT = """
import hashlib, sys, time, torch, speechbrain as sb
from torch.nn import BatchNorm1d, Linear, Sequential

class Brain(sb.Brain):
    def on_stage_start(self, stage, epoch=None):
        if sys.argv[1] == "late":
            self.modules.head.requires_grad_(True)

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.body(batch[0]))

    def compute_objectives(self, predictions, batch, stage):
        return predictions.pow(2).mean()

options = {"device": "cpu", "distributed_backend": "gloo", "noprogressbar": True}
sb.utils.distributed.ddp_init_group(options)
torch.manual_seed(0)
modules = {"body": Sequential(Linear(4, 4), BatchNorm1d(4) if sys.argv[1] == "norm" else torch.nn.ReLU()), "head": Linear(4, 1)}
if sys.argv[1] == "late":
    modules["head"].requires_grad_(False)
hparams = None if sys.argv[1] == "bare" else {}
brain = Brain(modules, lambda p: torch.optim.SGD(p, lr=0.1), hparams, options)
data = torch.utils.data.TensorDataset(torch.randn(32, 4))
brain.fit(range(2), data, train_loader_kwargs={"batch_size": 4})
weights = b"".join(p.detach().numpy().tobytes() for p in brain.modules.parameters())
sys.stdout.write(f"weights: {hashlib.sha256(weights).hexdigest()}\\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
time.sleep(0.5)  # without it, the stock release may abort here; that is for the last test below
"""


@pytest.mark.parametrize(
    "case, warning",
    [
        ("plain", None),
        pytest.param("norm", "body: BatchNorm normalizes each process's own part", marks=pytest.mark.regression),
        pytest.param("bare", None, marks=pytest.mark.regression),
        pytest.param("late", "Not synchronized between the processes: head.weight, head.bias", marks=pytest.mark.regression),
    ],
)
def test_two_processes_train_one_model(torchrun, case, warning):
    status, output = torchrun(SCRIPT, case)
    assert status == 0, output
    weights = re.findall(r"weights: (\w+)", output)
    assert len(weights) == 2 and (len(set(weights)) == 1) is (case != "late")
    warnings = {line for line in output.splitlines() if "BatchNorm normalizes" in line or "Not synchronized" in line}
    assert len(warnings) == bool(warning) and all(warning in line for line in warnings)


def on_gpu(script):
    """The same script for a GPU and NCCL, which takes one process a GPU."""
    script = script.replace('"cpu"', '"cuda"').replace("gloo", "nccl").replace("p.detach()", "p.detach().cpu()")
    return script.replace("self.modules.body(batch[0])", "self.modules.body(batch[0].cuda())")


@pytest.mark.cuda
@pytest.mark.parametrize("case", ["plain", "norm", "bare"])
def test_one_process_trains_on_a_gpu(torchrun, case):
    status, output = torchrun(on_gpu(SCRIPT), case, processes=1)
    assert status == 0 and len(re.findall(r"weights: (\w+)", output)) == 1 and "BatchNorm normalizes" not in output, output


SAVING = """
import sys, torch, speechbrain as sb
from speechbrain.utils.checkpoints import Checkpointer

sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
rank = torch.distributed.get_rank()
model = torch.nn.Linear(2, 2)
checkpointer = Checkpointer("save", {"model": model})

def save_on_all(obj, path):
    path.write_text("one for all")
    path.with_name(f"{path.name}{rank}").touch()

checkpointer.add_recoverable("own", [rank], custom_save_hook=save_on_all, custom_load_hook=lambda *_: None)
for value in (1.0, 2.0):
    model.weight.data.fill_(value)
    checkpointer.save_and_keep_only({"unixtime": value}, name=f"{value:.0f}", num_to_keep=2)
checkpointer.save_checkpoint({"unixtime": 2.0}, name="2")
if rank == 0:
    with open("save/CKPT+2/model.ckpt", "r+b") as file:
        file.truncate(99)
torch.distributed.barrier()
model.weight.data.fill_(9.0)
found = checkpointer.recover_if_possible()
sys.stdout.write(f"found {found.path.name} {model.weight.unique().item()}\\n")
torch.distributed.barrier()
if rank == 0:
    with open("save/CKPT+1/model.ckpt", "r+b") as file:
        file.truncate(99)
torch.distributed.barrier()
try:
    checkpointer.recover_if_possible()
except RuntimeError as error:
    sys.stdout.write(str(error)[:25] + "\\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.regression
def test_two_processes_save_and_resume_the_same_checkpoints(torchrun, tmp_path):
    _, output = torchrun(SAVING)
    printed = re.findall(r"found CKPT.1 1.0|None of the 2 checkpoints", output)
    assert sorted(printed) == ["None of the 2 checkpoints"] * 2 + ["found CKPT+1 1.0"] * 2, output
    assert {path.name for path in (tmp_path / "save").iterdir()} == {"CKPT+1", "CKPT+2"}
    assert {"own.ckpt0", "own.ckpt1"} <= {path.name for path in (tmp_path / "save" / "CKPT+2").iterdir()}


# Like gloo's thread, this thread needs the interpreter shortly after the script's last line. If the interpreter is gone by
# then, this thread stops silently; gloo's thread, which is not a Python thread, would abort the process.
ENDING = """
import atexit, os, threading, time, speechbrain as sb

def need_the_interpreter(script_ended=threading.Event()):
    atexit.register(script_ended.set)
    script_ended.wait()
    time.sleep(0.05)
    os.write(1, b"let go\\n")

sb.utils.distributed.ddp_init_group({"distributed_backend": "gloo"})
threading.Thread(target=need_the_interpreter, daemon=True).start()
time.sleep(0.05)
"""


@pytest.mark.regression
def test_a_process_waits_for_the_threads_of_gloo_before_it_ends(torchrun):
    status, output = torchrun(ENDING)
    assert status == 0 and output.count("let go") == 2, output


# Each case is a Brain with two DDP wrappers; it prints the error of fit(), or how many steps were taken.
UNUSED = """
import sys, torch, speechbrain as sb
from torch.nn import Linear, ModuleList, Sequential

class Brain(sb.Brain):
    def on_stage_start(self, stage, epoch=None):
        if self.hparams.case == "frozen-late":
            self.modules.body.requires_grad_(False)
            self.modules.body.module[1].requires_grad_(True)

    def compute_forward(self, batch, stage):
        x = self.modules.body(batch[0])
        if self.hparams.case not in ("frozen-late", "uncalled"):
            x = self.modules.head(x)
        return x

    def compute_objectives(self, predictions, batch, stage):
        if self.hparams.case == "other-error":
            raise RuntimeError("something else")
        return predictions.pow(2).mean()

class Half(torch.nn.Module):
    def __init__(self, frozen, used, *rest):
        super().__init__()
        self.frozen, self.used, self.rest = frozen.requires_grad_(False), used, ModuleList(rest)

    def forward(self, x):
        for layer in self.rest:
            layer(x)
        return self.used(self.frozen(x))

options = {"device": "cpu", "distributed_backend": "gloo", "noprogressbar": True}
sb.utils.distributed.ddp_init_group(options)
for case in sys.argv[1:]:
    modules = {"body": Sequential(Linear(4, 4), Linear(4, 4)), "head": Linear(4, 4)}
    if case == "second-module":
        modules["head"] = Half(Linear(4, 4), Linear(4, 4), Linear(4, 4))
    elif case == "shared":
        shared = Linear(4, 4)
        modules["head"] = Half(Linear(4, 4), Sequential(shared, shared), Linear(4, 4))
    elif case == "many":
        modules["head"] = Half(Linear(4, 4), Linear(4, 4), Linear(4, 4), Linear(4, 4))
    elif case == "allowed":
        modules["head"] = Half(Linear(4, 4), Linear(4, 4), Linear(4, 4))
    run = {**options, "find_unused_parameters": case == "allowed"}
    brain = Brain(modules, lambda p: torch.optim.SGD(p, lr=0.1), {"case": case}, run)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4))
    try:
        brain.fit(range(1), data, train_loader_kwargs={"batch_size": 4})
        sys.stdout.write(f"<{case}: {brain.optimizer_step} steps>\\n")
    except RuntimeError as error:
        sys.stdout.write(f"<{case}: {str(error).splitlines()[0]}>\\n")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


DEVICES = [("cpu", 2), pytest.param("cuda", 1, marks=pytest.mark.cuda)]


@pytest.mark.regression
@pytest.mark.parametrize("device, processes", DEVICES)
def test_parameters_without_a_gradient_are_named(torchrun, device, processes):
    expected = {
        "uncalled": f"{8 // processes} steps",  # DDP only looks at modules that are called
        "second-module": "head.rest.0.weight, head.rest.0.bias",
        "shared": "head.rest.0.weight, head.rest.0.bias",
        "many": "head.rest.0.weight, head.rest.0.bias, head.rest.1.weight and 1 more",
        "frozen-late": "body.0.weight, body.0.bias",
    }
    _, output = torchrun(UNUSED if device == "cpu" else on_gpu(UNUSED), *expected, processes=processes)
    printed = re.findall(r"<([\w-]+): (.*)>", output)
    message = (
        "These parameters got no gradient in the step before: {}. Freeze them before fit(), or use them in the loss, or run "
        "with --find_unused_parameters."
    )
    expected = {case: names if "steps" in names else message.format(names) for case, names in expected.items()}
    assert dict(printed) == expected and len(printed) == processes * len(expected), output


def test_other_errors_and_healthy_modules_are_as_on_stock(torchrun):
    _, output = torchrun(UNUSED, "allowed", "used", "other-error")
    printed = sorted(re.findall("<(.*)>", output))
    assert printed == [*["allowed: 4 steps"] * 2, *["other-error: something else"] * 2, *["used: 4 steps"] * 2], output
