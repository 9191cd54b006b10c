"""What may fail on the way to the first step, and what becomes of a failure: a finding or a remark."""

import re
import traceback
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.preflight.report import Finding

CODES = {
    "script-failed": "the script raised an exception before it called fit",
    "preflight-killed": "the preflight's process ended without a result, for example because memory ran out",
    "dataloader-failed": "make_dataloader raised an exception for the training or validation set",
    "fit-start-failed": "on_fit_start raised an exception; it wraps modules, creates optimizers and loads a checkpoint",
    "stage-start-failed": "on_stage_start raised an exception for the first epoch",
    "first-batch-failed": "the first training batch could not be loaded",
    "first-step-failed": "the first training step raised an exception, in forward, loss or backward",
}

REMEDIES = {
    "dataloader-failed": "fix the dataset or the options of its loader",
    "first-batch-failed": "fix the item or the data pipeline that the traceback below shows",
}
REMEDY = "fix the error that the traceback below shows"

# A finding names the last line of a traceback that is not in one of these folders.
LIBRARIES = tuple(str(Path(package.__file__).parent) for package in (torch, sb))
HERE = Path(__file__).parent


class Log:
    """The findings and remarks so far.

    Arguments
    ---------
    ranks : speechbrain.preflight.ranks.Ranks
        The processes of torchrun, which proceed only together.

    Example
    -------
    >>> from speechbrain.preflight.ranks import Ranks
    >>> log = Log(Ranks())
    >>> log.attempt("first-batch-failed", len, "ab"), log.attempt("first-batch-failed", len, 2)
    ((True, 2), (False, None))
    >>> log.guarded("lengths", len, 2)
    >>> [finding.code for finding in log.findings], log.said
    (['first-batch-failed'], ["Not everything was checked: lengths failed with TypeError: object of type 'int' has no len()"])
    """

    def __init__(self, ranks):
        self.ranks = ranks
        self.findings = []
        self.said = []

    def attempt(self, code, function, *args, **kwargs):
        """Call a function that takes the Brain further; a failure becomes a finding.

        Arguments
        ---------
        code : str
            The code of the finding.
        function : callable
            The function.
        *args, **kwargs : object
            Its arguments.

        Returns
        -------
        bool
            Whether it succeeded in all processes.
        object
            The return value of the function; None if it failed.
        """
        try:
            answer, error = function(*args, **kwargs), None
        except (Exception, SystemExit) as caught:
            answer, error = None, caught
            self.findings.append(failure(code, caught))
        return self.ranks.agree(error is None), answer

    def guarded(self, name, function, *args):
        """Call a function that only looks; a failure becomes a remark.

        Arguments
        ---------
        name : str
            The name of the function in the remark.
        function : callable
            The function.
        *args : object
            Its arguments.

        Returns
        -------
        object
            The return value of the function; None if it failed.
        """
        try:
            return function(*args)
        except Exception as error:
            self.said.append(f"Not everything was checked: {name} failed with {type(error).__name__}: {error}")


def failure(code, error):
    """Turn an exception into a finding.

    Arguments
    ---------
    code : str
        The code of the finding.
    error : BaseException
        The exception.

    Returns
    -------
    Finding
        Its place is the last line of the user's own code; the traceback is added to it.

    Example
    -------
    >>> finding = failure("first-batch-failed", ValueError("no such file"))
    >>> finding.what.splitlines()[0]
    'ValueError: no such file'
    """
    stack = error.__traceback__
    while stack and stack.tb_next and _is_ours(stack.tb_frame.f_code.co_filename):
        stack = stack.tb_next
    # An exception from a DataLoader worker has its traceback in its message, the last line of which is the original message.
    said = str(error).strip()
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(stack)]
    frames += re.findall(r'File "(.+?)", line (\d+), in (\w+)', said)
    own = [frame for frame in frames if not frame[0].startswith(LIBRARIES)] or frames
    where = f"{Path(own[-1][0]).name}:{own[-1][1]} in {own[-1][2]}" if own else ""
    first = said.splitlines()[-1] if said.startswith("Caught ") else f"{type(error).__name__}: {said.split(chr(10))[0]}"
    what = f"{first}\n" + "".join(traceback.format_exception(type(error), error, stack))
    return Finding("error", code, what, where, REMEDIES.get(code, REMEDY))


def _is_ours(file):
    return HERE in Path(file).parents or "runpy" in file
