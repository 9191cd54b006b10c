"""Shared by the benchmarks: import stock and fork together, time calls in turn, and compare the times of each round."""

import gc
import importlib
import statistics
import sys
import tempfile
import timeit
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from composer import base, record  # noqa: E402  found through the path above


def stock_and_fork(module):
    """Import a module of the stock release, and the same module of the installed fork; returns both."""
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(base.fetch(record.load().base), folder)
        return _import(module, [folder]), _import(module, [])


def _import(module, path):
    """Import a module of speechbrain again, from a folder or from the installed package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        del sys.modules[name]
    sys.path[:0] = path
    imported = importlib.import_module(module)
    del sys.path[: len(path)]
    package = sys.modules["speechbrain"]
    print(f"Comparing {package.__version__} in {Path(package.__file__).parent}", file=sys.stderr)
    return imported


def optional(module, name):
    """Get an object of another library; print a message and return None if it is not installed."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"{module}.{name} is left out: {error}", file=sys.stderr)


def seconds(calls, rounds):
    """Time calls in turn, each repeated for 0.2 seconds; returns, for each name, the seconds per call in each round."""
    numbers = {name: timeit.Timer(call).autorange()[0] for name, call in calls.items()}  # also warms the calls up
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()  # so that no call pays for the garbage of the one before
            times[name].append(timeit.timeit(call, number=numbers[name]) / numbers[name])
    return times


def spread(values, digits=2):
    """Format the median of some values, and their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(times, name, over):
    """Format the median and quartiles of the ratio of two calls of the same round."""
    return spread([one / other for one, other in zip(times[name], times[over])])


def compare(name, times):
    """Print a table row that compares the fork with the stock release."""
    stock, fork = (statistics.median(times[key]) for key in ("stock", "fork"))
    print(f"| {name} | {stock:.3g} s | {fork:.3g} s | {ratio(times, 'fork', over='stock')} |", flush=True)


COMPARED = "| | stock | fork | fork / stock: median (quartiles) |\n| --- | --- | --- | --- |"
