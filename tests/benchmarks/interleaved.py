"""What the benchmarks share: the stock release beside the fork, calls timed in turn, and the ratios of neighbours."""

import gc
import importlib
import statistics
import sys
import tempfile
import timeit
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from composer import base, record  # noqa: E402  the path above leads to it


def stock_and_fork(module):
    """Import a module of the stock release and the installed fork's; returns both."""
    with tempfile.TemporaryDirectory() as folder:
        base.unpack(base.fetch(record.load().base), folder)
        return _import(module, [folder]), _import(module, [])


def _import(module, path):
    """Import a module of speechbrain afresh, from a folder or as it is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        del sys.modules[name]
    sys.path[:0] = path
    imported = importlib.import_module(module)
    del sys.path[: len(path)]
    package = sys.modules["speechbrain"]
    print(f"Compared is {package.__version__} in {Path(package.__file__).parent}", file=sys.stderr)
    return imported


def optional(module, name):
    """Get what another library defines, or None where that is not installed, which is said."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"{module}.{name} is left out: {error}", file=sys.stderr)


def seconds(calls, rounds):
    """Time calls in turn, each as often as fills a fifth of a second; returns the seconds per call of each round, by name."""
    numbers = {name: timeit.Timer(call).autorange()[0] for name, call in calls.items()}  # warms them up, too
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()  # what one leaves behind is not for the next to clear
            times[name].append(timeit.timeit(call, number=numbers[name]) / numbers[name])
    return times


def spread(values, digits=2):
    """The median of some values and their quartiles, as text."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(times, name, over):
    """The median ratio of two calls of one round, and its quartiles, as text."""
    return spread([one / other for one, other in zip(times[name], times[over])])


def compare(name, times):
    """Print a row that holds the fork against the stock release."""
    stock, fork = (statistics.median(times[key]) for key in ("stock", "fork"))
    print(f"| {name} | {stock:.3g} s | {fork:.3g} s | {ratio(times, 'fork', over='stock')} |", flush=True)


COMPARED = "| | stock | fork | fork / stock: median (quartiles) |\n| --- | --- | --- | --- |"
