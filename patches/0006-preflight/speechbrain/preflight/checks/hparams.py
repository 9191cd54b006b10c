"""Checks the keys of the YAML file."""

import difflib
import os
import re
import sys
from pathlib import Path

import speechbrain.core
from speechbrain.preflight.attempts import own_modules, shown
from speechbrain.preflight.report import Finding

CODES = {
    "key-mistyped": "nothing reads a key of the YAML file, and a similar one is read",
    "stopper-unfed": "an EpochCounterWithStopper gets no metric at the end of the first validation, so it cannot stop early",
}


def own_code(script):
    """The text of the script, of the user's modules, and of ``Brain``."""
    files = {*(module.__file__ for module in own_modules()), speechbrain.core.__file__, script}
    files = [file for file in files if str(file).endswith(".py") and os.path.isfile(file)]
    return "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in files)


def mistyped(seen):
    """Yield keys of YAML files that nothing reads, and that are one or two letters away from one that is read."""
    code = own_code(seen.given.script)
    for file in filter(os.path.isfile, (each for each in sys.argv[1:] if each.endswith((".yaml", ".yml")))):
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        words = {*re.findall(r"\w+", code), *re.findall(r"<([^<>\[\].]+)", text)}
        read = words & {*re.findall(r"hparams(?:\.|\[['\"])(\w+)", code), *re.findall(r"^(\w+):", text, re.M)}
        for number, line in enumerate(text.splitlines(), 1):
            key = (re.match(r"[a-z]\w+(?=:)", line) or [""])[0]
            near = [other for other in difflib.get_close_matches(key, read, 3, 0.8) if _near(key, other)]
            if key and key not in words and near:
                what, remedy = f"nothing reads {key!r}, but {near[0]!r} is read", f"rename it to {near[0]!r}, or remove it"
                yield Finding("note", "key-mistyped", what, f"{shown(file)}:{number}", remedy)


def _near(one, other):
    """Whether two names are one or two letters apart; digits are no mistakes."""
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    same = sum(block.size for block in blocks)
    digits = re.sub(r"\d", "", one) == re.sub(r"\d", "", other)
    return min(len(one), len(other)) > 5 and max(len(one), len(other)) - same <= 2 and not digits


def unfed(seen):
    """Yield an epoch counter that should stop early, but gets no metric."""
    if seen.valid.unfed:
        what = f"it should stop after {seen.given.epochs.limit_to_stop} epochs without improvement, but gets no metric"
        remedy = "call its update_metric in on_stage_end of the validation, with a metric of the validation set"
        yield Finding("warning", "stopper-unfed", what, "EpochCounterWithStopper", remedy)


RULES = (mistyped, unfed)
