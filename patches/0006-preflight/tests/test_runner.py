"""The command line: what it runs of a script, what it skips, and its exit status."""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from speechbrain.preflight import attempts, outside
from speechbrain.preflight.__main__ import main
from speechbrain.preflight.checks import SUBJECTS
from speechbrain.preflight.report import Finding, Report

SCRIPT = """
import json, sys, torch, speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn import Linear

class Brain(sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch[1])

    def on_stage_end(self, stage, loss, epoch=None):
        open("trained", "w").close()
        self.checkpointer.save_and_keep_only()

def make(cls=Brain, model=None, **options):
    model = model or Linear(4, 3)
    options = {"device": "cpu", "noprogressbar": True, **options}
    return cls({"model": model}, lambda p: torch.optim.Adam(p), {}, options, Checkpointer("save", {"model": model}))

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16).flip(0) * 5 % 3)
loader = {"train_loader_kwargs": {"batch_size": 8}}
frozen = Linear(4, 3).requires_grad_(False)
"""

FIT = "make().fit(range(1, 2), data, **loader)"
FROZEN = "make(model=frozen).fit(range(1, 2), data, **loader)"
NOT_SAVED = "brain = make(); brain.checkpointer.recoverables.pop('model'); brain.fit(range(1, 2), data, **loader)"
OWN_FIT = """
class Own(Brain):
    def fit(self, epochs, data, **options):
        {body}
        self.on_fit_start()
        for batch in self.make_dataloader(data, sb.Stage.TRAIN, batch_size=8):
            self.fit_batch(batch)
        open("trained", "w").close()

make(Own).fit(range(1, 2), data, **loader)
"""
SHIFTED = "make().fit(range(1, 2), data, data, {'batch_size': 8}, {'batch_size': 8})"
COUNTING = """
class Counting(Brain):
    def fit_batch(self, batch):
        return torch.zeros(())

make(Counting).fit(range(1, 2), data, **loader)
"""
NESTED = """
class Nested(Brain):
    def on_stage_start(self, stage, epoch=None):
        self.fit(range(1), data, **loader)

make(Nested).fit(range(1, 2), data, **loader)
"""
STEPPING = """
class Stepping(Brain):
    def fit(self, *args, **options):
        super().fit(*args, **options)

    def fit_batch(self, batch):
        before = self.modules.model.weight.clone()
        loss = self.compute_objectives(self.compute_forward(batch, None), batch, None)
        loss.backward()
        self.optimizer.step()
        self.checkpointer.save_checkpoint()
        self.calls = getattr(self, "calls", 0) + 1  # later steps are real, in another process
        assert self.calls > 1 or torch.equal(before, self.modules.model.weight)
        self.optimizer.zero_grad()
        return loss.detach()

make(Stepping).fit(range(1, 2), data, **loader)
"""


@pytest.fixture
def flight(tmp_path, monkeypatch, capsys):
    """callable: Runs the command line on a script; returns the exit status, stdout and stderr."""

    def run(body, *options, arguments=()):
        (tmp_path / "train.py").write_text(SCRIPT + body)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["preflight"])
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # a script may replace it
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        try:
            status = main([*options, "train.py", *arguments])
        except SystemExit as end:
            status = end.code
        assert not (tmp_path / "trained").exists() and not list(tmp_path.glob("save/CKPT*"))
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "body, options, status, said",
    [
        (FIT, [], 0, r"^Found: nothing\."),
        (FROZEN, [], 1, r"^error\[nothing-trainable\]: all 2 parameters are[^$]+^Found: 1 error\."),
        (NOT_SAVED, [], 0, r"^warning\[trained-not-saved\]: [^$]+^Found: 1 warning\."),
        (NOT_SAVED, ["--strict"], 1, r"^warning\[trained-not-saved\]: "),
        (
            "raise OSError('no such corpus')",
            [],
            1,
            r"^error\[script-failed\]: OSError: no such corpus\n  where: train.py:\d+ in <module>\n  fix: .+\n    Traceback",
        ),
        ("import pytest\npytest.importorskip('no_such_package')", [], 1, r"^error\[script-failed\]: Skipped: could not import"),
        ("json.loads('{')", [], 1, r"JSONDecodeError: [^$]+where: train.py:\d+ in <module>[^$]+ \d lines of libraries"),
        ("json.loads('{')", ["--traceback"], 1, r"where: train.py:\d+ in <module>[^$]+raw_decode"),
        ("raise ValueError('\\x1b[31mred\\x1b[0m:\\n  and more')", [], 1, r"ValueError: red: and more\n"),
        (
            "try:\n    open('no.csv')\nexcept OSError as error:\n    raise RuntimeError('no data') from error",
            [],
            1,
            r": RuntimeError: no data\n  where: train.py:30 [^$]+ shows\n"
            r"    because of: FileNotFoundError: \[Errno 2\] No such file .*: 'no.csv' \(train.py:28\)\n    Traceback",
        ),
        (
            "try:\n    found = open('no.csv')\nfinally:\n    found.close()",
            [],
            1,
            r": NameError: name 'found' is not defined\n  w[^$]+\n"
            r"    while handling: FileNotFoundError: .* \(train.py:28\)\n    Traceback",
        ),
        (
            "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError(f'KeyError: {error}')",
            [],
            1,
            r": ValueError: KeyError: 'a'\n [^$]+ traceback below shows\n    Traceback",
        ),
        (
            "from speechbrain.dataio.batch import PaddedBatch\nPaddedBatch([{'id': 'a'}]).wav",
            [],
            1,
            r": AttributeError: [^$]+ traceback below shows\n    Traceback",
        ),
        (
            "from speechbrain.dataio.dataset import DynamicItemDataset\nDynamicItemDataset.from_csv('no.csv')",
            [],
            1,
            r"^error\[script-failed\]: FileNotFoundError: [^$]+where: train.py:28 in <module>\n",
        ),
        ("class Odd(Exception):\n    __str__ = None\nraise Odd", [], 1, r"^error\[script-failed\]: Odd\n"),
        (
            "from speechbrain.utils.importutils import LazyModule\nno_such = LazyModule('a', 'no.such', None)\nno_such.name",
            [],
            1,
            r"^error\[script-failed\]: ImportError: Lazy import [^$]+ because of: ModuleNotFoundError: No module named 'no'",
        ),
        ("x = = 1", [], 1, r"^error\[script-failed\]: SyntaxError: [^$]+where: .*train.py:\d+\n"),
        ("load_hyperpyyaml(open('x.yaml'))", [], 1, r"error\[script-failed\]: [^$]+where: x.yaml:2\n"),
        (SHIFTED, [], 1, r"error\[fit-arguments-shifted\]: fit takes {'batch_size': 8} as its fourth argument, progressbar"),
        (COUNTING, [], 0, r"note\[no-backward\]: "),
        (f"import io\nsys.stdout = io.StringIO()\n{FROZEN}", [], 1, r"^error\[nothing-trainable\]: "),
        (f"{FROZEN}\n{FIT}", ["--fit", "2"], 0, r"^Found: nothing\."),
        (f"make().evaluate(data)\n{FIT}", [], 0, r"^Found: nothing\."),
        (
            f"assert sys.argv == ['train.py', 'x.yaml', '--lr', '1'], sys.argv\nimport beside\n{FIT}",
            [],
            0,
            r"^Found: nothing\.",
        ),
        (f"try:\n    {FROZEN}\nexcept Exception:\n    pass\n{FIT}", [], 1, "nothing-trainable"),
        (NESTED, [], 0, r"^A call of fit\(\) inside fit\(\) was skipped\."),
        (STEPPING, [], 0, r"^Found: nothing\."),
        (OWN_FIT.format(body="super().fit(epochs, data, **options)"), [], 0, r"^Found: nothing\."),
    ],
)
def test_report_and_exit_status(flight, tmp_path, body, options, status, said):
    (tmp_path / "beside.py").touch()
    (tmp_path / "x.yaml").write_text("lr: 1\nmodel: !new:torch.nn.Linear\n    no_such_argument: 3\n")
    answer, out, err = flight(body, *options, arguments=["x.yaml", "--lr", "1"])
    assert answer == status, out + err
    assert re.search(said, out, re.MULTILINE), out


@pytest.mark.parametrize(
    "body, options, said",
    [
        ("", [], r"it ended without calling Brain.fit\."),
        ("sys.exit('bye')", [], r"it called sys.exit\('bye'\) before Brain.fit"),
        (FIT, ["--fit", "3"], "it called Brain.fit 1 time, but --fit 3 asks for a later call"),
        (OWN_FIT.format(body="pass"), [], r"Own has its own fit\(\), which does not call Brain.fit"),
        (OWN_FIT.format(body="return"), [], r"it ended without calling Brain.fit; Own has its own fit\(\)"),
        ("make(test_only=True).fit(range(1), data)", [], "--test_only trains nothing"),
        (
            "x = make().evaluate(data)\nassert x < 9",
            [],
            r"AssertionError: , after the preflight had skipped 1 call\(s\) of fit and evaluate",
        ),
        (FIT, ["--no-such-option"], "unrecognized arguments|the following|there is no file"),
        (FIT, ["--fit", "0"], "--fit must be at least 1"),
        (FIT, ["no_such_script.py"], "there is no file no_such_script.py"),
    ],
)
def test_it_exits_with_2_without_a_training_to_check(flight, body, options, said):
    status, out, err = flight(body, *options)
    assert status == 2 and re.search(said, err) and not out, out + err


def test_the_json_file_contains_the_report(flight, tmp_path):
    assert flight(FROZEN, "--json", "report.json")[0] == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"ok", "plan", "findings", "said"} and report["ok"] is False
    (finding,) = report["findings"]
    assert list(finding) == ["level", "code", "what", "where", "remedy"] and finding["code"] == "nothing-trainable"


def test_a_folder_for_json_has_to_exist(flight):
    status, out, err = flight(FROZEN, "--json", "no/report.json")
    assert status == 2 and "there is no folder" in err and not out


def interrupt():
    """Do what Ctrl-C does, also where these tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, nothing is forked")
@pytest.mark.parametrize(
    "end, status, said",
    [
        (lambda: os._exit(3), 1, r"^error\[script-failed\]: the script ended the process .+: status 3, as os._exit does"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), 1, r"signal 11, SIGSEGV"),
        (interrupt, 130, "^$"),
        (lambda: 1 / 0, 2, "^$"),
    ],
    ids=["os._exit", "segfault", "Ctrl-C", "own mistake"],
)
def test_a_script_that_ends_the_process_is_reported(tmp_path, capfd, end, status, said):
    """The child is forked from pytest, so it must not return."""
    options = argparse.Namespace(script="train.py", json=tmp_path / "report.json")
    pid = os.getpid()
    try:
        answer = outside.supervised(end, options)
    finally:
        if os.getpid() != pid:
            os._exit(answer if "answer" in locals() else 130)
    out = capfd.readouterr().out
    assert answer == status and re.search(said, out) and options.json.exists() is (status == 1), out


@pytest.mark.parametrize(
    "script, status, said",
    [
        ("import os; os._exit(3)", 1, "the script ended the process before the report was ready: status 3"),
        ("1 / 0", 1, "error[script-failed]: ZeroDivisionError"),
        ("pass", 2, "it ended without calling Brain.fit"),
    ],
    ids=["os._exit", "an error", "no fit"],
)
def test_where_there_is_a_gpu_the_command_is_started_again(tmp_path, script, status, said):
    (tmp_path / "train.py").write_text(script)
    main = "import sys, torch; torch.cuda.is_available = lambda: True\n"
    main += "from speechbrain.preflight.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout + done.stderr, done


@pytest.mark.parametrize("device", ["/dev/full", "a closed pipe", "a closed file"])
def test_a_report_that_cannot_be_printed_is_not_lost(tmp_path, monkeypatch, capfd, device):
    if device == "/dev/full":
        stream = open(device, "w")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    if device == "a closed file":
        stream.close()
    options, report = argparse.Namespace(json=tmp_path / "report.json"), Report([Finding("error", "a-b", "what")])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert outside.write(report, options, stream)
    assert "error[a-b]: what" in capfd.readouterr().err and options.json.exists()


def test_codes_lists_every_code(capsys):
    assert main(["--codes"]) == 0
    listed = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    codes = [code for subject in (attempts, *SUBJECTS) for code in subject.CODES]
    assert sorted(listed) == sorted(codes) and len(set(codes)) == len(codes)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes) and all(listed.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, nothing is forked")
def test_a_device_that_does_not_exist_is_named_and_not_the_fork(tmp_path):
    (tmp_path / "train.py").write_text("import torch; torch.ones(1, device='cuda')")
    process = subprocess.run([sys.executable, "-m", "speechbrain.preflight", "train.py"], cwd=tmp_path, capture_output=True)
    assert process.returncode == 1 and b"finds no GPU" in process.stdout and b"fork" not in process.stdout, process


@pytest.mark.parametrize("closed", ["", " >&-"])
def test_it_runs_as_a_module(tmp_path, closed):
    (tmp_path / "train.py").write_text(SCRIPT + FROZEN)
    command = f"{sys.executable} -m speechbrain.preflight train.py{closed}"
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, shell=True)
    assert process.returncode == 1 and "nothing-trainable" in (process.stderr if closed else process.stdout), process


# The stock release cannot wrap modules for torchrun on a CPU.
WRAP = """
def wrap(brain):
    options = {"find_unused_parameters": brain.find_unused_parameters}
    for name, module in brain.modules.items():
        brain.modules[name] = torch.nn.parallel.DistributedDataParallel(module, **options)

if not hasattr(Brain, "_upstream__wrap_distributed"):
    Brain._wrap_distributed = wrap
"""
TOGETHER = """
import datetime, speechbrain.preflight.ranks
speechbrain.preflight.ranks.HASTE = datetime.timedelta(seconds=2)
sb.utils.distributed.ddp_init_group({'distributed_backend': 'gloo'})
rank = torch.distributed.get_rank()
assert (sys.argv[1], rank) != ("script", 1), "a rank fails"

class Failing(Brain):
    def on_fit_start(self):
        assert (sys.argv[1], rank) != ("start", 1), "a rank fails"  # while rank 0 waits for it to wrap the modules
        super().on_fit_start()

    def compute_forward(self, batch, stage):
        assert (sys.argv[1], rank) != ("step", 1), "a rank fails"
        return super().compute_forward(batch, stage)

model = torch.nn.Sequential(Linear(4, 4), torch.nn.BatchNorm1d(4), Linear(4, 3))
make(Failing, model).fit(range(1, 2), data, **loader)
"""
APART = """
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process, main_process_only, run_on_main
sb.utils.distributed.ddp_init_group({'distributed_backend': 'gloo'})
main = if_main_process()

class Ending(Brain):
    def on_stage_end(self, stage, loss, epoch=None):
        getattr(self, sys.argv[1])(stage)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        ddp_barrier()
        if sys.argv[1] == "each" and if_main_process():
            ddp_barrier()

    def each(self, stage):
        ddp_barrier()

    def saves(self, stage):
        if if_main_process() and stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only()

    def waits(self, stage):
        torch.distributed.barrier() if if_main_process() else self.checkpointer.save_checkpoint()

    def fails(self, stage):
        assert if_main_process(), "a rank fails"
        ddp_barrier()

    def works(self, stage):
        self.checkpointer.save_and_keep_only()
        run_on_main(self.checkpointer.save_checkpoint, kwargs={"name": "main"})
        if if_main_process():
            torch.save(self.modules.state_dict(), "best.pt")
            open("wer.txt", "w").write("0.5")
        ddp_barrier()
        assert open("wer.txt").read() == "0.5"
        assert main_process_only(lambda: 1)() in (1, None if main else 1)
        ranks = [None, None]
        torch.distributed.all_gather_object(ranks, torch.distributed.get_rank())
        assert ranks == [0, 1]
        if ddp_broadcast("save" if if_main_process() else None) == "save":
            self.checkpointer.save_checkpoint()
        own = torch.distributed.new_group([0])
        if if_main_process():
            torch.distributed.barrier(own)

make(Ending).fit(range(1, 2), data, data, **loader, valid_loader_kwargs={"batch_size": 8})
"""
SAME = """
from speechbrain.preflight import preflight

sb.utils.distributed.ddp_init_group({'distributed_backend': 'gloo'})
hashes = []
for flown in (False, True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(), Linear(4, 3))
    brain = make(model=model)
    brain.checkpointer = None
    brain.on_stage_end = lambda *args: None
    for _ in range(2 * flown):
        report = preflight(brain, data, **loader)
        assert report.ok and not report.findings, report.text()
    brain.fit(range(1, 3), data, **loader)
    hashes.append(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
assert hashes[0] == hashes[1]
"""


def torchrun(folder, script, *command):
    (folder / "train.py").write_text(SCRIPT + WRAP + script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.run([*launcher, *command], cwd=folder, capture_output=True, text=True, timeout=200)
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "fault, said",
    [
        ("script", r"error\[script-failed\][^$]+\(rank 1\)"),
        ("step", r"error\[first-step-failed\][^$]+\(rank 1\)"),
        ("start", r"These are the findings of rank 1 only[^$]+error\[fit-start-failed\]"),
    ],
)
@pytest.mark.torchrun
def test_torchrun_makes_one_report(tmp_path, fault, said):
    status, out, err = torchrun(tmp_path, TOGETHER, "-m", "speechbrain.preflight", "train.py", fault)
    assert status == 1, err
    assert out.count("Found: ") == 1 and re.search(said, out), out + err
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    "how, said",
    [
        (
            "saves",
            r"^error\[processes-apart\]: training hangs or crashes, because the processes wait for one another in different "
            r"places: rank 0 in save_and_keep_only \(train.py:\d+ in saves\); rank 1 at the end of on_stage_end\n"
            r"  where: train.py:\d+ in saves\n"
            r"  fix:   let all processes call save_and_keep_only, not only some \(the Checkpointer itself writes only on the ",
        ),
        ("each", r"places: rank 0 in barrier \(train.py:\d+ in on_fit_batch_end\); rank 1 at the end of on_fit_batch_end\n"),
        ("waits", r"places: rank 0 in barrier \(train.py:\d+ in waits\); rank 1 in save_checkpoint \(train.py:\d+ in "),
        ("fails", r"^error\[first-validation-failed\]: AssertionError: a rank fails\n  where: .* \(rank 1\)\n"),
        ("works", None),
    ],
)
@pytest.mark.torchrun
def test_processes_that_wait_for_one_another(tmp_path, how, said):
    status, out, err = torchrun(tmp_path, APART, "-m", "speechbrain.preflight", "train.py", how)
    assert status == bool(said) and out.count("error[") == bool(said) and "Not everything" not in out, out + err
    assert said is None or re.search(said, out, re.M), out + err


@pytest.mark.torchrun
def test_training_under_torchrun_is_the_same_after_a_preflight(tmp_path):
    status, _, err = torchrun(tmp_path, SAME, "train.py")
    assert status == 0, err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a process that is killed")
def test_a_killed_preflight_leaves_no_process(tmp_path):
    (tmp_path / "train.py").write_text(
        "import os, time; open('new', 'w').write(str(os.getpid()))\nos.rename('new', 'pid')\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-m", "speechbrain.preflight", "train.py"], cwd=tmp_path)
    while not (tmp_path / "pid").exists():
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    time.sleep(1)
    with contextlib.suppress(FileNotFoundError):  # unless nothing has collected it yet
        assert open(f"/proc/{(tmp_path / 'pid').read_text()}/stat").read().rpartition(")")[2].split()[0] == "Z"


def test_a_line_says_what_takes_long(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(outside, "WAITS", (0.1,))
    with outside.progress():
        time.sleep(0.3)
    said = r"^preflight: 0 s, .*test_runner.py:\d+ in test_a_line_says_what_takes_long$"
    assert re.search(said, capfd.readouterr().err, re.MULTILINE)
