"""The command line of the preflight."""

import argparse
import os
import runpy
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from speechbrain.core import Brain
from speechbrain.preflight.attempts import Log, failure
from speechbrain.preflight.checks import CODES
from speechbrain.preflight.observe import Given
from speechbrain.preflight.observe.loads import watched_loads
from speechbrain.preflight.outside import progress, rank, supervised, write
from speechbrain.preflight.quiet import replaced
from speechbrain.preflight.ranks import Ranks
from speechbrain.preflight.report import Report
from speechbrain.preflight.run import examine
from torch.optim.optimizer import register_optimizer_step_pre_hook

DESCRIPTION = """
Runs a training script up to its first training step, and reports what is wrong with it.
The script runs as usual until it calls Brain.fit. Then the preflight takes over: it makes
the dataloaders, calls on_fit_start and on_stage_start, loads the first batch, takes the
first step and validates on one batch, but it changes no weight and saves no checkpoint.
"""

EPILOG = """
examples:
  python -m speechbrain.preflight train.py hparams/train.yaml --data_folder /data
  python -m speechbrain.preflight --strict --json report.json train.py hparams/train.yaml
  torchrun --nproc_per_node=2 -m speechbrain.preflight train.py hparams/train.yaml
  python -m speechbrain.preflight --look heard train.py hparams/train.yaml
  python -m speechbrain.preflight --codes

exit status:
    0  no errors; there may be warnings and notes
    1  errors; with --strict, also for warnings
    2  wrong usage, a report that could not be written, a failure of the preflight itself,
       or no training that the preflight can check: the script ends without calling
       Brain.fit, or its Brain has its own fit(), which does not call Brain.fit
  130  interrupted, for example with Ctrl-C
       (torchrun turns every status except 0 into 1)
"""


class Unseen(BaseException):
    """The training cannot be checked; a BaseException, so that a script's ``except Exception`` cannot catch it."""


class Done(BaseException):
    """The report is ready; a BaseException for the same reason."""


class Takeover:
    """Replaces ``Brain.fit`` and ``Brain.evaluate`` while a script runs."""

    def __init__(self, script=None, number=1, **options):
        self.script, self.number, self.options = script, number, options  # of Given
        self.calls, self.evaluations, self.known = 0, 0, set(_subclasses(Brain))
        self.loaded, self.ranks, self.report = None, None, None

    def run(self, function):
        """Run a script up to its first training step, and return the findings, or raise Unseen."""
        hook = register_optimizer_step_pre_hook(self.refuse)
        try:
            with (
                watched_loads() as self.loaded,
                replaced(Brain, "fit", lambda *args, **kwargs: self.fit(*args, **kwargs)),
                replaced(Brain, "evaluate", lambda *args, **kwargs: self.evaluate()),
            ):
                function()
        except Done:
            pass
        except SystemExit as end:
            if self.report is None:
                raise Unseen(f"it called sys.exit({end.code!r}) before Brain.fit.") from None
        except (KeyboardInterrupt, Unseen):
            raise
        except BaseException as error:
            skipped = self.calls + self.evaluations
            if self.report is None and skipped:
                what = f"it raised {type(error).__name__}: {error}"
                raise Unseen(f"{what}, after the preflight had skipped {skipped} call(s) of fit and evaluate.") from error
            found = failure("script-failed", error)
            self.report = self.report or Report([replace(found, where=f"{found.where}{rank()}")])
        finally:
            hook.remove()
        if self.report is None:
            raise Unseen(self.why_not())
        return self.report

    def fit(
        self,
        brain,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs=None,
        valid_loader_kwargs=None,
    ):
        """Check the training that would begin here, and end the script."""
        self.calls += 1
        if self.calls < self.number or self.report is not None:
            return
        if brain.test_only:
            raise Unseen("--test_only trains nothing: remove it.")
        self.ranks = Ranks()
        options = train_loader_kwargs or {}, valid_loader_kwargs or {}
        given = Given(brain, train_set, valid_set, epoch_counter, *options, progressbar, self.script, **self.options)
        self.report = examine(given, self.loaded, self.ranks)
        raise Done

    def evaluate(self):
        """Skip the evaluation."""
        self.evaluations += 1
        return float("nan")

    def refuse(self, optimizer, args, kwargs):
        """End the script if a Brain's own ``fit`` trains without calling ``Brain.fit``."""
        frame = None if self.ranks else sys._getframe()
        while frame:
            brain = frame.f_locals.get("self") if frame.f_code.co_name == "fit" else None
            if isinstance(brain, Brain):
                raise Unseen(f"{type(brain).__name__} has its own fit(), which does not call Brain.fit.")
            frame = frame.f_back

    def why_not(self):
        """str: Why there is no report although the script has ended."""
        if self.calls:
            times = f"{self.calls} time{'s' * (self.calls > 1)}"
            return f"it called Brain.fit {times}, but --fit {self.number} asks for a later call."
        own = [cls.__name__ for cls in _subclasses(Brain) if "fit" in vars(cls) and cls not in self.known]
        return "it ended without calling Brain.fit" + (f"; {', '.join(own)} has its own fit()." if own else ".")


def _subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def main(arguments=None):
    """Run the command line, and return the exit status."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, each is None if the shell has closed it
    sys.stdout = sys.stdout or sys.stderr
    about = {"description": DESCRIPTION, "epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m speechbrain.preflight", allow_abbrev=False, **about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to FILE, as JSON")
    parser.add_argument("--scan-seconds", type=float, default=20.0, metavar="S", help="read audio for S seconds (default: 20)")
    parser.add_argument("--look", type=Path, metavar="FOLDER", help="write the first batch as WAV files, and a picture of it")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    parser.add_argument("--fit", type=int, default=1, metavar="N", help="check the script's N-th call of fit (default: 1)")
    parser.add_argument("--overfit", type=int, metavar="N", help="also learn the first batch in N steps")
    parser.add_argument("--longest", action="store_true", help="also take a step on the longest batch, and show its memory")
    parser.add_argument("--traceback", action="store_true", help="show whole tracebacks, with the lines of libraries")
    parser.add_argument("--codes", action="store_true", help="list the codes of all findings, and exit")
    parser.add_argument("script", nargs="?", type=Path, help="the training script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments: the YAML file, then overrides")
    options = parser.parse_args(arguments)
    if options.codes:
        print("\n".join(f"{code:32}{line}" for code, line in CODES.items()))
        return 0
    if options.script is None or not options.script.is_file():
        parser.error("give a training script" if options.script is None else f"there is no file {options.script}")
    if options.fit < 1 or options.scan_seconds < 0 or (options.overfit is not None and options.overfit < 2):
        parser.error("--fit must be at least 1, --overfit at least 2, and --scan-seconds not negative")
    options.json = options.json and options.json.absolute()  # the script may change the folder
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} for the report")
    if options.look:
        if find_spec("matplotlib") is None:
            parser.error("--look draws with matplotlib, which is not installed: pip install matplotlib")
        options.look = options.look.absolute()
        try:
            options.look.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.look).close()
        except OSError as error:
            parser.error(f"--look cannot write to the folder: {error}")
    if arguments is None and hasattr(os, "fork"):
        return supervised(lambda: examined(options), options)
    return examined(options)


def examined(options):
    """Run the script of the command line, write the report, and return the exit status."""
    out, Log.whole_tracebacks = sys.stdout, options.traceback
    sys.argv = [str(options.script), *options.arguments]
    sys.path[: not getattr(sys.flags, "safe_path", False)] = [str(options.script.resolve().parent)]
    asked = {name: getattr(options, name) for name in ("scan_seconds", "look", "longest")}
    takeover, written = Takeover(options.script, options.fit, overfit=options.overfit or 0, **asked), True
    try:
        with progress():
            report = takeover.run(lambda: runpy.run_path(str(options.script), run_name="__main__"))
    except Unseen as reason:
        print(f"{options.script}: nothing to check{rank()}: {reason}", file=sys.stderr)
        return 2
    if takeover.ranks is None or takeover.ranks.speaks:
        written = write(report, options, out)
    if takeover.ranks is not None:
        takeover.ranks.agree(True)  # wait for the others: torchrun ends all processes as soon as one exits with 1
    wrong = ("error", "warning") if options.strict else ("error",)
    return int(any(finding.level in wrong for finding in report.findings)) if written else 2


if __name__ == "__main__":
    sys.exit(main())
