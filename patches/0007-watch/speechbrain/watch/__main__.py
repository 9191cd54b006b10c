"""``python -m speechbrain.watch``."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import speechbrain.watch
from speechbrain.watch.log import CHUNK, Divider, Log, Stamps, chunks, tail
from speechbrain.watch.report import Picture, Printer, summary
from speechbrain.watch.run import Watch, find_goal
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


class Session:
    """Reads, judges and prints one log."""

    def __init__(self, options):
        self.path, self.options = options.log, options
        self._begin()

    def _begin(self):
        options, terminal = self.options, sys.stdout.isatty()
        colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size().columns if terminal else None
        self.log, self.watch, self.picture = Log(), Watch(), Picture()
        self.printer = Printer(lambda line: print(line, flush=options.follow), colour, width, options.follow)

    @property
    def goal(self):
        """What decides which epoch is best, or None."""
        return find_goal(self.watch.runs, self.options.best)

    @property
    def status(self):
        """The exit status."""
        return int(any(flag.level == "error" for run in self.watch.runs for flag in run.flags))

    def read(self):
        """Judge the whole log, then read it again to print it, so that it need not fit into memory."""
        size = os.stat(self.path).st_size
        for run, row, _ in every(self.watch, self._entries(self.log, size)):
            self.printer.learn(run, row)
            self._remember(run, row)
        self.check()
        runs, goal, flags = self.watch.runs, self.goal, {}
        for run in runs:
            for flag in run.found:
                flags.setdefault((run.n, flag.line), []).append(flag)
        for number, row in every(Divider(), self._entries(Log(), size)):
            self.printer.row(runs[number], row, flags.get((number, row.line), []), goal, len(runs) > 1)
        self.printer.flush()
        self._draw()

    def follow(self, wait):
        """Print the log as it grows, until Ctrl-C."""
        stamps = self._stamps()  # for the lines that were there before this command
        try:
            if not self.path.exists():
                print(f"Waiting for {self.path}", flush=True)
            for data in tail(self.path):
                if data is None:
                    print("\nThe log was replaced.")
                    self._begin()
                    continue
                self._extend(self.log.feed(data), stamps)
                if len(data) < CHUNK:
                    stamps = None
                    wait(self.options.every)
        except KeyboardInterrupt:
            print()
        for judged in self.watch.rest():
            self._print(*judged)
        self.check()

    def _entries(self, log, size):
        stamps = self._stamps()
        for data in chunks(self.path, size):
            for entry in log.feed(data):
                yield entry if log.stamped else stamps.give(entry)

    def _stamps(self):
        return Stamps(self.path.with_name("log.txt"))

    def _extend(self, entries, stamps):
        if stamps and not self.log.stamped:
            entries = [stamps.give(entry) for entry in entries]
        elif len(entries) == 1 and not self.log.stamped:  # several that arrive together were not written together
            entries[0].time = ("arrival", time.monotonic())
        for entry in entries:
            for judged in self.watch.feed(entry):
                self._print(*judged)
        if entries:
            if self.watch.divider.held:
                self.printer.early(self.watch.divider.held)
            self._draw()

    def _print(self, run, row, said):
        self._remember(run, row)
        self.printer.row(run, row, said, self.goal)

    def _remember(self, run, row):
        if self.options.plot and not row.is_test:
            self.picture.add(run, row)

    def _draw(self):
        if self.options.plot:
            self.picture.draw(self.options.plot, self.watch.runs, self.goal)

    def check(self):
        """Refuse a file that is not a log, or that does not have the value to choose the best epoch by."""
        log, other = self.log, self.path.with_name("train_log.txt")
        if not log.started and (log.first_unread or log.unfinished):
            line, text = log.first_unread or (1, log.half)
            if text.startswith("version https://git-lfs"):
                refuse(f"{self.path} is a pointer of git-LFS, not the log itself: run `git lfs pull`")
            refuse(f"{self.path} is not a log of FileTrainLogger: line {line} is {clean(text[:80])!r}")
        if not log.started and not self.options.follow:
            if not log.stamped:
                refuse(f"{self.path} is empty, or has only zero bytes")
            refuse(f"{self.path} has no line of FileTrainLogger" + (f"; give {other}" if other.is_file() else ""))
        if self.options.best and not self.goal and not self.options.follow:
            keys = ", ".join(dict.fromkeys(clean(key) for run in self.watch.runs for key in run.numeric_keys()))
            refuse(f"{self.path} has no {self.options.best}; it has {keys or 'no epoch yet'}")


def every(reader, entries):
    """Yield what a Watch or a Divider returns for all entries."""
    for entry in entries:
        yield from reader.feed(entry)
    yield from reader.rest()


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
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    options = arguments(given)
    session = Session(options)
    try:
        session.follow(wait) if options.follow else session.read()
        print("", *summary(session.log, session.watch.runs, session.goal), sep="\n", flush=True)
    except OSError as error:
        if error.filename is not None:
            refuse(f"{error.filename}: {error.strerror}")
        # the reader of the output has closed it, as `| head` does, or its disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return session.status


if __name__ == "__main__":
    sys.exit(main())
