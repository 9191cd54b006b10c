"""What may fail on the way to the first step, and what becomes of a failure: a finding or a remark."""

import difflib
import io
import os
import re
import sys
import sysconfig
import traceback
from itertools import pairwise
from pathlib import Path

import speechbrain as sb
from speechbrain.preflight.isolate import can_fork, in_child, put_back
from speechbrain.preflight.quiet import TimeUp, limited
from speechbrain.preflight.report import Finding
from speechbrain.preflight.unreadable import unreadable

CODES = {
    "script-failed": "the script raised an exception before it called fit",
    "manifest-unreadable": "a manifest, or a YAML file in another encoding, cannot be read",
    "preflight-killed": "the preflight's process ended without a result, for example because memory ran out",
    "dataloader-failed": "make_dataloader raised an exception for the training or validation set",
    "fit-start-failed": "on_fit_start raised an exception; it wraps modules, creates optimizers and loads a checkpoint",
    "stage-start-failed": "on_stage_start raised an exception for the first epoch",
    "first-batch-failed": "the first training batch could not be loaded",
    "first-step-failed": "the first training step raised an exception, in forward, loss or backward",
    "first-validation-failed": "the first validation batch, or on_stage_end before or after it, raised an exception",
}

REMEDIES = {
    "dataloader-failed": "fix the dataset or the options of its loader",
    "first-batch-failed": "fix the item or the data pipeline that the traceback below shows",
}
REMEDY = "fix the error that the traceback below shows"

LIBRARIES = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(sb.__file__).parent)})
PACKAGES = {"site-packages", "dist-packages"}
HERE = os.path.join(os.path.dirname(__file__), "")
LONG = 300  # characters of an exception in a remark
COLOUR = r"\x1b\[[0-9;]*[A-Za-z]"


class Log:
    """The findings and remarks so far."""

    whole_tracebacks = False  # whether tracebacks show the lines of libraries
    forked = False  # whether it is that of a forked process

    def __init__(self, ranks):
        self.ranks = ranks
        self.findings = []
        self.said = []

    def attempt(self, code, function, *args, **kwargs):
        """Take the Brain further; a failure becomes a finding. Returns whether all processes succeeded, and the answer here."""
        answer, well = None, False
        try:
            answer, well = function(*args, **kwargs), True
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit, and what pytest raises to skip
            self.findings.append(failure(code, error))
        return self.ranks.agree(well), answer

    def guarded(self, name, function, *args):
        """Call a function that only looks, and return what it returns; a failure becomes a remark, and returns None."""
        try:
            return function(*args)
        except Exception as error:
            said = f"{name} failed with {type(error).__name__}: {error}".strip().splitlines()[0]
            self.said.append(f"Not everything was checked: {said[:LONG]}")

    def apart(self, name, brain, seconds, function, *args):
        """Call a function that changes the Brain, or only wait for other processes; afterwards, the Brain is as before.

        It runs in a forked process if possible; else everything is restored. Its last argument is a log of its own.
        """
        inner, answer = Log(self.ranks), None
        inner.forked = function is not None and can_fork(brain)

        def look():
            return inner.guarded(name, function, *args, inner), inner.findings, inner.said

        try:
            if inner.forked:
                answer = in_child(look, seconds)
            elif function is not None:
                with put_back(brain), limited(seconds):
                    answer = look()
        except (TimeUp, TimeoutError, ChildProcessError) as error:
            self.said.append(f"Not everything was checked: {name} ended early: {error}.")
        self.ranks.part()
        self.ranks.agree(True)  # wait for the others, which may take longer
        returned, findings, said = answer or (None, [], [])
        self.findings += findings
        self.said += said
        return returned


def failure(code, error):
    """Turn an exception into a finding."""
    try:
        return _finding(code, error)
    except Exception:  # for example of its __str__
        return Finding("error", code, "\n".join([type(error).__name__, *traceback.format_exception(error)]), "", REMEDY)


def _finding(code, error):
    """The finding, whose place is a line of the YAML file or the last line of the user's own code."""
    reason = unreadable(error)
    if reason:
        return Finding("error", "manifest-unreadable", *reason)
    said = _said(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((HERE, "<frozen runpy>"))]
    inner = re.findall(r'File "(.+?)", line (\d+), in (\S+)', said) if said.startswith("Caught ") else []
    own = [(f.filename, f.lineno, f.name) for f in frames] + inner
    own = [f"{shown(file)}:{line} in {name}" for file, line, name in own if is_own(file)]
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        own.append(f"{shown(error.filename)}:{error.lineno}")
    where = yaml_line(error) or (own[-1] if own else caller(error.__traceback__ and error.__traceback__.tb_frame))
    first = f"{type(error).__name__} in `{frames[-1].line}`" if not said and frames and frames[-1].line else _first(error)
    recovering = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "torch_recovery"]
    path = str(recovering[-1].f_locals["path"]) if recovering else ""
    first += f" ({shown(path)})" if path not in first else ""
    override = re.search(r"Override '(\w+)' not found in: (.*)", said)
    near = difflib.get_close_matches(override[1], re.findall(r"\w+", override[2]), 1) if override else []
    remedy = f"did you mean --{near[0]}?" if near else REMEDIES.get(code, REMEDY)
    for text in _tuples(error):
        first, remedy = f"HyperPyYAML does not resolve !ref inside a tuple: {text}", f"write a list: [{text[1:-1]}]"
    return Finding("error", code, f"{first}\n{_reasons(error, first)}{_traceback(error, frames)}", where, remedy)


def _said(error):
    several = len(error.args) > 1 and all(isinstance(argument, str) for argument in error.args)
    return re.sub(COLOUR, "", ": ".join(error.args) if several else str(error)).strip()


def _first(error):
    """The type of an exception and the first line of its message."""
    lines = [re.sub(" {3,}", " ", line.strip()) for line in _said(error).splitlines() if line.strip()]
    # The message of an exception from a DataLoader worker is a traceback; its last line is the original message.
    if lines and lines[0].startswith("Caught "):
        return lines[-1]
    # A first line such as "Error(s) in loading state_dict:" says little without the next one
    return f"{type(error).__name__}: {' '.join(lines[: 2 if lines[0].endswith(':') else 1])}" if lines else type(error).__name__


def chain(error):
    """Yield an exception, and what it was raised from, or while it was handled."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reasons(error, first):
    """Lines about the last and the first exception before this one, without those that a library handles, and repetitions."""
    lines = []
    for later, one in pairwise(chain(error)):
        how, said, trace = "because of" if later.__cause__ is one else "while handling", _first(one), one.__traceback__
        # Its traceback begins in the frame that handles it. A NameError there is never on purpose.
        known = how == "because of" or isinstance(later, NameError) or (trace and is_own(trace.tb_frame.f_code.co_filename))
        if known and not any(said.partition(": ")[2] in line for line in (first, *lines)):
            own = [f" ({shown(f.filename)}:{f.lineno})" for f in traceback.extract_tb(trace) if is_own(f.filename)]
            lines.append(f"{how}: {said}{(own or [''])[-1]}\n")
    return "".join(lines[:1] + lines[1:][-1:])


def caller(frame):
    """The line of the user's code that called what runs in a frame."""
    while frame and not is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{shown(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""


def _traceback(error, frames):
    """The traceback; without the lines of libraries, unless ``--traceback`` asks for all."""
    kept = [frame for frame in frames if is_own(frame.filename)] if not Log.whole_tracebacks else frames
    left_out = f"  (without {len(frames) - len(kept)} lines of libraries; --traceback shows them)\n"
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept), left_out * (len(kept) < len(frames))]
    return re.sub(COLOUR, "", "".join(lines + traceback.format_exception_only(type(error), error)))


def is_own(file):
    """Return whether a file is the user's: it is not of Python, of a package, or of the preflight."""
    return not file.startswith(("<", *LIBRARIES)) and PACKAGES.isdisjoint(re.split(r"[/\\]", file))


def own_modules():
    """The user's modules that are loaded."""
    modules = {file: one for one in [*sys.modules.values()] if (file := getattr(one, "__dict__", {}).get("__file__"))}
    return [one for file, one in modules.items() if is_own(str(file))]


def shown(file):
    """Return a path as a person would write it: relative, if it is below the current folder."""
    return file.removeprefix(os.path.join(os.getcwd(), ""))


def _tuples(error):
    """The texts of tuples that HyperPyYAML cannot parse because of a !ref."""
    texts = [frame.f_locals.get("tuple_string") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [text for text in texts if text and "!ref" in text]


def yaml_line(error):
    """Find the line of a YAML file that an exception of HyperPyYAML is about; "" if it is not about one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loading = [frame.f_locals for frame in frames if frame.f_globals.get("__name__", "").startswith("hyperpyyaml")]
    opened = [value for frame in frames for value in [*frame.f_locals.values()] if isinstance(value, io.IOBase)]
    names = [*(getattr(one, "name", None) for one in opened), *sys.argv[1:]]
    names = [name for name in names if isinstance(name, str) and name.endswith((".yaml", ".yml"))]
    file = next(filter(os.path.isfile, names), None)
    if not loading or file is None:
        return ""
    mark = getattr(error, "problem_mark", None)
    if mark is not None and not _tuples(error):  # which are parsed on their own
        return f"{shown(file)}:{mark.line + 1}"
    wanted = [str(names["callable_string"]) for names in loading if "callable_string" in names]
    wanted += [str(names["node"].value) for names in loading if isinstance(getattr(names.get("node"), "value", None), str)]
    wanted += re.findall(r"<[^<>]+>", str(error)) + _tuples(error)
    with open(file, encoding="utf-8", errors="replace") as text:
        lines = text.read().splitlines()
    for one in reversed(wanted):
        found = [number for number, line in enumerate(lines, 1) if one and one in line.partition("#")[0]]
        if len(found) == 1:
            return f"{shown(file)}:{found[0]}"
    return shown(file)
