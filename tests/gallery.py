#!/usr/bin/env python3
"""Writes GALLERY.md: for each kind of finding, a broken set-up of the preflight's tests, and what the preflight says about it.

> python tests/gallery.py [--check]

Each module of those tests with a list ``CASES`` is used. One of the values of a case is the code of the finding, and the first
one is what breaks a training: a function of a folder and a bool, which starts it, unless the module has a function
``report_of``, which gets the folder and the values of the case and returns a report.
"""

import argparse
import ast
import difflib
import importlib
import inspect
import logging
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "patches" / "0006-preflight" / "tests"
PAGE = ROOT / "GALLERY.md"
sys.path.insert(0, str(TESTS))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  after the number of threads is set
from speechbrain.preflight.__main__ import Takeover  # noqa: E402
from speechbrain.preflight.checks import CODES  # noqa: E402
from speechbrain.preflight.report import Report  # noqa: E402

INTRODUCTION = """# What the preflight finds

`make gallery` writes this page: a broken set-up of the [preflight's](patches/0006-preflight/README.md) tests for each kind of
finding, and what the preflight says about it. Within a section, what people meet most often comes first. Many set-ups are a
few lines that break a small healthy training: `run` or `data`. These, and small classes such as `Classifier`, are in the
[tests](patches/0006-preflight/tests). In the reports, `data/` is a temporary folder, and `train.py` is the script. Tracebacks
and line numbers are left out, and so is a third finding of the same kind.
"""

# The codes by how often people meet the mistake; codes that are in no section come last.
SECTIONS = {
    "It crashes": """
        script-failed first-step-failed first-batch-failed manifest-unreadable audio-missing item-lacks-key item-failed
        first-validation-failed label-outside token-outside dataloader-failed audio-unreadable audio-channels
        tensor-without-dimension labels-not-repeated fit-start-failed stage-start-failed no-batch batch-of-one no-optimizer
        augmentation-fails real-step-failed ddp-without-gradient processes-apart out-of-memory preflight-killed
        not-installed version-of-recipe version-untested
    """,
    "It trains, but not what you think": """
        nothing-trainable gradient-without-optimizer optimizer-misses-loss frozen-statistics-move trainable-without-gradient
        fit-arguments-shifted key-mistyped debug-is-on learning-rate-zero gradients-not-cleared warm-up-too-long no-step
        batches-without-step group-not-clipped gradient-clipped-to-zero nothing-changes update-too-large memory-grows
        frozen-changes ddp-unfrozen-late ddp-not-wrapped ddp-bypassed trained-twice average-hardly-moves no-backward
        units-identical weight-scale
    """,
    "What is loaded": """
        pretrained-not-loaded loaded-in-part pretrainer-not-loaded loaded-then-changed loaded-elsewhere adapters-missing
        adapted-not-loaded loaded-over-checkpoint pretrained-other-model loaded-normaliser-moves label-encoder-stale
        label-encoder-empty
    """,
    "What is saved, and resuming": """
        trained-not-saved nothing-left not-recovered used-not-saved best-is-worst learning-rate-differs
        resume-differs recovered-in-part saver-not-called adapted-saved-whole averages-more-than-kept stopper-unfed
        loader-not-saved
    """,
    "The loss": """
        cross-entropy-on-probabilities nll-without-log-softmax bce-on-probabilities first-loss output-not-finite
        batch-not-finite weight-not-finite buffer-not-finite loss-broadcast labels-in-another-order loss-maximized
        margin-without-cosine loss-of-itself smoothing-strong not-finite-after-step cannot-overfit input-unused
    """,
    "The validation": """
        validation-in-training-mode validation-random audio-leak label-only-in-valid depends-on-batch validation-drops-items
        validation-loss
    """,
    "The data": """
        audio-rate label-unknown labels-sorted class-imbalance label-ignored duration-unlike-audio sorted-wrong
        dynamic-batch-limit generator-copied audio-truncated audio-empty audio-silent audio-clipped audio-duration
        audio-not-finite audio-twice id-twice label-constant label-contradicts audio-constant signals-unlike
        signals-equal
    """,
    "Sequences": """
        lengths-not-relative token-is-blank ctc-without-log-softmax more-labels-than-frames padding-in-loss targets-as-inputs
        model-sees-targets last-token-ignored vocabulary-too-small many-unknown transcript-empty encoders-disagree speaking-rate
    """,
    "Others": "",
}
MOST = 16  # lines of a set-up


def cases():
    """By code, the cases: pairs of the module and the values."""
    found = {code: [] for code in CODES}
    for path in sorted(TESTS.glob("test_*.py")):
        if re.search(r"^CASES\b", path.read_text(), re.MULTILINE):
            module = importlib.import_module(path.stem)
            for case in module.CASES:
                values = getattr(case, "values", case)
                for code in [value for value in values if isinstance(value, str) and value in CODES][:1]:
                    found[code].append((module, values))
    return found


def finding_text(code, module, values):
    """What the preflight says about a case, without the folder's name, line numbers and tracebacks; "" if it says nothing."""
    torch.manual_seed(0)
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if hasattr(module, "report_of"):
                report = module.report_of(Path(folder), *values)
            else:
                report = Takeover().run(lambda: values[0](Path(folder), True))
        except BaseException as error:  # also what pytest raises to skip
            print(f"{code}: {type(error).__name__}: {error}", file=sys.stderr)
            return ""
        finally:
            logging.disable(logging.NOTSET)
    text = Report([finding for finding in report.findings if finding.code == code][:2]).text()
    text = text.rpartition("\n\nFound: ")[0]
    text = re.sub(r"\n    Traceback .*(\n    .*)*", "", text)
    for path in (os.path.realpath(folder), folder, Path(folder).name):  # the last one, if it is below the current folder
        text = text.replace(path, "data")
    text = re.sub(r"CKPT\+[-+\d]+", "CKPT+2026-01-01+12-00-00+00", text)
    return re.sub(r"[\w./-]*test_\w+\.py:\d+", "train.py", text)


def set_up(start, *others):
    """The source of a case as it is when it is broken, and the values that it takes from elsewhere."""
    if not callable(start):
        return "\n".join(str(one).strip() for one in start if one is not None)
    source = _source(start)
    while (change := _next_change(source)) is not None:
        first, last, text = change
        source = source[:first] + text + source[last:]
    lines = re.sub(r"^ *pass\n(?=.)", "", source, flags=re.MULTILINE).splitlines()
    if inspect.isfunction(start):
        lines = textwrap.dedent("\n".join(lines[ast.parse("\n".join(lines)).body[0].body[0].lineno - 1 :])).splitlines()
    lines = [re.sub(r"(return|report =) Takeover\(\).run\(lambda: (.*)\)$", r"\2", line) for line in lines]
    taken = inspect.getclosurevars(start).nonlocals if inspect.isfunction(start) else {}
    taken = {name: value for name, value in taken.items() if name in re.findall(r"\w+", "\n".join(lines))}
    taken.update(pair for options in others if isinstance(options, dict) for pair in options.items())
    own = [value for value in (*taken.values(), *others) if getattr(value, "__module__", "") == start.__module__]
    own = [f"{_source(value)}\n\n" for value in own]
    says = [f"# {name} = {getattr(value, '__name__', value)}" for name, value in taken.items() if "lambda" not in str(value)]
    return "".join(filter(str.strip, own)) + "\n".join([*says, *lines[:MOST], *["..."] * (len(lines) > MOST)])


def _source(thing):
    """The source of a function or a class, without decorators; "" for a lambda function."""
    lines = textwrap.dedent(inspect.getsource(thing)).splitlines()
    if thing.__name__ == "<lambda>":
        return ""
    return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith(("def ", "class "))) :])


def _next_change(source):
    """The next place to change so that ``broken`` is true: its start and end, and the new text; None if there is none."""
    tree = ast.parse(source)
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))

    def span(node):
        ends = offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset
        return [len(source.encode()[:end].decode()) for end in ends]

    def text(node):
        return ast.get_source_segment(source, node)

    for node in ast.walk(tree):
        if isinstance(node, ast.If) and _truth(node.test) is not None:
            chosen = node.body if _truth(node.test) else node.orelse
            first, last = span(node)
            if not chosen:
                return first, last, "pass"
            inner = "\n".join(source.splitlines()[chosen[0].lineno - 1 : chosen[-1].end_lineno])
            indent = " " * node.col_offset
            return first, last, textwrap.indent(textwrap.dedent(inner), indent).removeprefix(indent)
        if isinstance(node, ast.IfExp) and _truth(node.test) is not None:
            (first, last), chosen = span(node), node.body if _truth(node.test) else node.orelse
            plain = isinstance(chosen, (ast.Name, ast.Constant))
            if plain and re.search(r"[^\w)\]]\($", source[:first]) and source[last] == ")":
                first, last = first - 1, last + 1  # the parentheses were those of the condition
            return first, last, text(chosen)
        if isinstance(node, ast.BoolOp) and any(_truth(value) is not None for value in node.values):
            neutral, word = isinstance(node.op, ast.And), " and " if isinstance(node.op, ast.And) else " or "
            decided = any(_truth(value) is (not neutral) for value in node.values)
            left = [text(value) for value in node.values if _truth(value) is None]
            return *span(node), str(not neutral) if decided else word.join(left) or str(neutral)
    for node in ast.walk(tree):
        if isinstance(node, (ast.UnaryOp, ast.Name, ast.Attribute)) and _truth(node) is not None:
            return *span(node), str(_truth(node))
    return None


def _truth(node):
    """Whether an expression is true or false because ``broken`` is true; None if that is not known."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _truth(node.operand)
        return None if inner is None else not inner
    if isinstance(getattr(node, "ctx", None), ast.Load) and ast.unparse(node) in ("broken", "self.broken"):
        return True
    return None


def entry(code, found):
    """The part of the page about a code."""
    line = CODES[code]
    parts = [f"### {code}", (line if "_" in line.split()[0] else line[0].upper() + line[1:]) + "."]
    for module, values in found:
        text = finding_text(code, module, values)
        if text:
            parts += [f"```python\n{set_up(values[0], *values[1:])}\n```", f"```\n{text}\n```"]
            break
    return "\n\n".join(parts)


def page():
    """Return the whole page."""
    found = cases()
    listed = {title: codes.split() for title, codes in SECTIONS.items()}
    listed["Others"] = [code for code in CODES if not any(code in codes for codes in listed.values())]
    parts = [INTRODUCTION.strip()]
    for title, codes in listed.items():
        if codes:
            parts += [f"## {title}", *(entry(code, found[code]) for code in codes if code in CODES)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the page, except its numbers; exit with 1 if it is old")
    options, new = parser.parse_args(), page()
    if options.check:
        pages = [re.sub(r"\d+(\.\d+)?(e-?\d+)?", "0", text).splitlines() for text in (PAGE.read_text("utf-8"), new)]
        changes = list(difflib.unified_diff(*pages, str(PAGE), "now", lineterm=""))
        sys.exit("\n".join([*changes, "run `make gallery`"]) if changes else 0)
    PAGE.write_text(new, encoding="utf-8")
