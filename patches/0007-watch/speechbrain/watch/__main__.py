"""``python -m speechbrain.watch``."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import speechbrain.watch
from speechbrain.watch.flags import find_goal, flags
from speechbrain.watch.log import Log, runs, stamp, tail
from speechbrain.watch.report import plot, summary, table
from speechbrain.watch.text import clean


def refuse(why):
    """Print what is wrong with the usage, and exit with 2."""
    print(f"python -m speechbrain.watch: {why}", file=sys.stderr)
    raise SystemExit(2)


def arguments(given):
    """Parse the command line, and refuse options that cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain.watch",
        description=speechbrain.watch.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", type=Path, metavar="train_log.txt", help="the log in a recipe's output folder")
    parser.add_argument("--follow", action="store_true", help="keep reading while the log is written, until Ctrl-C")
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="time between two checks of --follow (default: 1)"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the curves into this file; needs matplotlib")
    parser.add_argument(
        "--best",
        metavar="KEY[:min|max]",
        help="the value that decides which epoch is best, such as WER or ACC:max (default: the validation loss); "
        "without :min or :max, the name decides whether low or high is good",
    )
    options = parser.parse_args(given)
    if options.plot:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            refuse("--plot needs matplotlib: pip install matplotlib")
    if options.log.is_dir():
        refuse(f"{options.log} is a folder; give the log in it, such as {options.log / 'train_log.txt'}")
    if not options.follow and not options.log.exists():
        refuse(f"there is no file {options.log}; to wait for it, add --follow")
    return options


def watch(options, wait):
    """Print the report once, or as the log grows; returns the exit status."""
    terminal = sys.stdout.isatty()
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else None
    log, printed, read_before = Log(), set(), False
    if options.follow and not options.log.exists():
        print(f"Waiting for {options.log}", flush=True)
    try:
        for data in tail(options.log):
            if data is None:
                print("\nThe log was replaced.")
                log, printed = Log(), set()
                continue
            new = log.feed(data)
            if not read_before:
                stamp(new, options.log.with_name("log.txt"))
            elif len(new) == 1:  # several that arrive together were not written together
                new[0].time = ("arrival", time.monotonic())
            if new:
                found = runs(log.entries)
                goal = find_goal(found, options.best)
                for identity, line in table(found, goal, colour, width, options.follow):
                    if identity not in printed:
                        print(line, flush=True)
                    printed.add(identity)
                if options.plot:
                    plot(options.plot, found, goal)
            if not options.follow:
                break
            read_before = True
            wait(options.every)
    except KeyboardInterrupt:
        print()
    found = runs(log.entries)
    goal = find_goal(found, options.best)
    if not log.entries and log.unread:
        line, text = log.unread[0]
        refuse(f"{options.log} is not a log of FileTrainLogger: line {line} is {clean(text[:80])!r}")
    if options.best and not goal and not options.follow:
        keys = ", ".join(dict.fromkeys(clean(key) for run in found for key in run.numeric_keys()))
        refuse(f"{options.log} has no {options.best}; it has {keys or 'no epoch yet'}")
    print("", *summary(log, found, goal), sep="\n")
    return int(any(flag.level == "error" for run in found for flag in flags(run, goal)))


def main(given=None, wait=time.sleep):
    """Run the command line.

    Arguments
    ---------
    given : list of str or None
        The arguments; by default those of the process.
    wait : callable
        Called between two checks of --follow, with the seconds to wait.

    Returns
    -------
    int
        The exit status.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    options = arguments(given)
    try:
        return watch(options, wait)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
