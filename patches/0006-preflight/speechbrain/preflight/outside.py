"""What the command line does around a script: supervises it, says what it is doing, and writes the report."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import torch
from speechbrain.preflight.attempts import caller
from speechbrain.preflight.isolate import end_with_parent
from speechbrain.preflight.report import Finding, Report

PIPE = "SPEECHBRAIN_PREFLIGHT_PIPE"  # in the environment: the number of the pipe to the process that supervises this one
WAITS = (10, 20, 30, 60)  # seconds between lines that say what a script is doing; the last one repeats


def supervised(function, options):
    """Run a function in another process, report if a script ends it, and return the exit status."""
    if PIPE in os.environ:
        return _answered(function, int(os.environ.pop(PIPE)))
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if torch.cuda.is_available():  # a forked process could not use it, so the command is started again
        command = [sys.executable, *sys.orig_argv[1:]]
        child = subprocess.Popen(command, pass_fds=[writer], env={**os.environ, PIPE: str(writer)}).pid
    else:
        child = os.fork()
    if child == 0:
        os.close(reader)
        torch.cuda._lazy_init = _no_gpu  # torch's own error would say that this process is forked
        return _answered(function, writer)
    os.close(writer)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets it as well
    ended = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, ended)
    os.set_blocking(reader, False)  # processes of the script may keep it open
    with contextlib.suppress(BlockingIOError):
        if answer := os.read(reader, 1):
            return answer[0]
    if status in (130, -signal.SIGINT, -signal.SIGTERM):
        return 130
    how = f"signal {-status}, {signal.Signals(-status).name}" if status < 0 else f"status {status}, as os._exit does"
    what = f"the script ended the process before the report was ready: {how}"
    remedy = "look at what was printed last, and at how much memory it takes"
    report = Report([Finding("error", "script-failed", what, f"{options.script}{rank()}", remedy)])
    return 1 if write(report, options, sys.stdout) else 2


def _no_gpu():
    raise RuntimeError("PyTorch finds no GPU here: pass --device cpu, or check the driver and CUDA_VISIBLE_DEVICES")


def _answered(function, writer):
    """Run a function, and write the exit status that it returns to a pipe."""
    end_with_parent()
    with contextlib.suppress(Exception):
        faulthandler.enable()
    try:
        status = function()
    except Exception:  # a mistake of the preflight itself
        traceback.print_exc()
        status = 2
    with contextlib.suppress(OSError):
        os.write(writer, bytes([status]))
    return status


def write(report, options, out):
    """Write the report, and return whether that was possible."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # so that the report comes last
    try:
        colour = out.isatty() and "NO_COLOR" not in os.environ
        print(report.text(colour), file=out, flush=True)
    except (OSError, ValueError) as error:  # a closed pipe, a full disk, or a stream that the script has closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, else Python fails again when it ends
        try:
            print(report.text(), f"(standard output: {error})", sep="\n", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            written = False
    if options.json:
        try:
            options.json.write_text(report.json() + "\n", encoding="utf-8")
        except OSError as error:
            print(f"the report could not be written to {options.json}: {error}", file=sys.stderr)
            written = False
    return written


def rank():
    """The rank of this process, in parentheses; "" without torchrun."""
    return f" (rank {os.environ.get('RANK')})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""


@contextlib.contextmanager
def progress():
    """Say now and then, while this context lasts, what the main thread is doing; on the standard error."""
    over, main, began = threading.Event(), threading.main_thread().ident, time.monotonic()

    def tell():
        waits = iter(WAITS)
        while not over.wait(next(waits, WAITS[-1])):
            where = caller(sys._current_frames().get(main))
            with contextlib.suppress(OSError, ValueError):
                print(f"preflight{rank()}: {time.monotonic() - began:.0f} s, {where}", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()
